//! How large a lease is: pure arithmetic on what was measured, with time passed in.
//!
//! A lease is quota taken ahead of demand. It covers what the measured rate needs for a few tens of
//! milliseconds, or a few requests where they are rare, and never more than a small share of what is
//! left, so that near the limit it shrinks to nothing and every decision is the store's.

use std::time::Duration;

use crate::base::clock::Moment;

/// How much demand a lease covers.
const HORIZON: Duration = Duration::from_millis(50);

/// How much demand a lease of a few requests covers at most.
const SLOW_HORIZON: Duration = Duration::from_secs(10);

/// A lease of a few requests: so many questions to the store become one.
const FEW: u64 = 16;

/// How long a lease may lie unused before it goes back, at least and at most.
const LIVES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));

/// A gateway takes at most this part of what is left, divided by the gateways.
const SHARE: u64 = 8;

/// Largest lease, whatever the demand.
const MAX_LEASE: u64 = 1_000_000;

/// Shortest time over which demand is measured.
const SAMPLE: Duration = Duration::from_millis(20);

/// The rate of one subject's requests, measured as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// Requests a second, smoothed.
    rate: f32,
    count: u32,
    since: Moment,
}

impl Demand {
    /// Notes one request at `now`, by a monotonic clock.
    pub fn note(&mut self, now: Moment) {
        self.count = self.count.saturating_add(1);
        let elapsed = now - self.since;
        if elapsed < SAMPLE {
            return;
        }
        let sample = self.count as f32 / elapsed.as_secs_f32();
        self.rate += (sample - self.rate) * 0.5;
        (self.count, self.since) = (0, now);
    }

    /// Requests expected soon enough to be paid for ahead.
    fn ahead(&self) -> u64 {
        let within = |horizon: Duration| (self.rate * horizon.as_secs_f32()) as u64;
        within(HORIZON).max(within(SLOW_HORIZON).min(FEW))
    }

    /// How long a lease that covers this demand may lie unused before it goes back: twice as long as it
    /// should last.
    pub fn life(&self) -> Duration {
        let (least, most) = LIVES;
        let lasts = self.ahead() as f32 / self.rate.max(0.01);
        Duration::from_secs_f32(2.0 * lasts.min(most.as_secs_f32())).clamp(least, most)
    }
}

/// How much to take ahead when `left` is known to be left and `gateways` share it.
pub fn size(demand: &Demand, left: u64, gateways: u32) -> u64 {
    let share = left / SHARE / u64::from(gateways.max(1));
    demand.ahead().min(share).min(MAX_LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(per_second: u32) -> Demand {
        let mut demand = Demand::default();
        for request in 0..per_second {
            demand.note(
                Moment::default()
                    + Duration::from_secs(1)
                    + Duration::from_secs(1) * request / per_second,
            );
        }
        demand
    }

    #[test]
    fn a_lease_covers_the_horizon_of_a_steady_demand() {
        let size = size(&steady(10_000), 1_000_000, 1);
        assert!((400..=600).contains(&size), "{size}");
    }

    #[test]
    fn rare_requests_lease_a_few_and_single_ones_nothing() {
        assert_eq!(size(&steady(10), 1_000_000, 1), FEW);
        assert_eq!(size(&Demand::default(), 1_000_000, 1), 0);
        let mut rare = Demand::default();
        (1..9).for_each(|minute| rare.note(Moment::default() + Duration::from_secs(60) * minute));
        assert_eq!(size(&rare, 1_000_000, 1), 0);
    }

    #[test]
    fn a_lease_lives_twice_as_long_as_it_should_last() {
        assert_eq!(steady(10_000).life(), LIVES.0);
        assert!((2..=4).contains(&steady(10).life().as_secs()), "{:?}", steady(10).life());
        assert_eq!(Demand::default().life(), LIVES.0);
    }

    #[test]
    fn a_lease_is_a_small_share_of_what_is_left() {
        let demand = steady(10_000);
        assert_eq!(size(&demand, 800, 1), 100);
        assert_eq!(size(&demand, 800, 4), 25);
        assert_eq!(size(&demand, 31, 4), 0);
        assert_eq!(size(&demand, 0, 1), 0);
    }
}
