//! What a new policy needs before the first request meets it: the addresses of names, and issuers' keys.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::timeout;

use crate::policy::Policy;
use crate::upstream::resolve::resolve;

/// How long a new policy waits for issuers' keys.
const KEYS: Duration = Duration::from_secs(2);

/// Learns it. What cannot be learnt in time is left to the background.
pub async fn learn(policy: &Policy) {
    let keys = join_all(policy.auth.jwt.key_sets().map(|set| set.learn()));
    // An issuer that is away holds up neither the start nor a reload.
    let _ = join(resolve(policy.upstreams()), timeout(KEYS, keys)).await;
}
