//! A token whose signature is right: its claims and, behind them, its text, in one piece of memory.
//!
//! Every request reads both. With many tokens neither is in the processor's cache, and one piece costs one fetch.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use triomphe::ThinArc;

use super::claims::VerifiedClaims;

/// A verified token. Clones share it; tokens with the same text are equal; the text is never printed.
#[derive(Clone)]
pub struct VerifiedToken(ThinArc<VerifiedClaims, u8>);

impl VerifiedToken {
    /// The token `text` with its `claims`.
    pub fn new(claims: VerifiedClaims, text: &str) -> Self {
        Self(ThinArc::from_header_and_slice(claims, text.as_bytes()))
    }

    /// The token as it was sent.
    pub fn text(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Deref for VerifiedToken {
    type Target = VerifiedClaims;

    fn deref(&self) -> &VerifiedClaims {
        &self.0.header.header
    }
}

impl Borrow<[u8]> for VerifiedToken {
    fn borrow(&self) -> &[u8] {
        self.text()
    }
}

impl Hash for VerifiedToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl PartialEq for VerifiedToken {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for VerifiedToken {}

impl fmt::Debug for VerifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
