//! Reports to users about their objects.
//!
//! A report is a fact that holds now; it goes away when it no longer holds. Reports are compared by
//! content, so the set of them needs no ids.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::{Kind, ObjectKey, ObjectName, ServiceId, Source};

/// How serious a [`Report`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something the user asked for is not in force.
    Refused,
    /// A field is ignored because slotmesh doesn't support it (yet); the rest of the object works.
    NotSupported,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// As JSON and metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NotSupported => "not_supported",
            Self::Note => "note",
        }
    }

    /// All, the most serious first.
    pub const ALL: [Self; 3] = [Self::Refused, Self::NotSupported, Self::Note];
}

/// Why something is said of an object, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object, or a part of it, can't be acted on.
    Invalid,
    /// Another object has what this one wants.
    Conflicted,
    /// The target of the object isn't there.
    TargetNotFound,
    /// The backend that the object leads to isn't there.
    BackendNotFound,
    /// The object leads to another namespace, which doesn't allow it.
    RefNotPermitted,
    /// The object leads to something of a kind that can't have connections.
    InvalidKind,
    /// The object leads to what can't be.
    InvalidBackend,
    /// A field has no effect.
    NotSupported,
    /// A value asks for what can't be done, so none of it, or of one rule, is.
    UnsupportedValue,
    /// The object, or those of its kind and namespace together, makes more than it may.
    OverBudget,
    /// There is nothing to connect to. The object acts all the same.
    NoEndpoints,
    /// The object is none of slotmesh's.
    Foreign,
    /// Nothing is wrong.
    Note,
}

impl Reason {
    /// Tells whether it is about what the object leads to: the object acts all the same.
    pub const fn is_of_a_backend(self) -> bool {
        matches!(
            self,
            Self::BackendNotFound | Self::RefNotPermitted | Self::InvalidKind | Self::InvalidBackend
        )
    }

    /// As it stands in a condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::Conflicted => "Conflicted",
            Self::TargetNotFound => "TargetNotFound",
            Self::BackendNotFound => "BackendNotFound",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::InvalidKind => "InvalidKind",
            Self::InvalidBackend => "InvalidBackend",
            Self::NotSupported => "NotSupported",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::OverBudget => "OverBudget",
            Self::NoEndpoints => "NoEndpoints",
            Self::Foreign => "Foreign",
            Self::Note => "Note",
        }
    }
}

/// The object that a [`Report`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The object's kind; also kinds that are not compiled, and `File` or `Directory`.
    pub kind: Cow<'static, str>,
    /// The namespace; empty where there is none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// Where it was read.
    pub source: Option<Source>,
}

impl ObjectRef {
    /// The reference to the object with this key.
    pub fn new(key: &ObjectKey, source: Option<Source>) -> Self {
        Self {
            kind: Cow::Borrowed(key.kind.as_str()),
            namespace: key.name.namespace.clone(),
            name: key.name.name.clone(),
            source,
        }
    }

    /// The key of the object; `None` where it is of no kind that is compiled.
    pub(crate) fn key(&self) -> Option<ObjectKey> {
        let kind = Kind::named(&self.kind)?;
        Some(ObjectKey { kind, name: ObjectName::new(self.namespace.clone(), self.name.clone()) })
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match (self.namespace.is_empty(), self.name.is_empty()) {
            (false, _) => write!(f, " {}/{}", self.namespace, self.name)?,
            (true, false) => write!(f, " {}", self.name)?,
            (true, true) => {}
        }
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

/// One thing that a user should know about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Report {
    /// The object.
    pub object: ObjectRef,
    /// The field that it is about, such as `spec.http[0].route[1].weight`.
    pub field: Option<String>,
    /// The line of the file that it is about, where whoever read the file knows it.
    pub line: Option<usize>,
    /// How serious it is.
    pub severity: Severity,
    /// Why, for machines.
    pub reason: Reason,
    /// The Service at which it is so; `None` where it is so for the object as a whole.
    pub at: Option<ServiceId>,
    /// The text for a person: what is the matter and what to do.
    pub message: String,
    /// The consequence, where it isn't part of the message: such as what happens to connections now.
    pub consequence: Option<String>,
}

impl Report {
    /// A report about an object as a whole, with the most common reason for its severity.
    pub const fn new(object: ObjectRef, field: Option<String>, severity: Severity, message: String) -> Self {
        let reason = match severity {
            Severity::Refused => Reason::Invalid,
            Severity::NotSupported => Reason::NotSupported,
            Severity::Note => Reason::Note,
        };
        Self { object, field, line: None, severity, reason, at: None, message, consequence: None }
    }

    /// With what it means.
    #[must_use]
    pub fn meaning(self, consequence: impl Into<String>) -> Self {
        Self { consequence: Some(consequence.into()), ..self }
    }

    /// All that it says, but for the object: the field, where the message doesn't name it, the line, what is the
    /// matter, and what that means.
    pub fn text(&self) -> String {
        let line = self.line.map_or(String::new(), |line| format!("line {line}: "));
        let mut text = match &self.field {
            Some(field) if !field.is_empty() && !self.message.contains(field.as_str()) => {
                format!("{field}: {line}{}", self.message)
            }
            _ => line + &self.message,
        };
        if let Some(consequence) = &self.consequence {
            text.push_str("; ");
            text.push_str(consequence);
        }
        if let Some(hint) = self.hint() {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }

    /// The likely cause, where that can be guessed.
    pub fn hint(&self) -> Option<&'static str> {
        let unresolved = matches!(self.reason, Reason::TargetNotFound | Reason::BackendNotFound);
        let in_default = self.object.source.as_ref().is_some_and(|source| source.in_default);
        (unresolved && in_default)
            .then_some("the object is in namespace default, because metadata.namespace isn't set")
    }
}

impl Report {
    /// Tells whether it keeps the object as a whole from acting.
    pub(crate) fn is_of_the_whole(&self) -> bool {
        self.severity == Severity::Refused && self.at.is_none() && !self.reason.is_of_a_backend()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text())
    }
}

/// The consequence for connections where a field of this name, of Istio's or Gateway API's, has no effect.
fn consequence_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "tls" => {
            "nothing encrypts connections or verifies who answers: they stay as the application makes them"
        }
        "warmupDurationSecs" | "warmup" => "a new endpoint gets its full share at once",
        "fault" => "no fault is injected",
        "timeout" | "timeouts" => "nothing ends a request that takes long",
        "retries" | "retry" => "no request is tried again",
        "mirror" | "mirrors" | "mirrorPercent" | "mirrorPercentage" => "nothing is mirrored",
        "headers" | "corsPolicy" | "rewrite" | "filters" => "requests and responses pass unchanged",
        "sessionPersistence" => "each connection chooses its endpoint anew",
        "http" => "requests aren't bounded, only connections",
        "proxyProtocol" => "no header tells who connects",
        "tunnel" => "connections are made directly",
        _ => return None,
    })
}

/// Collects the reports about one object while it is read.
#[derive(Debug)]
pub(crate) struct Findings {
    object: ObjectRef,
    pub(crate) reports: Vec<Report>,
}

impl Findings {
    pub(crate) const fn new(object: ObjectRef) -> Self {
        Self { object, reports: Vec::new() }
    }

    fn push(&mut self, severity: Severity, field: impl Into<String>, message: String) {
        let field = Some(field.into());
        self.reports.push(Report::new(self.object.clone(), field, severity, message));
    }

    /// Something the user asked for is not in force.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Refused, field, message.into());
    }

    /// As [`refuse`](Self::refuse), for another reason than that it can't be acted on.
    pub(crate) fn refuse_as(&mut self, reason: Reason, field: impl Into<String>, message: impl Into<String>) {
        let report = Report::new(self.object.clone(), Some(field.into()), Severity::Refused, message.into());
        self.reports.push(Report { reason, ..report });
    }

    /// As [`refuse_as`](Self::refuse_as), at one Service only: elsewhere the object acts.
    pub(crate) fn refuse_at(
        &mut self,
        at: &ServiceId,
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        let report = Report::new(self.object.clone(), Some(field.into()), Severity::Refused, message.into());
        self.reports.push(Report { reason, at: Some(at.clone()), ..report });
    }

    /// The field is ignored; `consequence` says what that means where its name doesn't.
    pub(crate) fn unsupported(&mut self, field: impl Into<String>, consequence: &str) {
        let field = field.into();
        let message = format!("not supported: field {field}");
        let name = field.rsplit('.').next().unwrap_or_default();
        let consequence = if consequence.is_empty() { consequence_of(name) } else { Some(consequence) };
        let consequence = consequence.map(str::to_owned);
        let report = Report::new(self.object.clone(), Some(field), Severity::NotSupported, message);
        self.reports.push(Report { consequence, ..report });
    }

    /// A part of a route can't act on requests because of this field, so none of the part does. `what` is empty where
    /// the field has no effect in any form.
    pub(crate) fn skipped(&mut self, field: String, what: &str, consequence: &str) {
        if what.is_empty() {
            return self.unsupported(field, consequence);
        }
        let message = format!("{field}: {what}");
        let report = Report::new(self.object.clone(), Some(field), Severity::NotSupported, message);
        self.reports.push(report.meaning(consequence));
    }

    /// Every field of this level that isn't supported.
    pub(crate) fn unsupported_rest(&mut self, at: &str, rest: &slotmesh_crds::Rest) {
        for name in rest.keys() {
            self.unsupported(format!("{at}.{name}"), "");
        }
    }

    /// Worth knowing.
    pub(crate) fn note(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Note, field, message.into());
    }

    /// Tells whether the object as a whole was refused.
    pub(crate) fn refused(&self) -> bool {
        self.refused_since(0)
    }

    /// Tells whether something refused the object as a whole after the first `count` reports.
    pub(crate) fn refused_since(&self, count: usize) -> bool {
        self.reports.iter().skip(count).any(Report::is_of_the_whole)
    }
}
