//! Slows clients that guess credentials: an address that sends too many invalid credentials is told to wait.
//!
//! Beyond the allowed number no new credential of the address is checked, so that guesses cost this process and the
//! store nothing. A credential that is known to be valid passes however many invalid ones come from its address.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::base::net::Network;

/// Most client networks that are counted. Beyond that, some are forgotten, and their credentials are checked.
const NETWORKS: usize = 32_768;

/// Counts invalid credentials by client network. Counts are exact: the failures of others never make a client wait.
pub struct FailureGuard {
    allowed: FailureRate,
    tallies: Cache<Network, Arc<Mutex<Tally>>>,
}

/// The failures of one network since the beginning of its window.
struct Tally {
    since: Instant,
    failures: u32,
}

/// How many invalid credentials of one client address are answered with 401 in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// The number of invalid credentials.
    pub failures: u32,
    /// The window: a second or more.
    pub window: Duration,
}

impl FailureGuard {
    /// A guard that has counted nothing yet.
    pub fn new(allowed: FailureRate) -> Self {
        Self { allowed, tallies: Cache::new(NETWORKS) }
    }

    /// The rate that the guard allows.
    pub fn allowed(&self) -> FailureRate {
        self.allowed
    }

    /// Notes an invalid credential from `client`. If there were too many: how long the client should wait.
    pub fn failed(&self, client: IpAddr) -> Option<Duration> {
        let now = Instant::now();
        let new = || Ok::<_, ()>(Arc::new(Mutex::new(Tally { since: now, failures: 0 })));
        let tally = self.tallies.get_or_insert_with(&Network::of(client), new).ok()?;
        let mut tally = tally.lock();
        if now.saturating_duration_since(tally.since) >= self.allowed.window {
            *tally = Tally { since: now, failures: 0 };
        }
        tally.failures = tally.failures.saturating_add(1);
        self.wait(&tally, now)
    }

    /// If too many invalid credentials came from `client` already: how long the client should wait.
    fn is_over(&self, client: IpAddr) -> Option<Duration> {
        let tally = self.tallies.get(&Network::of(client))?;
        let tally = tally.lock();
        self.wait(&tally, Instant::now())
    }

    fn wait(&self, tally: &Tally, now: Instant) -> Option<Duration> {
        let left = self.allowed.window.checked_sub(now.saturating_duration_since(tally.since))?;
        (tally.failures > self.allowed.failures).then_some(left)
    }
}

/// The client of a request before the guard.
#[derive(Clone, Copy, Debug)]
pub struct GuardedClient<'a> {
    /// The guard; `None` where any number of invalid credentials is allowed.
    pub guard: Option<&'a FailureGuard>,
    /// The client's address, as far as it can be believed.
    pub client: Option<IpAddr>,
}

/// The client has sent too many invalid credentials, so that this one is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not checked: too many invalid tokens came from this address")]
pub struct TooManyFailures {
    /// How long the client should wait.
    pub wait: Duration,
}

impl GuardedClient<'_> {
    /// A client that may send any number of invalid credentials.
    pub const ANY: GuardedClient<'static> = GuardedClient { guard: None, client: None };

    /// Whether a credential of the client that is not known yet may be checked.
    ///
    /// # Errors
    /// [`TooManyFailures`].
    pub fn may_try(&self) -> Result<(), TooManyFailures> {
        let (Some(guard), Some(client)) = (self.guard, self.client) else { return Ok(()) };
        guard.is_over(client).map_or(Ok(()), |wait| Err(TooManyFailures { wait }))
    }
}

impl std::fmt::Debug for FailureGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FailureGuard").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_failures_of_one_network_are_told_to_wait() {
        let window = Duration::from_secs(3_600);
        let guard = FailureGuard::new(FailureRate { failures: 3, window });
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for client in ["192.0.2.1", "2001:db8::1"] {
            let guarded = GuardedClient { guard: Some(&guard), client: Some(ip(client)) };
            for _ in 0..3 {
                assert_eq!(guard.failed(ip(client)), None, "{client}");
                assert_eq!(guarded.may_try(), Ok(()), "{client}");
            }
            let wait = guard.failed(ip(client)).unwrap();
            assert!((3_590..=3_600).contains(&wait.as_secs()), "{wait:?}");
            let refused = guarded.may_try().unwrap_err();
            assert!((3_590..=3_600).contains(&refused.wait.as_secs()), "{refused:?}");
        }
        assert!(guard.failed(ip("2001:db8::ffff")).is_some(), "the same /64");
        assert_eq!(guard.failed(ip("2001:db8:0:1::1")), None);
        assert!(guard.failed(ip("::ffff:192.0.2.1")).is_some(), "the same address, mapped");
        assert_eq!(guard.failed(ip("192.0.2.2")), None);
    }

    #[test]
    fn the_failures_of_other_networks_make_nobody_wait() {
        let window = Duration::from_secs(3_600);
        let guard = FailureGuard::new(FailureRate { failures: 3, window });
        let other = |nth: u32| IpAddr::from(nth.to_be_bytes());
        for nth in 0..200_000 {
            assert_eq!(guard.failed(other(nth)), None);
        }
        assert!(guard.tallies.len() <= NETWORKS);
        let client = Some("192.0.2.1".parse().unwrap());
        assert_eq!(GuardedClient { guard: Some(&guard), client }.may_try(), Ok(()));
    }
}
