//! Paths of rules, and the index by which the rules of a request's path are found.
//!
//! ```text
//!  "/shop/cart"  exact: hash of the whole path          -> rules 3, 7
//!                prefixes: tree "/" -> "shop" -> "/c"   -> rules 9 | 1, 5 | 4
//!                the rest, one by one                   -> rules 2, 6   (expressions, letters in any case)
//! ```
//!
//! Invariant: the rule found is the first one, in the order in which they are written, whose path and conditions match.
//! Each list is sorted, and none is followed beyond the best that was found in another.

use std::collections::HashMap;

use slotmesh_xds::envoy::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};

use crate::{
    field::{FieldPath, InvalidField},
    text::Pattern,
};

/// The path of a rule.
#[derive(Clone, Debug)]
pub(crate) struct PathCondition {
    pub(crate) form: PathForm,
    ignore_case: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum PathForm {
    Exact(Box<str>),
    Prefix(Box<str>),
    /// A prefix that ends where a segment does.
    Segments(Box<str>),
    Regex(Box<Pattern>),
    /// Any path.
    Any,
}

impl PathCondition {
    /// The path, or, where it can't be read, one that takes at least as many requests, and the fault.
    pub(crate) fn new(at: &FieldPath<'_>, matcher: &RouteMatch) -> (Self, Result<(), InvalidField>) {
        let ignore_case = matcher.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value);
        let text = |path: &str| {
            if ignore_case { path.to_ascii_lowercase().into_boxed_str() } else { path.into() }
        };
        let mut fault = Ok(());
        let form = match &matcher.path_specifier {
            Some(PathSpecifier::Path(path)) => PathForm::Exact(text(path)),
            Some(PathSpecifier::Prefix(path)) => PathForm::Prefix(text(path)),
            Some(PathSpecifier::PathSeparatedPrefix(path)) => {
                if path.is_empty() || path.contains(['?', '#']) || path.ends_with('/') {
                    let at = at.field("path_separated_prefix");
                    fault = Err(at.wrong("it is empty, has a ? or #, or ends with /"));
                }
                let end = path.find(['?', '#']).unwrap_or(path.len());
                PathForm::Segments(text(path[..end].trim_end_matches('/')))
            }
            Some(PathSpecifier::SafeRegex(matcher)) => match Pattern::new(&at.field("safe_regex"), matcher) {
                Ok(pattern) => PathForm::Regex(Box::new(pattern)),
                Err(error) => {
                    fault = Err(error);
                    PathForm::Prefix(text(literal_start(&matcher.regex)))
                }
            },
            Some(PathSpecifier::ConnectMatcher(_)) => {
                fault = Err(at.field("connect_matcher").wrong("nothing is tunnelled"));
                PathForm::Any
            }
            Some(PathSpecifier::PathMatchPolicy(_)) => {
                fault = Err(at.field("path_match_policy").wrong("no extensions"));
                PathForm::Any
            }
            None => {
                fault = Err(at.wrong("there is no path, prefix or expression"));
                PathForm::Any
            }
        };
        // An expression says (?i) itself.
        let ignore_case = ignore_case && !matches!(form, PathForm::Regex(_) | PathForm::Any);
        (Self { form, ignore_case }, fault)
    }

    /// True where a path without query matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let starts = |text: &str| match path.get(..text.len()) {
            Some(start) if self.ignore_case => start.eq_ignore_ascii_case(text),
            Some(start) => start == text,
            None => false,
        };
        match &self.form {
            PathForm::Exact(text) => path.len() == text.len() && starts(text),
            PathForm::Prefix(text) => starts(text),
            PathForm::Segments(text) => starts(text) && ends_segment(path, text.len()),
            PathForm::Regex(pattern) => pattern.matches(path.as_bytes()),
            PathForm::Any => true,
        }
    }

    /// Length of the part of a path that a rewrite of the prefix replaces. None where the path matches only without its
    /// parameters: as in Envoy, it has no prefix to replace then.
    pub(crate) fn matched(&self, path: &str) -> Option<usize> {
        match &self.form {
            PathForm::Exact(text) | PathForm::Prefix(text) | PathForm::Segments(text) => {
                self.matches(path).then_some(text.len())
            }
            PathForm::Regex(_) | PathForm::Any => Some(path.len()),
        }
    }
}

fn ends_segment(path: &str, len: usize) -> bool {
    matches!(path.as_bytes().get(len), None | Some(b'/'))
}

/// The text that all matches of an expression begin with, as far as that is plain to see.
fn literal_start(regex: &str) -> &str {
    if regex.contains('|') || regex.starts_with("(?") {
        return "";
    }
    let end = regex.find(|c: char| r"\.+*?()[]{}^$#&~- ".contains(c)).unwrap_or(regex.len());
    let start = &regex[..end];
    match regex[end..].chars().next() {
        // The last character may be there no time.
        Some('*' | '?' | '{') => start.char_indices().next_back().map_or("", |(last, _)| &start[..last]),
        _ => start,
    }
}

/// The rules of a virtual host by their paths.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathIndex {
    exact: HashMap<Box<str>, Vec<u32>, foldhash::fast::RandomState>,
    prefixes: Tree,
    rest: Vec<u32>,
}

impl PathIndex {
    pub(crate) fn new<'p>(paths: impl Iterator<Item = &'p PathCondition>) -> Self {
        let mut index = Self::default();
        for (number, path) in (0..).zip(paths) {
            match &path.form {
                _ if path.ignore_case => index.rest.push(number),
                PathForm::Exact(text) => index.exact.entry(text.clone()).or_default().push(number),
                PathForm::Prefix(text) => index.prefixes.insert(text.as_bytes(), number, false),
                PathForm::Segments(text) => index.prefixes.insert(text.as_bytes(), number, true),
                PathForm::Any => index.prefixes.insert(b"", number, false),
                PathForm::Regex(_) => index.rest.push(number),
            }
        }
        index
    }

    /// Number of the first rule whose path is this one, and for which `holds` says so. It is told whether the path has
    /// still to be compared.
    pub(crate) fn first(&self, path: &str, mut holds: impl FnMut(u32, bool) -> bool) -> Option<u32> {
        let mut best = None;
        let mut look = |numbers: &mut dyn Iterator<Item = u32>, compare| {
            for number in numbers {
                if best.is_some_and(|best| number > best) {
                    break;
                }
                if holds(number, compare) {
                    best = Some(number);
                    break;
                }
            }
        };
        if let Some(numbers) = self.exact.get(path) {
            look(&mut numbers.iter().copied(), false);
        }
        self.prefixes.each(path.as_bytes(), |entries, ends| {
            let fitting = entries.iter().filter(|entry| ends || !entry.segments).map(|entry| entry.number);
            look(&mut { fitting }, false);
        });
        look(&mut self.rest.iter().copied(), true);
        best
    }
}

/// A tree of prefixes: each node adds some bytes to its parent's.
#[derive(Clone, Debug)]
struct Tree {
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    label: Box<[u8]>,
    /// Rules with the prefix that ends here, in order.
    entries: Vec<Entry>,
    /// First bytes of the children's labels, and the children.
    firsts: Vec<u8>,
    children: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u32,
    segments: bool,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Tree {
    /// Adds a rule, whose number is above those of all before.
    fn insert(&mut self, mut prefix: &[u8], number: u32, segments: bool) {
        let mut at = 0;
        while let Some(&first) = prefix.first() {
            let Some(place) = self.nodes[at].firsts.iter().position(|byte| *byte == first) else {
                let node = self.push(Node { label: prefix.into(), ..Node::default() });
                self.nodes[at].firsts.push(first);
                self.nodes[at].children.push(node);
                at = node as usize;
                break;
            };
            let child = self.nodes[at].children[place];
            let label = &self.nodes[child as usize].label;
            let common = label.iter().zip(prefix).take_while(|(a, b)| a == b).count();
            at = child as usize;
            if common < label.len() {
                self.split(at, common);
            }
            prefix = &prefix[common..];
        }
        self.nodes[at].entries.push(Entry { number, segments });
    }

    /// Leaves a node the first bytes of its label, and gives all else to a new child.
    fn split(&mut self, at: usize, common: usize) {
        let node = &mut self.nodes[at];
        let below = Node {
            label: node.label[common..].into(),
            entries: std::mem::take(&mut node.entries),
            firsts: std::mem::take(&mut node.firsts),
            children: std::mem::take(&mut node.children),
        };
        node.label = node.label[..common].into();
        node.firsts.push(below.label[0]);
        let below = self.push(below);
        self.nodes[at].children.push(below);
    }

    fn push(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("a message of at most 2 GiB has fewer rules")
    }

    /// Calls with the entries of each prefix of a path that has some, shortest first, and with true where a segment of
    /// the path ends there.
    fn each(&self, path: &[u8], mut f: impl FnMut(&[Entry], bool)) {
        let mut node = &self.nodes[0];
        let mut len = 0;
        loop {
            if !node.entries.is_empty() {
                f(&node.entries, matches!(path.get(len), None | Some(b'/')));
            }
            let Some(first) = path.get(len) else { return };
            let Some(place) = node.firsts.iter().position(|byte| byte == first) else { return };
            node = &self.nodes[node.children[place] as usize];
            if !path[len..].starts_with(&node.label) {
                return;
            }
            len += node.label.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::envoy::google::protobuf::BoolValue;

    use super::*;

    fn condition(specifier: PathSpecifier, case_sensitive: bool) -> PathCondition {
        let matcher = RouteMatch {
            path_specifier: Some(specifier),
            case_sensitive: Some(BoolValue { value: case_sensitive }),
            ..Default::default()
        };
        let (condition, fault) = PathCondition::new(&FieldPath::ROOT, &matcher);
        fault.unwrap();
        condition
    }

    #[test]
    fn the_first_in_order_wins_wherever_it_is_indexed() {
        let paths = [
            condition(PathSpecifier::Prefix("/shop/cart".into()), true),
            condition(PathSpecifier::PathSeparatedPrefix("/shop".into()), true),
            condition(PathSpecifier::Path("/shop".into()), true),
            condition(PathSpecifier::Prefix("/SHO".into()), false),
            condition(PathSpecifier::Prefix("/".into()), true),
            condition(PathSpecifier::Path("/never".into()), true),
        ];
        let index = PathIndex::new(paths.iter());
        for (path, expected) in [
            ("/shop/cart2", Some(0)),
            ("/shop/car", Some(1)),
            ("/shop", Some(1)),
            ("/shopping", Some(3)),
            ("/shOp", Some(3)),
            ("/never", Some(4)),
            ("*", None),
        ] {
            let found = index.first(path, |number, compare| !compare || paths[number as usize].matches(path));
            assert_eq!(found, expected, "{path}");
            let linear = paths.iter().position(|condition| condition.matches(path));
            assert_eq!(found.map(|number| number as usize), linear, "{path}");
        }
    }

    #[test]
    fn the_start_of_an_expression_is_never_longer_than_what_all_matches_have() {
        for (regex, start) in [
            ("/api[", "/api"),
            ("/api*(", "/ap"),
            ("/api{1", "/ap"),
            ("/a|/b(", ""),
            ("(?i)/a(", ""),
            ("/caf\u{e9}?(", "/caf"),
            ("plain", "plain"),
        ] {
            assert_eq!(literal_start(regex), start, "{regex}");
        }
    }
}
