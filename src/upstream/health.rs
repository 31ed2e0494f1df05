//! Whether an endpoint is healthy, by checks that the gateway makes itself. Several failed checks in a row make an endpoint
//! unhealthy, and several that passed make it healthy again. Until a check says otherwise, an endpoint is healthy.
//!
//! State and arithmetic, with time passed in. The checks themselves are made by `check`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::rules::HealthRules;

/// The health of one endpoint.
#[derive(Debug)]
pub struct Health {
    is_unhealthy: AtomicBool,
    checks: Mutex<Checks>,
}

#[derive(Debug)]
struct Checks {
    /// When the next check begins.
    due: Instant,
    is_running: bool,
    /// Checks in a row that passed, or that failed; the other number is zero.
    passed: u32,
    failed: u32,
}

/// A change that is worth a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The endpoint gets requests again.
    Healthy,
    /// The endpoint gets no requests from now on.
    Unhealthy,
}

impl Health {
    /// The health of an endpoint whose first check is due at `now`.
    pub fn new(now: Instant) -> Self {
        let checks = Checks { due: now, is_running: false, passed: 0, failed: 0 };
        Self { is_unhealthy: AtomicBool::new(false), checks: Mutex::new(checks) }
    }

    /// Whether the last checks have said that the endpoint fails.
    pub fn is_unhealthy(&self) -> bool {
        self.is_unhealthy.load(Ordering::Relaxed)
    }

    /// The time until the next check.
    pub fn wait(&self, now: Instant) -> Duration {
        self.checks.lock().due.saturating_duration_since(now)
    }

    /// Whether a check must begin at `now`. It counts as running then, until [`ended`](Self::ended).
    pub fn begin(&self, rules: &HealthRules, now: Instant) -> bool {
        let mut checks = self.checks.lock();
        let begins = !checks.is_running && checks.due <= now;
        if begins {
            checks.is_running = true;
            // The checks of many endpoints, and of many gateways, spread over the interval.
            checks.due = now + rules.interval.mul_f64(0.9 + 0.2 * fastrand::f64());
        }
        begins
    }

    /// The check that was running has ended.
    pub fn ended(&self) {
        self.checks.lock().is_running = false;
    }

    /// Learns the result of a check.
    pub fn learn(&self, passed: bool, rules: &HealthRules) -> Option<Change> {
        let mut checks = self.checks.lock();
        (checks.passed, checks.failed) = match passed {
            true => (checks.passed.saturating_add(1), 0),
            false => (0, checks.failed.saturating_add(1)),
        };
        let change = match self.is_unhealthy() {
            true if checks.passed >= rules.healthy_after => Change::Healthy,
            false if checks.failed >= rules.unhealthy_after => Change::Unhealthy,
            _ => return None,
        };
        self.is_unhealthy.store(change == Change::Unhealthy, Ordering::Relaxed);
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Check;
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn rules() -> HealthRules {
        HealthRules {
            check: Check::Connect,
            interval: INTERVAL,
            timeout: INTERVAL,
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }

    #[test]
    fn several_checks_in_a_row_change_the_health() {
        let (health, rules) = (Health::new(Instant::now()), rules());
        let (down, up) = (Some(Change::Unhealthy), Some(Change::Healthy));
        for (nth, (passed, change)) in [
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, down),
            (false, None),
            (true, None),
            (false, None),
            (true, None),
            (true, up),
            (true, None),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(health.learn(passed, &rules), change, "{nth}");
        }
        assert!(!health.is_unhealthy());
    }

    #[test]
    fn a_check_begins_once_in_an_interval_and_not_beside_another() {
        let now = Instant::now();
        let (health, rules) = (Health::new(now), rules());
        assert!(health.begin(&rules, now));
        assert!(!health.begin(&rules, now));
        let wait = health.wait(now);
        assert!((INTERVAL.mul_f64(0.9)..=INTERVAL.mul_f64(1.1)).contains(&wait), "{wait:?}");
        assert!(!health.begin(&rules, now + INTERVAL * 2), "the first has not ended");
        health.ended();
        assert!(!health.begin(&rules, now + INTERVAL / 2));
        assert!(health.begin(&rules, now + INTERVAL * 2));
    }
}
