//! Changes of headers: what a route, its virtual host, the whole configuration and a weighted backend add and remove.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use slotmesh_xds::envoy::envoy::config::core::v3::{
    HeaderValueOption, header_value_option::HeaderAppendAction,
};

use crate::{
    field::{FieldPath, InvalidField, refuse_set},
    head::{HeaderChanges, HeaderLookup},
};

/// Headers that say where a message ends, or that are about the connection: changing them would change what the next
/// one reads as a message.
const FRAMING: [HeaderName; 5] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("proxy-connection"),
];

/// Changes of one level: headers that are removed, then headers that are set and added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderEdit {
    remove: Box<[HeaderName]>,
    add: Box<[Addition]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Addition {
    name: HeaderName,
    value: HeaderValue,
    overwrite: bool,
    /// Only where the header is there already (true), or isn't (false).
    where_there: Option<bool>,
}

impl HeaderEdit {
    /// Of `what`, `request` or `response`: the fields `…_headers_to_add` and `…_headers_to_remove`.
    pub(crate) fn new(
        at: &FieldPath<'_>,
        (add_field, add): (&str, &[HeaderValueOption]),
        (remove_field, remove): (&str, &[String]),
    ) -> Result<Self, InvalidField> {
        let remove = (0..)
            .zip(remove)
            .map(|(i, name)| changeable(&at.element(remove_field, i), name))
            .collect::<Result<_, _>>()?;
        let mut additions = Vec::with_capacity(add.len());
        for (i, option) in add.iter().enumerate() {
            additions.extend(Addition::new(&at.element(add_field, i), option)?);
        }
        Ok(Self { remove, add: additions.into() })
    }

    fn apply(&self, headers: &mut impl HeaderChanges) {
        for name in &self.remove {
            headers.take_away(name);
        }
        if self.add.is_empty() {
            return;
        }
        let mut due: Vec<&Addition> = Vec::with_capacity(self.add.len());
        due.extend(self.add.iter().filter(|addition| {
            addition.where_there.is_none_or(|there| headers.has(&addition.name) == there)
        }));
        for addition in due.iter().filter(|addition| addition.overwrite) {
            headers.set(addition.name.clone(), addition.value.clone());
        }
        for addition in due.iter().filter(|addition| !addition.overwrite) {
            headers.add(addition.name.clone(), addition.value.clone());
        }
    }

    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

impl Addition {
    /// Nothing where nothing is to be added.
    fn new(at: &FieldPath<'_>, option: &HeaderValueOption) -> Result<Option<Self>, InvalidField> {
        #[expect(deprecated, reason = "older versions of Istio send it, and Envoy takes it")]
        let HeaderValueOption { header, append, append_action, keep_empty_value } = option;
        let Some(header) = header else { return Err(at.field("header").wrong("there is none")) };
        let at_header = at.field("header");
        let raw_value = &header.raw_value;
        refuse_set!(at_header, "use value": raw_value;);
        let name = changeable(&at_header.field("key"), &header.key)?;
        let action = match (append.as_ref(), HeaderAppendAction::try_from(*append_action)) {
            (None, Ok(action)) => action,
            (Some(append), Ok(HeaderAppendAction::AppendIfExistsOrAdd)) if append.value => {
                HeaderAppendAction::AppendIfExistsOrAdd
            }
            (Some(_), Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => {
                HeaderAppendAction::OverwriteIfExistsOrAdd
            }
            (Some(_), Ok(_)) => return Err(at.field("append").wrong("append_action says another thing")),
            (_, Err(_)) => return Err(at.field("append_action").wrong("there is no such action")),
        };
        let (overwrite, where_there) = match action {
            HeaderAppendAction::AppendIfExistsOrAdd => (false, None),
            HeaderAppendAction::AddIfAbsent => (false, Some(false)),
            HeaderAppendAction::OverwriteIfExistsOrAdd => (true, None),
            HeaderAppendAction::OverwriteIfExists => (true, Some(true)),
        };
        let value = plain(&at_header.field("value"), &header.value)?;
        if value.is_empty() && !keep_empty_value {
            return Ok(None);
        }
        let value = HeaderValue::try_from(value)
            .map_err(|_| at_header.field("value").wrong("a header can't have this value"))?;
        Ok(Some(Self { name, value, overwrite, where_there }))
    }
}

/// A text in which Envoy would fill in what it knows of the request: here it may hold none of that, only `%%` for `%`.
pub(crate) fn plain(at: &FieldPath<'_>, text: &str) -> Result<String, InvalidField> {
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split("%%");
    while let Some(part) = parts.next() {
        if part.contains('%') {
            return Err(at.wrong("nothing is filled in; write %% for %"));
        }
        plain.push_str(part);
        if parts.clone().next().is_some() {
            plain.push('%');
        }
    }
    Ok(plain)
}

fn changeable(at: &FieldPath<'_>, name: &str) -> Result<HeaderName, InvalidField> {
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err(at.wrong(format!("{name:?} is not the name of a header that can be changed")));
    };
    if parsed == header::HOST {
        return Err(at.wrong("use a rewrite of the host"));
    }
    if FRAMING.contains(&parsed) {
        return Err(at.wrong(format!("{parsed} is about the connection or the length of the body")));
    }
    Ok(parsed)
}

/// Changes of all levels, in the order in which they are made, and what this request gets besides.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits<'t> {
    levels: [Option<&'t HeaderEdit>; 4],
    /// Headers that are set in the end.
    set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are added in the end.
    added: Vec<(HeaderName, HeaderValue)>,
    /// Header that becomes one with those of its name.
    joined: Option<(HeaderName, HeaderValue)>,
}

impl<'t> HeaderEdits<'t> {
    /// Of the backend, the route, the virtual host and the whole configuration. `specific_last`: so that the route has the
    /// last word; as in Envoy, a backend never has.
    pub(crate) fn new(levels: [Option<&'t HeaderEdit>; 4], specific_last: bool) -> Self {
        let [backend, route, host, all] = levels;
        let levels = if specific_last { [backend, all, host, route] } else { levels };
        Self { levels, ..Self::default() }
    }

    /// Sets headers after all other changes.
    pub(crate) fn set(&mut self, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) {
        self.set.extend(headers);
    }

    /// Adds headers after all other changes.
    pub(crate) fn add(&mut self, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) {
        self.added.extend(headers);
    }

    /// Appends a value to those of a header, after a comma, after all other changes.
    pub(crate) fn join(&mut self, header: Option<(HeaderName, HeaderValue)>) {
        self.joined = header;
    }

    /// Makes the changes.
    ///
    /// # Panics
    ///
    /// Where a map would get more than 24,000 headers.
    pub fn apply(&self, headers: &mut impl HeaderChanges) {
        for edit in self.levels.iter().flatten() {
            edit.apply(headers);
        }
        for (name, value) in &self.set {
            headers.set(name.clone(), value.clone());
        }
        for (name, value) in &self.added {
            headers.add(name.clone(), value.clone());
        }
        if let Some((name, value)) = &self.joined {
            let mut all: Vec<&[u8]> = headers.values(name).collect();
            all.push(value.as_bytes());
            let all = HeaderValue::from_bytes(&all.join(&b',')).unwrap_or_else(|_| value.clone());
            headers.set(name.clone(), all);
        }
    }

    /// Value that a header has after the changes.
    pub(crate) fn after<H: HeaderLookup>(&self, headers: &H, name: &HeaderName) -> Option<HeaderValue> {
        // Changes of one header depend on no other one.
        let mut edited = HeaderMap::new();
        for value in headers.values(name) {
            edited.append(name.clone(), HeaderValue::from_bytes(value).ok()?);
        }
        self.apply(&mut edited);
        edited.remove(name)
    }

    /// True where nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
            && self.added.is_empty()
            && self.joined.is_none()
            && self.levels.iter().flatten().all(|edit| edit.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::envoy::envoy::config::core::v3::HeaderValue as Proto;

    use super::*;

    fn option(key: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(Proto { key: key.into(), value: value.into(), ..Default::default() }),
            append_action: action.into(),
            ..Default::default()
        }
    }

    fn edit(add: &[HeaderValueOption], remove: &[&str]) -> Result<HeaderEdit, InvalidField> {
        let remove: Vec<String> = remove.iter().map(|&name| name.to_owned()).collect();
        HeaderEdit::new(&FieldPath::ROOT, ("add", add), ("remove", &remove))
    }

    #[test]
    fn each_action_is_done() {
        let add = [
            option("x-a", "2", HeaderAppendAction::AppendIfExistsOrAdd),
            option("x-b", "2", HeaderAppendAction::AddIfAbsent),
            option("x-c", "2", HeaderAppendAction::OverwriteIfExists),
            option("x-d", "2", HeaderAppendAction::OverwriteIfExistsOrAdd),
            option("x-e", "100%%", HeaderAppendAction::AddIfAbsent),
            option("x-f", "2", HeaderAppendAction::OverwriteIfExists),
            option("x-g", "", HeaderAppendAction::OverwriteIfExistsOrAdd),
        ];
        let edit = edit(&add, &["X-H"]).unwrap();
        let mut headers: HeaderMap = ["x-a", "x-b", "x-c", "x-d", "x-g", "x-h"]
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .into_iter()
            .collect();
        HeaderEdits::new([Some(&edit), None, None, None], false).apply(&mut headers);
        let all: Vec<String> = headers.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
        let mut sorted = all.clone();
        sorted.sort();
        assert_eq!(sorted, ["x-a=1", "x-a=2", "x-b=1", "x-c=2", "x-d=2", "x-e=100%", "x-g=1"]);
    }

    #[test]
    fn the_last_word_is_had_by_whom_the_configuration_says() {
        let edit =
            |value| edit(&[option("x", value, HeaderAppendAction::OverwriteIfExistsOrAdd)], &[]).unwrap();
        let (specific, general) = (edit("specific"), edit("general"));
        for (specific_last, expected) in [(false, "general"), (true, "specific")] {
            let mut headers = HeaderMap::new();
            HeaderEdits::new([None, Some(&specific), None, Some(&general)], specific_last)
                .apply(&mut headers);
            assert_eq!(headers["x"], expected);
        }
    }

    #[test]
    fn what_must_not_be_changed_is_refused_by_name() {
        for name in ["host", ":path", "content-length", "Transfer-Encoding", "", "a b"] {
            let error = edit(&[], &[name]).unwrap_err();
            assert_eq!(error.field, "remove[0]", "{name}");
            let add = option(name, "1", HeaderAppendAction::AddIfAbsent);
            assert_eq!(edit(&[add], &[]).unwrap_err().field, "add[0].header.key", "{name}");
        }
        let add = option("x", "%REQ(:path)%", HeaderAppendAction::AddIfAbsent);
        assert_eq!(edit(&[add], &[]).unwrap_err().field, "add[0].header.value");
    }
}
