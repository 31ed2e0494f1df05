//! Tells when a token ends while a request of it is still served: a WebSocket, a long answer.
//!
//! Only requests that take long are watched. A watch looks at the token when the store says that the token's
//! record has changed, when the token expires, and now and then, because a reload may have changed the rules. It
//! must not know how a request is ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::auth::{AuthError, Authenticator, Principal};
use crate::base::clock::Clock;
use crate::policy::Policy;

/// How often a watched token is looked at although nothing was heard of it.
const LOOK: Duration = Duration::from_secs(1);

/// How a token has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEnd {
    /// Its time is over.
    Expired,
    /// Its record is gone, disabled or unreadable, or it is on the list of revoked tokens.
    Revoked,
}

/// Watches the tokens of long requests.
pub struct TokenWatch {
    authenticator: Arc<Authenticator>,
    clock: Arc<dyn Clock>,
    /// The watches, by the ids of records and revocations.
    waiting: Mutex<HashMap<Arc<str>, Waiting>>,
}

/// The watches of one id.
#[derive(Default)]
struct Waiting {
    watches: usize,
    changed: Arc<Notify>,
}

/// A watch that waits for changes of ids until this is dropped.
struct Watch<'a> {
    tokens: &'a TokenWatch,
    ids: Vec<Arc<str>>,
    changed: Vec<Arc<Notify>>,
}

impl TokenWatch {
    /// Looks at tokens with `authenticator`.
    pub fn new(authenticator: Arc<Authenticator>, clock: Arc<dyn Clock>) -> Self {
        Self { authenticator, clock, waiting: Mutex::default() }
    }

    /// Wakes the watches of `id`, whose record or revocation has changed.
    pub fn changed(&self, id: &str) {
        if let Some(waiting) = self.waiting.lock().get(id) {
            waiting.changed.notify_waiters();
        }
    }

    /// Wakes every watch, because a change may have been missed.
    pub fn doubt(&self) {
        for waiting in self.waiting.lock().values() {
            waiting.changed.notify_waiters();
        }
    }

    /// Waits until the token of `principal` does not hold any more under the `policy` of the moment.
    pub async fn end_of(&self, policy: &ArcSwap<Policy>, principal: Principal) -> TokenEnd {
        let watch = self.watch(principal.ids());
        loop {
            // Begins to listen before the look, so that no change is missed between look and wait.
            let changes = watch.changed.iter().map(|changed| Box::pin(changed.notified()));
            let mut changes: Vec<_> = changes.collect();
            changes.iter_mut().for_each(|change| {
                change.as_mut().enable();
            });
            let rules = policy.load_full();
            let held = self.authenticator.still_holds(&rules.auth, &principal, &*self.clock).await;
            let end = match held {
                Ok(end) => end,
                // Nothing is known, and the failure policy is for new requests.
                Err(AuthError::Store(_)) => None,
                Err(AuthError::Expired) => return TokenEnd::Expired,
                Err(_) => return TokenEnd::Revoked,
            };
            let pause = end.map_or(LOOK, |end| LOOK.min(end - self.clock.now()));
            let _ = timeout(pause, futures_util::future::select_all(changes)).await;
        }
    }

    fn watch(&self, ids: Vec<Arc<str>>) -> Watch<'_> {
        let mut waiting = self.waiting.lock();
        let changed = ids.iter().map(|id| {
            let entry = waiting.entry(Arc::clone(id)).or_default();
            entry.watches += 1;
            Arc::clone(&entry.changed)
        });
        let changed = changed.collect();
        Watch { tokens: self, ids, changed }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut waiting = self.tokens.waiting.lock();
        for id in &self.ids {
            if let Some(entry) = waiting.get_mut(id) {
                entry.watches -= 1;
                if entry.watches == 0 {
                    waiting.remove(id);
                }
            }
        }
    }
}
