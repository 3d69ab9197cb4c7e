//! What users are told about their objects.
//!
//! A report is a fact that holds now; it goes away when it no longer holds. Reports are compared by
//! content, so the set of them needs no ids.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::{ObjectKey, ObjectName, Source};

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

/// Why something is said of an object, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object, or a part of it, can't be acted on.
    Invalid,
    /// Another object has what this one wants.
    Conflicted,
    /// What the object is for isn't there.
    TargetNotFound,
    /// What the object leads to isn't there.
    BackendNotFound,
    /// The object leads to another namespace, which doesn't allow it.
    RefNotPermitted,
    /// A field has no effect.
    NotSupported,
    /// Nothing is wrong.
    Note,
}

impl Reason {
    /// As it stands in a condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::Conflicted => "Conflicted",
            Self::TargetNotFound => "TargetNotFound",
            Self::BackendNotFound => "BackendNotFound",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::NotSupported => "NotSupported",
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
    /// How serious it is.
    pub severity: Severity,
    /// Why, for machines.
    pub reason: Reason,
    /// The Service at which it is so; `None` where it is so for the object as a whole.
    pub at: Option<ObjectName>,
    /// What is the matter and what to do, for a person.
    pub message: String,
}

impl Report {
    /// A report about an object as a whole, with the most common reason for its severity.
    pub const fn new(object: ObjectRef, field: Option<String>, severity: Severity, message: String) -> Self {
        let reason = match severity {
            Severity::Refused => Reason::Invalid,
            Severity::NotSupported => Reason::NotSupported,
            Severity::Note => Reason::Note,
        };
        Self { object, field, severity, reason, at: None, message }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) if !self.message.contains(field.as_str()) => {
                write!(f, "{}: {field}: {}", self.object, self.message)
            }
            _ => write!(f, "{}: {}", self.object, self.message),
        }
    }
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

    /// The field is ignored; `consequence` says what that means where it isn't obvious.
    pub(crate) fn unsupported(&mut self, field: impl Into<String>, consequence: &str) {
        let field = field.into();
        let message = if consequence.is_empty() {
            format!("not supported: field {field}")
        } else {
            format!("not supported: field {field}; {consequence}")
        };
        self.push(Severity::NotSupported, field, message);
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

    /// Whether something was refused.
    pub(crate) fn refused(&self) -> bool {
        self.refused_since(0)
    }

    /// Whether something was refused after the first `count` reports.
    pub(crate) fn refused_since(&self, count: usize) -> bool {
        self.reports.iter().skip(count).any(|r| r.severity == Severity::Refused)
    }
}
