//! One condition, from the compiler to the status of an object; its times are added when it is written.

/// The subject of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object can be acted on. The message names by field what of it can't.
    Accepted,
    /// Some of the object's rules have no effect, the others act.
    PartiallyInvalid,
    /// All that the object leads to is there and allowed. Only for objects that lead somewhere.
    ResolvedRefs,
    /// Another object has what this one wants.
    Conflicted,
    /// Every node that it is for has what it compiled to. Whoever knows what agents have acknowledged says so.
    Programmed,
}

impl ConditionType {
    /// All types, in the order in which they stand in a status.
    pub const ALL: [Self; 5] =
        [Self::Accepted, Self::PartiallyInvalid, Self::ResolvedRefs, Self::Conflicted, Self::Programmed];

    /// The type as it stands in a status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::PartiallyInvalid => "PartiallyInvalid",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::Conflicted => "Conflicted",
            Self::Programmed => "Programmed",
        }
    }

    /// The status that is bad news.
    pub const fn bad(self) -> ConditionStatus {
        match self {
            Self::PartiallyInvalid | Self::Conflicted => ConditionStatus::True,
            Self::Accepted | Self::ResolvedRefs | Self::Programmed => ConditionStatus::False,
        }
    }
}

/// Tells whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It doesn't.
    False,
    /// Nobody can tell.
    Unknown,
}

impl ConditionStatus {
    /// The status as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its subject.
    pub ty: ConditionType,
    /// Tells whether it holds.
    pub status: ConditionStatus,
    /// Why, for machines, such as `Accepted`, `Invalid`, `Conflicted`, `BackendNotFound`.
    pub reason: &'static str,
    /// Why, for people: the fields and what to do.
    pub message: String,
}

impl Condition {
    /// A condition that holds or doesn't.
    pub const fn new(ty: ConditionType, holds: bool, reason: &'static str, message: String) -> Self {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        Self { ty, status, reason, message }
    }

    /// Tells whether it is known to hold.
    pub fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }
}
