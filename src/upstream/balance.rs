//! Which of several endpoints comes next: in turn, the least busy one, or the one that a key belongs to.
//!
//! Each way is a comparison of the endpoints that may get requests, so that an endpoint that comes or goes needs no table
//! to be made again. This file must not know why an endpoint may get requests.

use std::cmp::Ordering::Less;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use crate::base::rendezvous::{mix, remoteness};

/// How far an endpoint of weight 1 moves with each request. See [`Member::moved`].
const DISTANCE: u64 = 1 << 20;

/// The least share of its weight that an endpoint has at the beginning of its slow start.
const LEAST: f64 = 0.1;

/// An endpoint, and its part in an upstream.
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    weight: f64,
    /// How far it has moved, by less for a larger weight. The endpoint that has moved least comes next, so that each gets
    /// its share evenly.
    moved: AtomicU64,
    /// The number that stands for the endpoint when keys are shared out: the same in every gateway.
    number: u64,
}

/// The state of taking turns.
#[derive(Debug, Default)]
pub struct Position(AtomicU64);

impl Member {
    /// A member with this share of the requests.
    pub fn new(endpoint: Arc<Endpoint>, weight: u32) -> Self {
        let weight = weight.max(1);
        let number = mixed(crc32fast::hash(endpoint.url().to_string().as_bytes()).into());
        Self {
            endpoint,
            weight: weight.into(),
            // Half a step makes the sequence of several weights more even.
            moved: AtomicU64::new(DISTANCE / u64::from(weight) / 2),
            number,
        }
    }

    /// The weight at `now`. An endpoint that has begun to get requests within `slow_start` has less of it.
    fn weight(&self, slow_start: Duration, now: Instant) -> f64 {
        match self.endpoint.since(now) {
            Some(since) if since < slow_start => {
                self.weight * since.div_duration_f64(slow_start).max(LEAST)
            }
            _ => self.weight,
        }
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// How unlikely it is that `key` belongs to this endpoint: the least number wins.
    fn remoteness(&self, key: u32, weight: f64) -> f64 {
        remoteness(mixed(self.number ^ mixed(key.into())), weight)
    }
}

/// Spreads the bits of a number, whose high half may be empty, over all of its bits.
fn mixed(number: u64) -> u64 {
    mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// The key of a request, made of the bytes that tell requests apart.
pub fn key(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The members that may come next, by their places in the list.
pub struct Candidates<'a, F> {
    /// All members.
    pub members: &'a [Member],
    /// Whether a member may come next.
    pub fits: F,
    /// See `slow_start` of the rules.
    pub slow_start: Duration,
    /// The present.
    pub now: Instant,
    /// Whether the request that the member gets was at another member before. It takes no turn then: the member that fails
    /// would be the next again, because the others have moved.
    pub is_retry: bool,
}

impl<F: Fn(usize) -> bool> Candidates<'_, F> {
    fn iter(&self) -> impl Iterator<Item = (usize, &Member)> {
        let all = self.members.iter().enumerate();
        all.filter(|(at, _)| (self.fits)(*at))
    }

    fn weight(&self, member: &Member) -> f64 {
        match self.slow_start.is_zero() {
            true => member.weight,
            false => member.weight(self.slow_start, self.now),
        }
    }

    /// The member whose turn it is.
    pub fn in_turn(&self, position: &Position) -> Option<usize> {
        let (at, _) = self.iter().min_by_key(|(_, member)| member.moved())?;
        self.moves(at, position);
        Some(at)
    }

    /// The member with the fewest requests under way for its weight; of several, the one whose turn it is.
    pub fn least_busy(&self, position: &Position) -> Option<usize> {
        let busy = |member: &Member| (member.endpoint.in_flight() + 1) as f64 / self.weight(member);
        let measured = self.iter().map(|(at, member)| (busy(member), member.moved(), at));
        let (.., at) = measured.min_by(|a, b| a.partial_cmp(b).unwrap_or(Less))?;
        self.moves(at, position);
        Some(at)
    }

    /// The member that `key` belongs to.
    pub fn of_key(&self, key: u32) -> Option<usize> {
        let remoteness =
            |(at, member): (usize, &Member)| (member.remoteness(key, self.weight(member)), at);
        let nearest = self.iter().map(remoteness);
        nearest.min_by(|a, b| a.partial_cmp(b).unwrap_or(Less)).map(|(_, at)| at)
    }

    /// The member at this place gets a request, and moves.
    fn moves(&self, at: usize, position: &Position) {
        let Some(member) = self.members.get(at).filter(|_| !self.is_retry) else { return };
        let moved = member.moved();
        // A member that got no requests for a while goes on beside the others, or it would get all of them.
        let last = position.0.load(Ordering::Relaxed);
        if moved < last {
            member.moved.fetch_max(last, Ordering::Relaxed);
        } else {
            position.0.store(moved, Ordering::Relaxed);
        }
        let distance = DISTANCE as f64 / self.weight(member);
        member.moved.fetch_add(distance as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{ConnectionRules, EndpointUrl, Scheme};
    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(at, weight): (usize, &u32)| {
            let url = EndpointUrl {
                host: "127.0.0.1".into(),
                port: 1_000 + at as u16,
                scheme: Scheme::Http,
            };
            let endpoint = Endpoint::new("u", &url, &ConnectionRules::default());
            Member::new(Arc::new(endpoint), *weight)
        };
        weights.iter().enumerate().map(member).collect()
    }

    fn candidates(
        members: &[Member],
        fits: impl Fn(usize) -> bool,
    ) -> Candidates<'_, impl Fn(usize) -> bool> {
        Candidates {
            members,
            fits,
            slow_start: Duration::ZERO,
            now: Instant::now(),
            is_retry: false,
        }
    }

    /// How many of the keys belong to each member.
    fn shares(owners: &[usize], members: usize) -> Vec<usize> {
        (0..members).map(|at| owners.iter().filter(|owner| **owner == at).count()).collect()
    }

    #[test]
    fn turns_follow_the_weights_evenly_whoever_is_away() {
        let members = members(&[1, 1, 2, 4]);
        let position = Position::default();
        let turns = |count: usize, away: usize| -> Vec<usize> {
            let candidates = candidates(&members, move |at| at != away);
            (0..count).map(|_| candidates.in_turn(&position).unwrap()).collect()
        };
        assert_eq!(shares(&turns(80, 9), 4), [10, 10, 20, 40]);
        let without_last = shares(&turns(80, 3), 4);
        assert!(without_last[3] == 0 && (19..=21).contains(&without_last[0]), "{without_last:?}");
        // It was away, and comes back to its share.
        let back = shares(&turns(80, 9), 4);
        assert!((39..=41).contains(&back[3]), "{back:?}");
        let away_for_long = turns(8, 9);
        assert!(away_for_long.windows(4).all(|turns| turns != [3, 3, 3, 3]), "{away_for_long:?}");
    }

    #[test]
    fn the_least_busy_for_its_weight_comes_next() {
        let members = members(&[1, 3]);
        let position = Position::default();
        let next = || candidates(&members, |_| true).least_busy(&position).unwrap();
        let chosen: Vec<_> = (0..8)
            .map(|_| {
                let at = next();
                members[at].endpoint.request_begins();
                at
            })
            .collect();
        assert_eq!(shares(&chosen, 2), [2, 6]);
        (0..2).for_each(|_| members[0].endpoint.request_ends());
        assert_eq!(next(), 0);
    }

    #[test]
    fn keys_follow_the_weights_and_an_endpoint_that_leaves_moves_only_its_own() {
        let members = members(&[1, 1, 2]);
        let keys: Vec<u32> = (0..40_000u32).map(|nth| key(&nth.to_le_bytes())).collect();
        let owners = |away: usize| -> Vec<usize> {
            let candidates = candidates(&members, move |at| at != away);
            keys.iter().map(|key| candidates.of_key(*key).unwrap()).collect()
        };
        let all = owners(9);
        for (share, expected) in shares(&all, 3).into_iter().zip([10_000, 10_000, 20_000]) {
            assert!(share.abs_diff(expected) < 400, "{:?}", shares(&all, 3));
        }
        let without_first = owners(0);
        for (before, after) in all.iter().zip(&without_first) {
            assert!(before == after || *before == 0);
        }
        let moved: Vec<_> =
            all.iter().zip(&without_first).filter(|(b, _)| **b == 0).map(|(_, a)| *a).collect();
        let [_, one, two] = shares(&moved, 3)[..] else { panic!() };
        assert!(one.abs_diff(two / 2) < 400, "they are shared out by weight: {one}, {two}");
    }

    #[test]
    fn the_owner_of_a_key_is_the_same_in_every_version() {
        let members = members(&[1, 1, 1, 1]);
        let owner = |text: &str| candidates(&members, |_| true).of_key(key(text.as_bytes()));
        let owners: Vec<_> = ["a", "b", "c", "d", "e", "f"].into_iter().filter_map(owner).collect();
        assert_eq!(owners, OWNERS);
    }

    /// Gateways of different versions must agree, or a change of versions would move keys.
    const OWNERS: [usize; 6] = [2, 3, 0, 1, 3, 2];

    #[test]
    fn an_endpoint_that_begins_slowly_gets_more_by_and_by() {
        let members = members(&[1, 1]);
        let now = Instant::now();
        members[1].endpoint.begins_slowly(now);
        for (seconds, least, most) in [(0, 5, 15), (5, 28, 38), (10, 48, 52)] {
            let position = Position::default();
            let candidates = Candidates {
                members: &members,
                fits: |_| true,
                slow_start: Duration::from_secs(10),
                now: now + Duration::from_secs(seconds),
                is_retry: false,
            };
            let turns: Vec<_> = (0..100).map(|_| candidates.in_turn(&position).unwrap()).collect();
            let share = shares(&turns, 2)[1];
            assert!((least..=most).contains(&share), "after {seconds} s: {share}");
        }
    }
}
