//! Opens the configured store: the only place that chooses between stores.
//!
//! Callers give values and get traits. This file knows no configuration.

use std::sync::Arc;
use std::time::Duration;

use super::memory::{MemoryQuota, MemoryRecords, SoleGateway};
use super::redis::{self, RedisStore, RedisUrl, RedisUrlError};
use super::{Membership, QuotaStore, RecordStore};
use crate::base::clock::Clock;
use crate::base::secret::Secret;

/// Subjects that one process counts, at most: in the embedded store, and in the ledger over any store.
pub const MAX_SUBJECTS: usize = 1_000_000;

/// Records and revocations that the embedded store keeps, at most.
const MAX_RECORDS: usize = 1_000_000;

/// How the URL of a store is written, for messages about a whole URL.
pub const URL_FORMS: &str = redis::URL_FORMS;

/// A store outside of this process.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where the store is.
    pub url: StoreUrl,
    /// The deadline of one call.
    pub timeout: Duration,
    /// What the names of all keys start with.
    pub prefix: String,
}

/// The URL of a store, read and found right. `Debug` shows no part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl(RedisUrl);

impl StoreUrl {
    /// Reads `text`, which is secret because it may hold a password. Touches no network.
    ///
    /// # Errors
    /// [`StoreUrlError`] says what to write.
    pub fn parse(text: &Secret) -> Result<Self, StoreUrlError> {
        Ok(Self(RedisUrl::parse(text)?))
    }

    /// Where the store is: the URL without user, password and parameters.
    pub fn shown(&self) -> String {
        self.0.shown()
    }
}

/// Told of every operation of a store outside of this process: its name, its outcome (`ok` or
/// [`StoreError::outcome`](super::StoreError::outcome)) and how long it took.
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
pub fn open(remote: Option<&Remote>, clock: Arc<dyn Clock>, on_operation: OnOperation) -> Stores {
    let Some(remote) = remote else {
        return Stores {
            records: Arc::new(MemoryRecords::new(Arc::clone(&clock), MAX_RECORDS)),
            quota: Arc::new(MemoryQuota::new(clock, MAX_SUBJECTS)),
            membership: Arc::new(SoleGateway::default()),
            is_shared: false,
        };
    };
    let store = Arc::new(RedisStore::with_prefix(
        &remote.url.0,
        remote.timeout,
        &remote.prefix,
        on_operation,
    ));
    Stores {
        records: Arc::clone(&store) as _,
        quota: Arc::clone(&store) as _,
        membership: store,
        is_shared: true,
    }
}

/// Whether all keys of a store may start with `prefix`: what Redis gives a meaning in a pattern, and the braces around
/// the part of a key that chooses a cluster's node, may not be in it.
pub fn is_prefix(prefix: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_-./".contains(&byte);
    prefix.len() <= 64 && prefix.bytes().all(allowed)
}
