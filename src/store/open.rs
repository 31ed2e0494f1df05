//! Opens the configured store: the only place that chooses between stores.
//!
//! Callers give values and get traits. This file knows no configuration.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::memory::{MemoryQuota, MemoryRecords, SoleGateway};
use super::redis::{self, RedisStore, RedisUrlError};
use super::{Membership, QuotaStore, RecordStore};
use crate::base::clock::Clock;
use crate::base::secret::Secret;

/// Subjects that the embedded store counts, at most.
const MAX_SUBJECTS: usize = 1_000_000;

/// Records and revocations that the embedded store keeps, at most.
const MAX_RECORDS: usize = 1_000_000;

/// How the URL of a store is written, for messages about a whole URL.
pub const URL_FORMS: &str = redis::URL_FORMS;

/// A store outside of this process.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where the store is.
    pub url: Secret,
    /// The deadline of one call.
    pub timeout: Duration,
    /// What the names of all keys start with.
    pub prefix: String,
}

/// Called after every operation of a store outside of this process, with its name, its outcome (`ok` or
/// [`StoreError::outcome`](super::StoreError::outcome)) and its duration.
///
/// The operations of requests are `record`, `revoked`, `take`, `adjust` and `heartbeat`. Tokens are managed with
/// `put`, `import`, `shorten`, `expiry`, `delete`, `revoke` and `list`.
pub type OnOperation = Arc<dyn Fn(&'static str, &'static str, Duration) + Send + Sync>;

/// A store, as each of its traits.
#[derive(Clone)]
pub struct Stores {
    /// Token records and revocations.
    pub records: Arc<dyn RecordStore>,
    /// Quota.
    pub quota: Arc<dyn QuotaStore>,
    /// Whether the store answers, and which gateways share it.
    pub membership: Arc<dyn Membership>,
    /// Whether other processes can write records to this store. If not, a gateway need not ask for records.
    pub is_shared: bool,
}

/// Why a URL names no store, and what to write. Never shows the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct StoreUrlError(#[from] RedisUrlError);

/// Opens the store that `remote` names; without it, the embedded store, which counts by `clock`. Nothing is
/// connected before [`Membership::start`].
///
/// # Errors
/// [`StoreUrlError`] says what a URL must look like.
pub fn open(
    remote: Option<&Remote>,
    clock: Arc<dyn Clock>,
    on_operation: OnOperation,
) -> Result<Stores, StoreUrlError> {
    let Some(remote) = remote else {
        return Ok(Stores {
            records: Arc::new(MemoryRecords::new(Arc::clone(&clock), MAX_RECORDS)),
            quota: Arc::new(MemoryQuota::new(clock, MAX_SUBJECTS)),
            membership: Arc::new(SoleGateway::default()),
            is_shared: false,
        });
    };
    let store = Arc::new(RedisStore::with_prefix(
        &remote.url,
        remote.timeout,
        &remote.prefix,
        on_operation,
    )?);
    Ok(Stores {
        records: Arc::clone(&store) as _,
        quota: Arc::clone(&store) as _,
        membership: store,
        is_shared: true,
    })
}

/// Whether `url` names a store. Touches neither the network nor certificates.
///
/// # Errors
/// [`StoreUrlError`] says what to write.
pub fn check_url(url: &str) -> Result<(), StoreUrlError> {
    Ok(redis::check_url(url)?)
}

/// Whether all keys of a store may start with `prefix`: what Redis gives a meaning in a pattern, and the braces around
/// the part of a key that chooses a cluster's node, may not be in it.
pub fn is_prefix(prefix: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_-./".contains(&byte);
    prefix.len() <= 64 && prefix.bytes().all(allowed)
}

/// The URL of a store without user, password and parameters.
pub fn shown_url(url: &Secret) -> String {
    let Ok(url) = Url::parse(url.expose()) else {
        return Secret::new("").to_string();
    };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!(
        "{}://{}{port}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        url.path().trim_end_matches('/')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_without_its_password() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://127.0.0.1:6379/3", "redis://127.0.0.1:6379/3"),
            (
                "rediss://user:hunter2@cache.example/0?password=hunter2#hunter2",
                "rediss://cache.example/0",
            ),
            ("redis://:hunter2@[::1]:6379", "redis://[::1]:6379"),
            ("redis://:p/hunter2@cache", "***"),
            ("hunter2", "***"),
        ] {
            assert_eq!(shown_url(&Secret::new(url)), shown, "{url}");
        }
    }
}
