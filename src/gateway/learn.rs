//! Prepares a new policy for its first request: looks up the upstreams' names and fetches the issuers' keys.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::timeout;

use crate::policy::Policy;
use crate::upstream::resolve::resolve;

/// The longest time that a new policy waits for issuers' keys.
const KEYS: Duration = Duration::from_secs(2);

/// Looks up names and keys. The background tries again later where this fails.
pub async fn learn(policy: &Policy) {
    let keys = join_all(policy.auth.jwt.key_sets().map(|set| set.learn()));
    // An issuer that does not answer must delay neither the start nor a reload for long.
    let _ = join(resolve(policy.upstreams()), timeout(KEYS, keys)).await;
}
