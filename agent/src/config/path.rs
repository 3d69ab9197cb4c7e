//! Where in a message: spelt out only when something there is refused.

use std::fmt;

/// A field of a message, as a list from the field up to the resource. Costs nothing until it is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> At<'a> {
    /// The resource itself.
    pub(crate) const ROOT: At<'static> = At { parent: None, name: "", index: None };

    /// A field of the message here.
    pub(crate) const fn field(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name, index: None }
    }

    /// An element of a repeated field of the message here.
    pub(crate) const fn element(&'a self, name: &'a str, index: usize) -> Self {
        Self { parent: Some(self), name, index: Some(index) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !parent.name.is_empty() {
                f.write_str(".")?;
            }
        }
        f.write_str(self.name)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::At;

    #[test]
    fn a_path_reads_as_the_message_is_written() {
        let chain = At::ROOT.element("filter_chains", 2);
        assert_eq!(At::ROOT.to_string(), "");
        assert_eq!(chain.field("filter_chain_match").to_string(), "filter_chains[2].filter_chain_match");
    }
}
