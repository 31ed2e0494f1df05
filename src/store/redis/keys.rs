//! The names of the keys of tokens. The file `quota` names the keys of counters.

use fred::types::Key;

/// The start of the keys of records.
pub(super) const RECORD_PREFIX: &str = "token:";

/// The start of the keys of revocations.
pub(super) const REVOKED_PREFIX: &str = "revoked:";

/// The key of the record of `id`.
pub(super) fn record_key(id: &str) -> Key {
    format!("{RECORD_PREFIX}{id}").into()
}

/// The key that revokes `id`.
pub(super) fn revocation_key(id: &str) -> Key {
    format!("{REVOKED_PREFIX}{id}").into()
}
