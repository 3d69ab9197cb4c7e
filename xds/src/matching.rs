//! How a listener tells callers apart: extensions of slotmesh's own in the matcher of filter chains, for which xDS has a
//! form (`Listener.filter_chain_matcher`), but no input that says who connects.
//!
//! ```text
//!  matcher_list: [ { single_predicate: { input: CallerClass, custom_match: OneOfClasses }, action: chain } … ]
//!  on_no_match: the chain for everybody
//! ```

use prost::{Message, Name};

/// The input: the class of whoever connects. `slotmesh.v1.CallerClass`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CallerClass {}

impl CallerClass {
    /// The name of the extension.
    pub const EXTENSION: &str = "slotmesh.dev/caller-class";
}

/// The match: it is one of these classes, or one of theirs. A class is called `NAMESPACE`, or `NAMESPACE#HASH` where
/// its callers have labels that some rule asks for; of `NAMESPACE` are all of that namespace for whom nothing else
/// stands in the same matcher. `slotmesh.v1.OneOfClasses`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OneOfClasses {
    /// The classes.
    #[prost(string, repeated, tag = "1")]
    pub classes: Vec<String>,
}

impl OneOfClasses {
    /// The name of the extension.
    pub const EXTENSION: &str = "slotmesh.dev/one-of-classes";
}

impl Name for CallerClass {
    const NAME: &'static str = "CallerClass";
    const PACKAGE: &'static str = "slotmesh.v1";

    fn type_url() -> String {
        Self::TYPE_URL.to_owned()
    }
}

impl Name for OneOfClasses {
    const NAME: &'static str = "OneOfClasses";
    const PACKAGE: &'static str = "slotmesh.v1";

    fn type_url() -> String {
        Self::TYPE_URL.to_owned()
    }
}

impl CallerClass {
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.CallerClass";
}

impl OneOfClasses {
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.OneOfClasses";
}
