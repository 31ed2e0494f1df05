//! What the keys of tokens are called; those of counters are the business of `quota`.

use fred::types::Key;

/// What the keys of records start with.
pub(super) const RECORD_PREFIX: &str = "token:";

/// What the keys of revocations start with.
pub(super) const REVOKED_PREFIX: &str = "revoked:";

/// The key of the record of `id`.
pub(super) fn record_key(id: &str) -> Key {
    format!("{RECORD_PREFIX}{id}").into()
}

/// The key that revokes `id`.
pub(super) fn revocation_key(id: &str) -> Key {
    format!("{REVOKED_PREFIX}{id}").into()
}
