//! Domains of virtual hosts, and the index by which the virtual host of a request is found: the whole name first, then
//! the longest suffix (`*.example.com`), then the longest prefix (`example.*`), then `*`.

use std::{borrow::Cow, collections::HashMap, hash::BuildHasher};

/// Domains of all virtual hosts.
#[derive(Clone, Debug, Default)]
pub(crate) struct DomainIndex {
    exact: Names,
    suffixes: ByLength,
    prefixes: ByLength,
    any: Option<u32>,
    /// A request's port doesn't count.
    ignore_port: bool,
}

type Names = HashMap<Box<str>, u32, foldhash::fast::RandomState>;

/// Names without their `*`, longest first.
type ByLength = Vec<(usize, Names)>;

impl DomainIndex {
    pub(crate) fn new(ignore_port: bool) -> Self {
        Self { ignore_port, ..Self::default() }
    }

    /// Gives a domain to a virtual host. Nothing where another one has it.
    pub(crate) fn insert(&mut self, domain: &str, host: u32) -> Option<()> {
        let domain = domain.to_ascii_lowercase();
        let names = if domain == "*" {
            return match self.any {
                None => {
                    self.any = Some(host);
                    Some(())
                }
                Some(_) => None,
            };
        } else if let Some(suffix) = domain.strip_prefix('*') {
            return insert(of_length(&mut self.suffixes, suffix.len()), suffix, host);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            return insert(of_length(&mut self.prefixes, prefix.len()), prefix, host);
        } else {
            &mut self.exact
        };
        insert(names, &domain, host)
    }

    /// The virtual host of a request for this host and port.
    pub(crate) fn find(&self, authority: &str) -> Option<u32> {
        let mut name = Cow::Borrowed(authority);
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name = Cow::Owned(name.to_ascii_lowercase());
        }
        let name = if self.ignore_port { without_port(&name) } else { &name };
        // A `*` stands for one character or more.
        let wild = |lengths: &ByLength, part: fn(&str, usize) -> Option<&str>| {
            let shorter = lengths.iter().filter(|(len, _)| *len < name.len());
            shorter.filter_map(|(len, names)| names.get(part(name, *len)?)).next().copied()
        };
        self.exact
            .get(name)
            .copied()
            .or_else(|| wild(&self.suffixes, |name, len| name.get(name.len() - len..)))
            .or_else(|| wild(&self.prefixes, |name, len| name.get(..len)))
            .or(self.any)
    }
}

fn insert<S: BuildHasher>(names: &mut HashMap<Box<str>, u32, S>, name: &str, host: u32) -> Option<()> {
    if names.contains_key(name) {
        return None;
    }
    names.insert(name.into(), host);
    Some(())
}

fn of_length(lengths: &mut ByLength, len: usize) -> &mut Names {
    let place = lengths.partition_point(|(other, _)| *other > len);
    if lengths.get(place).is_none_or(|(other, _)| *other != len) {
        lengths.insert(place, (len, Names::default()));
    }
    &mut lengths[place].1
}

/// A host without its port; the colons of an IPv6 address stand in brackets.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if authority.rfind(']').is_none_or(|bracket| bracket < colon) => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(domains: &[&str]) -> DomainIndex {
        let mut index = DomainIndex::default();
        for (host, domain) in (0..).zip(domains) {
            index.insert(domain, host).unwrap();
        }
        index
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let domains = ["*", "web.*", "*.example.com", "*-x.example.com", "web.example.com", "web.exa*"];
        let index = index(&domains);
        for (name, expected) in [
            ("web.example.com", "web.example.com"),
            ("WEB.Example.com", "web.example.com"),
            ("a-x.example.com", "*-x.example.com"),
            ("-x.example.com", "*.example.com"),
            (".example.com", "*"),
            ("web.example.org", "web.exa*"),
            ("web.org", "web.*"),
            ("web.", "*"),
            ("", "*"),
            ("web.example.com:80", "web.exa*"),
        ] {
            assert_eq!(index.find(name).map(|host| domains[host as usize]), Some(expected), "{name}");
        }
    }

    #[test]
    fn a_port_counts_unless_it_is_ignored() {
        let mut index = index(&["web", "web:80", "[fd00::1]"]);
        assert_eq!(index.find("web:80"), Some(1));
        assert_eq!(index.find("web:81"), None);
        index.ignore_port = true;
        assert_eq!(index.find("web:81"), Some(0));
        assert_eq!(index.find("[fd00::1]:80"), Some(2));
        assert_eq!(index.find("[fd00::1]"), Some(2));
    }

    #[test]
    fn a_domain_has_one_virtual_host() {
        let mut index = index(&["*", "a", "*.b", "c.*"]);
        for taken in ["*", "A", "*.B", "c.*"] {
            assert_eq!(index.insert(taken, 9), None, "{taken}");
        }
    }
}
