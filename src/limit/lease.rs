//! How large a lease is: pure arithmetic on what was measured, with time passed in.
//!
//! A lease is quota taken ahead of demand. It covers what the measured rate needs for a few tens of
//! milliseconds, or a few requests where they are rare, and never more than a small share of what is
//! left, so that near the limit it shrinks to nothing and every decision is the store's.

use std::time::Duration;

use super::weight::Weight;
use crate::base::clock::Moment;

/// How much demand a lease covers.
const HORIZON: Duration = Duration::from_millis(50);

/// How much demand a lease of a few requests covers at most.
const SLOW_HORIZON: Duration = Duration::from_secs(10);

/// The requests that a lease for slow demand pays for: so many questions to the store become a single question.
const FEW: u64 = 16;

/// How long a lease may lie unused before it goes back, at least and at most.
const LIVES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));

/// A gateway takes at most this part of what is left, divided by the gateways.
const SHARE: u64 = 8;

/// Largest lease in units, whatever the demand.
const MAX_LEASE: u64 = 1_000_000;

/// Shortest time over which demand is measured.
const SAMPLE: Duration = Duration::from_millis(20);

/// How fast requests spend the quota of a subject, measured as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// Units a second, smoothed.
    rate: f32,
    /// Units since `since`.
    units: u32,
    since: Moment,
}

impl Demand {
    /// Notes a request at `now`, by a monotonic clock.
    pub fn note(&mut self, weight: Weight, now: Moment) {
        let units = u32::try_from(weight.units()).unwrap_or(u32::MAX);
        self.units = self.units.saturating_add(units);
        let elapsed = now - self.since;
        if elapsed < SAMPLE {
            return;
        }
        let sample = self.units as f32 / elapsed.as_secs_f32();
        self.rate += (sample - self.rate) * 0.5;
        (self.units, self.since) = (0, now);
    }

    /// Units that requests of `weight` will spend soon enough to be paid for ahead.
    fn ahead(&self, weight: Weight) -> u64 {
        let within = |horizon: Duration| (self.rate * horizon.as_secs_f32()) as u64;
        let few = weight.units().saturating_mul(FEW);
        within(HORIZON).max(within(SLOW_HORIZON).min(few))
    }

    /// How long a lease that covers this demand may lie unused before it goes back: twice as long as it
    /// should last.
    pub fn life(&self, weight: Weight) -> Duration {
        let (least, most) = LIVES;
        let lasts = self.ahead(weight) as f32 / self.rate.max(0.01);
        Duration::from_secs_f32(2.0 * lasts.min(most.as_secs_f32())).clamp(least, most)
    }
}

/// How many units to take ahead of requests of `weight`, when `left` are known to be left and `gateways`
/// share them.
pub fn size(demand: &Demand, weight: Weight, left: u64, gateways: u32) -> u64 {
    let share = left / SHARE / u64::from(gateways.max(1));
    let lease = demand.ahead(weight).min(share).min(MAX_LEASE);
    // A lease that pays for no request would only keep quota from the other gateways.
    if lease < weight.units() { 0 } else { lease }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Weight = Weight::ONE;

    fn steady(per_second: u32) -> Demand {
        let mut demand = Demand::default();
        for request in 0..per_second {
            let second = Duration::from_secs(1);
            demand.note(ONE, Moment::default() + second + second * request / per_second);
        }
        demand
    }

    #[test]
    fn a_lease_covers_the_horizon_of_a_steady_demand() {
        let size = size(&steady(10_000), ONE, 1_000_000, 1);
        assert!((400..=600).contains(&size), "{size}");
    }

    #[test]
    fn rare_requests_lease_a_few_and_single_ones_nothing() {
        assert_eq!(size(&steady(10), ONE, 1_000_000, 1), FEW);
        assert_eq!(size(&Demand::default(), ONE, 1_000_000, 1), 0);
        let mut rare = Demand::default();
        (1..9).for_each(|minute| {
            rare.note(ONE, Moment::default() + Duration::from_secs(60) * minute)
        });
        assert_eq!(size(&rare, ONE, 1_000_000, 1), 0);
    }

    #[test]
    fn a_lease_lives_twice_as_long_as_it_should_last() {
        assert_eq!(steady(10_000).life(ONE), LIVES.0);
        assert!((2..=4).contains(&steady(10).life(ONE).as_secs()), "{:?}", steady(10).life(ONE));
        assert_eq!(Demand::default().life(ONE), LIVES.0);
    }

    #[test]
    fn a_lease_is_a_small_share_of_what_is_left() {
        let demand = steady(10_000);
        assert_eq!(size(&demand, ONE, 800, 1), 100);
        assert_eq!(size(&demand, ONE, 800, 4), 25);
        assert_eq!(size(&demand, ONE, 31, 4), 0);
        assert_eq!(size(&demand, ONE, 0, 1), 0);
    }

    #[test]
    fn a_lease_of_heavy_requests_pays_for_a_few_of_them_or_is_not_taken() {
        let weight = Weight::new(1_000).unwrap();
        let mut demand = Demand::default();
        for nth in 10..20 {
            demand.note(weight, Moment::default() + Duration::from_millis(100) * nth);
        }
        assert_eq!(size(&demand, weight, 1_000_000, 1), FEW * 1_000);
        assert_eq!(size(&demand, weight, 8_000, 1), 1_000);
        assert_eq!(size(&demand, weight, 7_999, 1), 0, "an eighth pays for no request");
    }
}
