//! The changes that a route makes to header fields. The proxy applies them.

use http::{HeaderName, HeaderValue};

/// Changes to header fields: first `remove`, then `set`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Fields that replace those of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are removed.
    pub remove: Vec<HeaderName>,
}
