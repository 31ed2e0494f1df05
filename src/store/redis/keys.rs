//! The names of keys: all of them start with the prefix of the configuration.

use fred::types::Key;

/// The names of keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Box<str>,
    records: Box<str>,
    revocations: Box<str>,
}

impl Keys {
    /// Names that start with `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
            records: format!("{prefix}token:").into(),
            revocations: format!("{prefix}revoked:").into(),
        }
    }

    /// The start of every key.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The start of the keys of records.
    pub(super) fn records(&self) -> &str {
        &self.records
    }

    /// The start of the keys of revocations.
    pub(super) fn revocations(&self) -> &str {
        &self.revocations
    }

    /// The key of the record of `id`.
    pub(super) fn record(&self, id: &str) -> Key {
        [self.records(), id].concat().into()
    }

    /// The key that revokes `id`.
    pub(super) fn revocation(&self, id: &str) -> Key {
        [self.revocations(), id].concat().into()
    }

    /// The sorted set of gateways by when they were last seen; in a cluster each node has one.
    pub(super) fn gateways(&self) -> String {
        format!("{}tollgate:gateways", self.prefix)
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self::new("")
    }
}
