//! Looks up the addresses of names, in the background: no request waits for DNS.
//!
//! All names are looked up at the same time. A name whose look-up has no answer yet is not looked up again, so
//! that a silent name server costs one look-up for each name, and an answer counts however late it comes.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::pool::Upstream;

/// After this time without an answer, a look-up is said to have failed.
const LOOKUP: Duration = Duration::from_secs(3);

/// The longest pause after a look-up that failed.
const LONGEST: Duration = Duration::from_secs(30);

/// When an endpoint's name is looked up.
#[derive(Debug, Default)]
pub struct Schedule {
    /// When the last look-up has ended.
    ended: Option<Instant>,
    /// Look-ups that have failed since the last that has not.
    failures: u32,
    is_running: bool,
}

impl Schedule {
    /// Whether a look-up must start now. It counts as running then. A name that has an address is looked up again after
    /// `every`.
    pub fn start(&mut self, every: Duration, now: Instant) -> bool {
        let starts = self.wait(every, now) == Some(Duration::ZERO);
        self.is_running |= starts;
        starts
    }

    /// The time until the next look-up may start; `None` while one is running, which may find an address at any moment.
    pub fn wait(&self, every: Duration, now: Instant) -> Option<Duration> {
        let due = self.ended.map_or(now, |ended| ended + pause(self.failures, every));
        (!self.is_running).then(|| due.saturating_duration_since(now))
    }

    /// A look-up has ended, and has `found` an address or not.
    fn end(&mut self, found: bool, now: Instant) {
        self.failures = if found { 0 } else { self.failures.saturating_add(1) };
        self.ended = Some(now);
    }
}

/// The time until the next look-up: a second after the first failure, twice as long after each further one, and never
/// longer than after a look-up that succeeds.
fn pause(failures: u32, every: Duration) -> Duration {
    match failures {
        0 => every,
        failures => Duration::from_secs(1 << (failures - 1).min(5)).min(LONGEST).min(every),
    }
}

/// Starts the look-ups that are due among the endpoints of `upstreams`. An endpoint whose look-up fails keeps
/// its addresses.
#[expect(
    clippy::disallowed_methods,
    reason = "a look-up ends by itself, and the start waits for it"
)]
pub fn look_up<'a>(upstreams: impl IntoIterator<Item = &'a Arc<Upstream>>) -> Vec<JoinHandle<()>> {
    let now = Instant::now();
    let mut started = Vec::new();
    for upstream in upstreams {
        let every = upstream.rules().resolve_every;
        for endpoint in upstream.endpoints() {
            if endpoint.literal().is_none() && endpoint.schedule.lock().start(every, now) {
                started.push(tokio::spawn(look_up_one(Running(Arc::clone(endpoint)))));
            }
        }
    }
    started
}

/// A look-up that is running until this is dropped, also when its runtime ends first.
struct Running(Arc<Endpoint>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.schedule.lock().is_running = false;
    }
}

async fn look_up_one(running: Running) {
    let endpoint = &running.0;
    let fail = |problem: &str| {
        warn!("{endpoint} cannot be resolved: {problem}");
    };
    let mut answer = pin!(tokio::net::lookup_host(&endpoint.authority));
    let answer = match timeout(LOOKUP, &mut answer).await {
        Ok(answer) => answer,
        Err(_late) => {
            fail(&format!("no answer within {LOOKUP:?}"));
            answer.await
        }
    };
    let found = match answer {
        Ok(addresses) => {
            let mut addresses: Vec<SocketAddr> = addresses.collect();
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() {
                fail("it has no address");
            } else {
                if endpoint.set_addresses(&addresses) {
                    info!("{endpoint} resolved to {addresses:?}");
                }
            }
            !addresses.is_empty()
        }
        Err(error) => {
            fail(&error.to_string());
            false
        }
    };
    endpoint.schedule.lock().end(found, Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_once_at_a_time_and_ever_more_rarely_while_it_fails() {
        const EVERY: Duration = Duration::from_secs(60);
        let (mut now, mut schedule) = (Instant::now(), Schedule::default());
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(schedule.start(EVERY, now));
            assert!(!schedule.start(EVERY, now + Duration::from_secs(3_600)), "it runs already");
            assert_eq!(schedule.wait(EVERY, now), None);
            schedule.end(false, now);
            schedule.is_running = false;
            let pause = Duration::from_secs(seconds);
            assert_eq!(schedule.wait(EVERY, now + pause / 4), Some(pause * 3 / 4));
            assert_eq!(schedule.wait(EVERY, now + 2 * pause), Some(Duration::ZERO));
            assert!(!schedule.start(EVERY, now + pause - Duration::from_millis(1)), "{seconds}");
            now += pause;
        }
        assert!(schedule.start(EVERY, now));
        schedule.end(true, now);
        schedule.is_running = false;
        assert!(!schedule.start(EVERY, now + EVERY - Duration::from_millis(1)));
        // A reload may have made the pause shorter.
        assert!(schedule.start(EVERY / 2, now + EVERY / 2));
    }
}
