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

/// How often a name with an address is looked up again.
const REFRESH: Duration = Duration::from_secs(30);

/// When an endpoint's name is looked up.
#[derive(Debug)]
pub struct Schedule {
    due: Instant,
    /// Look-ups that have failed since the last that has not.
    failures: u32,
    is_running: bool,
}

impl Schedule {
    /// A name that was never looked up.
    pub fn new() -> Self {
        Self { due: Instant::now(), failures: 0, is_running: false }
    }

    /// Whether a look-up must start now. It counts as running then.
    pub fn start(&mut self, now: Instant) -> bool {
        let starts = !self.is_running && self.due <= now;
        self.is_running |= starts;
        starts
    }

    /// A look-up has ended, and has `found` an address or not.
    fn end(&mut self, found: bool, now: Instant) {
        self.failures = if found { 0 } else { self.failures.saturating_add(1) };
        self.due = now + pause(self.failures);
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self::new()
    }
}

/// The time until the next look-up: a second after the first failure, twice as long after each further one.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => REFRESH,
        failures => Duration::from_secs(1 << (failures - 1).min(5)).min(REFRESH),
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
    for endpoint in upstreams.into_iter().flat_map(|upstream| upstream.endpoints()) {
        if endpoint.literal().is_none() && endpoint.schedule.lock().start(now) {
            started.push(tokio::spawn(look_up_one(Running(Arc::clone(endpoint)))));
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
                if !endpoint.is_resolved() {
                    info!("{endpoint} resolved to {addresses:?}");
                }
                endpoint.set_addresses(&addresses);
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
        let start = Instant::now();
        let mut schedule = Schedule { due: start, failures: 0, is_running: false };
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(schedule.start(now));
            assert!(!schedule.start(now + Duration::from_secs(3_600)), "it runs already");
            schedule.end(false, now);
            schedule.is_running = false;
            let pause = Duration::from_secs(seconds);
            assert!(!schedule.start(now + pause - Duration::from_millis(1)), "{seconds}");
            now += pause;
        }
        assert!(schedule.start(now));
        schedule.end(true, now);
        schedule.is_running = false;
        assert!(!schedule.start(now + REFRESH - Duration::from_millis(1)));
        assert!(schedule.start(now + REFRESH));
    }
}
