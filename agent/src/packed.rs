//! What only people read, packed behind each other into [`Text`](slotmesh_records::Text) records:
//! names, domains, localities.
//!
//! A number is 4 bytes, little-endian; a text is its length in bytes as a number, and its bytes, UTF-8.
//!
//! ```text
//! Listener::names          count, then per chain: port (0: all), name
//! Route::text              count, then per virtual host: name, count, domains,
//!                                 count, then per route: name, number of set, first, count of clusters
//! Endpoints::localities    count, then per locality: region, zone, sub-zone, priority, weight (0: none);
//!                          then 1 where the endpoints are chosen by where the node is
//! ```

/// Packs.
#[derive(Debug, Default)]
pub(crate) struct Packer(Vec<u8>);

impl Packer {
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub fn number(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// A length; the validated model has none above `u32::MAX`.
    pub fn count(&mut self, count: usize) {
        self.number(count as u32);
    }

    pub fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Unpacks; `None` where the bytes end early or aren't text.
#[derive(Debug)]
pub(crate) struct Unpacker<'a>(pub &'a [u8]);

impl<'a> Unpacker<'a> {
    pub fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.number()? as usize;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let mut packer = Packer::default();
        packer.number(7);
        packer.text("é");
        packer.text("");
        let mut unpacker = Unpacker(packer.bytes());
        assert_eq!(
            (unpacker.number(), unpacker.text(), unpacker.text(), unpacker.number()),
            (Some(7), Some("é"), Some(""), None)
        );
        assert_eq!(Unpacker(&packer.bytes()[4..7]).text(), None);
    }
}
