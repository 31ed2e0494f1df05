//! How a route's requests are shared out among several upstreams, so that a sender stays on its side.
//!
//! Each sender gives every upstream a number by hashing, scaled by the upstream's weight, and the smallest number wins
//! (weighted rendezvous hashing). No state is kept: all gateways agree, and so does a gateway after a restart. When one
//! weight changes, senders move to that upstream or away from it, and between no others. This file must not know what an
//! upstream is.

use crate::base::rendezvous::{mix, remoteness};

/// Values, each with its share of the requests; at least one.
#[derive(Clone, Debug)]
pub struct Split<T> {
    first: Share<T>,
    others: Vec<Share<T>>,
}

#[derive(Clone, Debug)]
struct Share<T> {
    /// The hash of the name, which lets senders stay when the list is sorted anew.
    name: u64,
    weight: u32,
    value: T,
}

impl<T> Split<T> {
    /// One value for all requests.
    pub fn whole(value: T) -> Self {
        Self { first: Share { name: 0, weight: 1, value }, others: Vec::new() }
    }

    /// The shares of `(name, weight, value)`. `None` when there is none, or when no weight is above 0.
    pub fn new<'n>(shares: impl IntoIterator<Item = (&'n str, u32, T)>) -> Option<Self> {
        let share = |(name, weight, value): (&str, _, _)| Share {
            name: hash(name.as_bytes()),
            weight,
            value,
        };
        let mut shares = shares.into_iter().map(share);
        let split = Self { first: shares.next()?, others: shares.collect() };
        let shared = split.shares().any(|share| share.weight > 0);
        shared.then_some(split)
    }

    /// The side of the sender whose [hash] `sender` gives, as a number for [`get`](Self::get). `sender` is asked only where
    /// there are several sides.
    pub fn side(&self, sender: impl FnOnce() -> u64) -> usize {
        if self.others.is_empty() {
            return 0;
        }
        let sender = sender();
        let distance = |share: &Share<T>| remoteness(mix(sender ^ share.name), share.weight.into());
        let nearest =
            self.shares().map(distance).enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b));
        nearest.map_or(0, |(side, _)| side)
    }

    /// The value of a side.
    pub fn get(&self, side: usize) -> &T {
        let other = side.checked_sub(1).and_then(|at| self.others.get(at));
        &other.unwrap_or(&self.first).value
    }

    /// Every value, with its weight where there are several.
    pub fn iter(&self) -> impl Iterator<Item = (&T, Option<u32>)> {
        let several = !self.others.is_empty();
        self.shares().map(move |share| (&share.value, several.then_some(share.weight)))
    }

    /// The same shares of other values.
    pub fn map<U>(self, mut with: impl FnMut(T) -> U) -> Split<U> {
        let mut share = |Share { name, weight, value }| Share { name, weight, value: with(value) };
        Split { first: share(self.first), others: self.others.into_iter().map(share).collect() }
    }

    fn shares(&self) -> impl Iterator<Item = &Share<T>> {
        [&self.first].into_iter().chain(&self.others)
    }
}

/// The same number for the same bytes, in every process (FNV-1a, then mixed).
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDERS: u64 = 100_000;

    fn split(shares: &[(&'static str, u32)]) -> Split<&'static str> {
        Split::new(shares.iter().map(|&(name, weight)| (name, weight, name))).unwrap()
    }

    /// The upstream of each sender.
    fn upstreams(split: &Split<&'static str>) -> Vec<&'static str> {
        let sender = |n: u64| hash(format!("token:{n}").as_bytes());
        (0..SENDERS).map(|n| *split.get(split.side(|| sender(n)))).collect()
    }

    /// The share that `name` has of `senders`, in per cent.
    fn share(senders: &[&str], name: &str) -> f64 {
        let count = senders.iter().filter(|own| **own == name).count();
        count as f64 * 100.0 / senders.len() as f64
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in
            [&[("a", 95), ("b", 5)][..], &[("a", 1), ("b", 1), ("c", 2)], &[("a", 0), ("b", 7)]]
        {
            let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
            let senders = upstreams(&split(weights));
            for (name, weight) in weights {
                let expected = f64::from(*weight) * 100.0 / f64::from(total);
                let found = share(&senders, name);
                assert!((found - expected).abs() < 0.5, "{weights:?} {name}: {found}");
            }
        }
    }

    #[test]
    fn a_changed_weight_moves_senders_to_its_upstream_or_away_from_it() {
        let before = upstreams(&split(&[("a", 60), ("b", 30), ("c", 10)]));
        for (weight, from_c) in [(20, false), (5, true), (0, true)] {
            // The order of the list means nothing.
            let after = upstreams(&split(&[("c", weight), ("b", 30), ("a", 60)]));
            let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
            assert!(!moved.is_empty());
            assert!(moved.iter().all(|(a, b)| if from_c { **a == "c" } else { **b == "c" }));
        }
        let (small, large) = (split(&[("a", 95), ("b", 5)]), split(&[("a", 90), ("b", 10)]));
        let (small, large) = (upstreams(&small), upstreams(&large));
        let moved = small.iter().zip(&large).filter(|(a, b)| a != b).count();
        let grown = share(&large, "b") - share(&small, "b");
        assert_eq!(moved as f64 * 100.0 / SENDERS as f64, grown, "no more than must move");
    }

    #[test]
    fn senders_stay_from_process_to_process() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        let split = split(&[("users", 50), ("users-next", 50)]);
        let sides: Vec<_> = ["token:a", "token:b", "token:c", "token:d", "token:e", "token:f"]
            .map(|sender| split.side(|| hash(sender.as_bytes())))
            .into();
        assert_eq!(sides, [1, 1, 1, 0, 1, 1]);
    }

    #[test]
    fn one_value_needs_no_sender() {
        let whole = Split::whole("a");
        assert_eq!(*whole.get(whole.side(|| unreachable!("nobody asks"))), "a");
        assert_eq!(whole.iter().collect::<Vec<_>>(), [(&"a", None)]);
        assert!(Split::new([("a", 0, ()), ("b", 0, ())]).is_none());
        assert!(Split::<()>::new([]).is_none());
    }
}
