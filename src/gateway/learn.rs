//! Prepares a new policy for its first request: looks up the upstreams' names and fetches the issuers' keys.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::timeout;

use crate::policy::Policy;
use crate::upstream::resolve::look_up;

/// The longest time that a new policy waits for names and keys. Clients can connect already, and wait too.
const LEARN: Duration = Duration::from_millis(800);

/// Looks up names and keys. The background tries again later where this fails.
pub async fn learn(policy: &Policy) {
    let keys = join_all(policy.auth.jwt.key_sets().map(|set| set.learn()));
    let names = join_all(look_up(policy.upstreams()));
    // A name server or an issuer that does not answer must delay neither the start nor a reload for long.
    let _ = timeout(LEARN, join(names, keys)).await;
}
