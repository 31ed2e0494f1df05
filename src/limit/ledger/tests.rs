//! The ledger against a store that answers when told to.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::*;
use crate::base::clock::{ManualClock, UnixTime};
use crate::store::memory::MemoryQuota;
use crate::store::{Adjustment, Grant};

const ONE: Weight = Weight::ONE;

/// A store that answers when told to, and counts how it was asked.
struct Gated {
    inner: MemoryQuota<Arc<ManualClock>>,
    gate: Semaphore,
    asked: Mutex<Vec<u64>>,
    down: Mutex<bool>,
    /// The store counts reports, and every question fails.
    grants_nothing: Mutex<bool>,
    /// So many adjustments are made and not answered.
    deaf: Mutex<u32>,
    /// The fewest units that each question had a use for.
    least: Mutex<Vec<u64>>,
    /// The adjustments that arrived.
    told: Mutex<Vec<(u64, Adjustment)>>,
}

#[async_trait]
impl QuotaStore for Gated {
    async fn take_at_least(
        &self,
        subject: &str,
        limits: &[Limit],
        least: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        self.asked.lock().push(wanted);
        self.least.lock().push(least);
        self.gate.acquire().await.unwrap().forget();
        if *self.down.lock() || *self.grants_nothing.lock() {
            return Err(StoreError::Open);
        }
        self.inner.take_at_least(subject, limits, least, wanted).await
    }

    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        id: u64,
    ) -> Result<(), StoreError> {
        if *self.down.lock() {
            return Err(StoreError::Open);
        }
        let known = self.told.lock().iter().any(|(known, _)| *known == id);
        self.told.lock().push((id, adjustment.clone()));
        if !known {
            self.inner.adjust(subject, limits, adjustment, id).await?;
        }
        let mut deaf = self.deaf.lock();
        if *deaf > 0 {
            *deaf -= 1;
            return Err(StoreError::Timeout(Duration::ZERO));
        }
        Ok(())
    }
}

const EXACT: Terms = Terms { sync: SyncMode::Exact, on_failure: FailurePolicy::Deny, gateways: 1 };

struct World {
    ledger: Arc<Ledger>,
    store: Arc<Gated>,
    clock: Arc<ManualClock>,
    limits: Arc<[Limit]>,
}

const START: UnixTime = UnixTime::from_secs(6_000);

fn world(limits: &[&str], permits: usize) -> World {
    let clock = Arc::new(ManualClock::new(START));
    let store = Arc::new(Gated {
        inner: MemoryQuota::new(clock.clone(), 1_000),
        gate: Semaphore::new(permits),
        asked: Mutex::default(),
        down: Mutex::default(),
        grants_nothing: Mutex::default(),
        deaf: Mutex::default(),
        least: Mutex::default(),
        told: Mutex::default(),
    });
    let ledger = Arc::new(Ledger::new(store.clone(), clock.clone(), 1_000));
    let limits = limits.iter().map(|text| Limit::parse(text).unwrap()).collect();
    World { ledger, store, clock, limits }
}

impl World {
    fn ask(&self) -> tokio::task::JoinHandle<Result<Decision, StoreError>> {
        self.ask_for(1)
    }

    fn ask_for(&self, units: u64) -> tokio::task::JoinHandle<Result<Decision, StoreError>> {
        let (ledger, limits) = (Arc::clone(&self.ledger), Arc::clone(&self.limits));
        let weight = Weight::new(units).unwrap();
        tokio::spawn(async move { ledger.admit("s", &limits, weight, EXACT).await })
    }

    async fn decided(&self, units: u64) -> Decision {
        self.ask_for(units).await.unwrap().unwrap()
    }

    /// What is left of each limit at the store.
    async fn left(&self) -> Vec<u64> {
        let grant = self.store.inner.take("s", &self.limits, 0).await.unwrap();
        grant.standings.iter().map(|standing| standing.left).collect()
    }

    async fn admitted(&self) -> bool {
        self.ask().await.unwrap().unwrap().admitted
    }

    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_window_admits_its_quota_and_refuses_the_rest_from_memory() {
    let world = world(&["3/minute"], 100);
    for remaining in [2, 1, 0] {
        let decision = world.ask().await.unwrap().unwrap();
        assert!(decision.admitted);
        assert_eq!(decision.states[0].remaining, remaining);
        assert_eq!(decision.states[0].reset_after, Duration::from_secs(60));
    }
    for _ in 0..10 {
        assert!(!world.admitted().await);
    }
    assert_eq!(world.store.asked.lock().len(), 4, "one refusal by the store, the rest by memory");
    world.clock.advance(Duration::from_secs(59));
    let refused = world.ask().await.unwrap().unwrap();
    assert!(!refused.admitted);
    assert_eq!(refused.states[0].reset_after, Duration::from_secs(1));
    world.clock.advance(Duration::from_secs(1));
    assert!(world.admitted().await);
}

#[tokio::test]
async fn requests_that_come_during_a_flight_share_the_next_question() {
    let world = world(&["5/minute"], 0);
    let mut asks = vec![world.ask()];
    world.settle().await;
    asks.extend((0..7).map(|_| world.ask()));
    world.settle().await;
    world.store.gate.add_permits(2);
    let mut admitted = 0;
    for ask in asks {
        admitted += u32::from(ask.await.unwrap().unwrap().admitted);
    }
    assert_eq!(*world.store.asked.lock(), [1, 7]);
    assert_eq!(admitted, 5);
}

#[tokio::test]
async fn a_flight_goes_on_when_its_request_goes_away() {
    let world = world(&["5/minute"], 0);
    let first = world.ask();
    world.settle().await;
    let waiters: Vec<_> = (0..3).map(|_| world.ask()).collect();
    world.settle().await;
    first.abort();
    world.settle().await;
    world.store.gate.add_permits(10);
    for waiter in waiters {
        assert!(waiter.await.unwrap().unwrap().admitted);
    }
    assert!(world.admitted().await);
    assert!(world.admitted().await, "the request that left used nothing");
    assert!(!world.admitted().await);
}

#[tokio::test]
async fn what_a_waiter_leaves_behind_is_used_by_the_next_request() {
    let world = world(&["3/minute"], 0);
    let first = world.ask();
    world.settle().await;
    let waiters: Vec<_> = (0..2).map(|_| world.ask()).collect();
    world.settle().await;
    world.store.gate.add_permits(1);
    world.settle().await;
    assert!(first.await.unwrap().unwrap().admitted);
    // The second question is under way for both waiters when one of them goes away.
    waiters[1].abort();
    world.settle().await;
    world.store.gate.add_permits(10);
    world.settle().await;
    assert!(world.admitted().await, "the quota of the one that left");
    assert!(!world.admitted().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flight_that_ends_leaves_the_next_one_alone() {
    let clock = Arc::new(ManualClock::new(START));
    let store = Arc::new(MemoryQuota::new(Arc::clone(&clock), 10));
    let ledger = Arc::new(Ledger::new(store, clock, 10));
    let limits: Arc<[Limit]> = [Limit::parse("1000000/minute").unwrap()].into();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (ledger, limits) = (Arc::clone(&ledger), Arc::clone(&limits));
            tokio::spawn(async move {
                for _ in 0..20_000 {
                    let decision = ledger.admit("s", &limits, ONE, EXACT).await;
                    assert!(decision.unwrap().admitted);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn several_limits_are_one_decision() {
    let world = world(&["2/second", "3/minute"], 100);
    assert!(world.admitted().await);
    assert!(world.admitted().await);
    let refused = world.ask().await.unwrap().unwrap();
    assert!(!refused.admitted);
    assert_eq!(refused.tightest(), Some(0));
    world.clock.advance(Duration::from_secs(1));
    assert!(world.admitted().await, "the refusal consumed nothing of the minute");
    assert!(!world.admitted().await);
    let refused = world.ask().await.unwrap().unwrap();
    assert_eq!(refused.tightest(), Some(1));
}

#[tokio::test]
async fn the_failure_policy_decides_while_the_store_is_away() {
    let world = world(&["4/minute"], 1_000);
    *world.store.down.lock() = true;
    let ask = |on_failure| {
        let (ledger, limits) = (Arc::clone(&world.ledger), Arc::clone(&world.limits));
        let terms = Terms { on_failure, gateways: 2, ..EXACT };
        async move { ledger.admit("s", &limits, ONE, terms).await }
    };
    assert!(ask(FailurePolicy::Deny).await.is_err());
    for _ in 0..9 {
        assert!(ask(FailurePolicy::Allow).await.unwrap().admitted);
    }
    let mut local = 0;
    for _ in 0..9 {
        local += u32::from(ask(FailurePolicy::Local).await.unwrap().admitted);
    }
    assert_eq!(local, 2, "two gateways share four");
    *world.store.down.lock() = false;
    assert!(world.admitted().await);
}

#[tokio::test]
async fn coming_back_does_not_hand_out_a_second_quota() {
    let world = world(&["6/minute"], 1_000);
    assert!(world.admitted().await);
    *world.store.down.lock() = true;
    let ask = || {
        let (ledger, limits) = (Arc::clone(&world.ledger), Arc::clone(&world.limits));
        let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
        async move { ledger.admit("s", &limits, ONE, terms).await.unwrap().admitted }
    };
    for _ in 0..3 {
        assert!(ask().await);
    }
    *world.store.down.lock() = false;
    let mut after = 0;
    for _ in 0..9 {
        after += u32::from(ask().await);
    }
    assert_eq!(after, 2, "one before, three alone, two after");
}

#[tokio::test]
async fn a_subject_under_two_sets_of_limits_is_counted_under_both_while_the_store_is_away() {
    let world = world(&["4/minute"], 1_000);
    let other: Arc<[Limit]> = [Limit::parse("9/hour").unwrap()].into();
    *world.store.down.lock() = true;
    let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    let mut admitted = [0, 0];
    for _ in 0..20 {
        for (set, limits) in [&world.limits, &other].into_iter().enumerate() {
            let decision = world.ledger.admit("s", limits, ONE, terms).await.unwrap();
            admitted[set] += u32::from(decision.admitted);
        }
    }
    assert_eq!(admitted, [4, 9]);
    assert_eq!(world.ledger.subjects(), 2);
    // No request comes again: what was counted here is over when its windows are.
    world.clock.advance(Duration::from_secs(3_600));
    world.ledger.sweep();
    assert_eq!(world.ledger.subjects(), 0);
}

#[tokio::test]
async fn what_cannot_be_remembered_is_not_admitted_while_the_store_is_away() {
    let mut world = world(&["4/minute"], 1_000);
    let clock = Arc::clone(&world.clock);
    world.ledger = Arc::new(Ledger::new(Arc::clone(&world.store) as _, clock, 1));
    *world.store.down.lock() = true;
    let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    assert!(world.ledger.admit("first", &world.limits, ONE, terms).await.unwrap().admitted);
    assert!(world.ledger.admit("second", &world.limits, ONE, terms).await.is_err());
}

#[tokio::test]
async fn what_was_admitted_alone_is_told_under_one_id_until_it_is_known() {
    let world = world(&["100/day"], 1_000);
    *world.store.down.lock() = true;
    let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    for _ in 0..3 {
        assert!(world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap().admitted);
    }
    *world.store.down.lock() = false;
    *world.store.deaf.lock() = 4;
    for _ in 0..4 {
        assert!(world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap().admitted);
    }
    assert!(world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap().admitted);
    let told = world.store.told.lock().clone();
    assert!(told.len() >= 5 && told[..5].iter().all(|(id, _)| *id == told[0].0), "{told:?}");
    let grant = world.store.inner.take("s", &world.limits, 0).await.unwrap();
    assert_eq!(grant.standings[0].left, 100 - 8);
}

#[tokio::test]
async fn a_store_that_takes_reports_and_grants_nothing_refills_nothing() {
    let world = world(&["6/minute", "100/hour"], 10_000);
    let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    let ask = || world.ledger.admit("s", &world.limits, ONE, terms);
    assert!(world.admitted().await);
    *world.store.grants_nothing.lock() = true;
    for _ in 0..2 {
        let mut alone = 0;
        for _ in 0..50 {
            alone += u64::from(ask().await.unwrap().admitted);
            world.ledger.sweep();
        }
        // Five of the first window, six of the second.
        assert_eq!(alone, if world.clock.now() == START { 5 } else { 6 });
        world.clock.advance(Duration::from_secs(60));
    }
    *world.store.grants_nothing.lock() = false;
    assert!(ask().await.unwrap().admitted);
    assert_eq!(world.left().await, [5, 100 - 1 - 5 - 6 - 1], "each was reported once");
}

#[tokio::test]
async fn a_reported_debt_refuses_until_a_grant_shows_it() {
    let world = world(&["20/minute"], 1_000);
    let mut decision = world.decided(1).await;
    *world.store.grants_nothing.lock() = true;
    world.ledger.settle("s", &mut decision, 18);
    world.settle().await;
    assert_eq!(world.left().await, [2], "the debt was reported");
    let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    let mut alone = 0;
    for _ in 0..30 {
        alone +=
            u64::from(world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap().admitted);
        world.ledger.sweep();
    }
    assert_eq!(alone, 2, "nineteen were left, and seventeen are owed");
    world.clock.advance(Duration::from_secs(60));
    assert!(world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap().admitted);
}

#[tokio::test]
async fn a_refusal_is_believed_for_a_second_and_not_for_the_whole_window() {
    let world = world(&["1/day"], 1_000);
    assert!(world.admitted().await);
    assert!(!world.admitted().await);
    // Another gateway gives back what it did not use.
    let mark = world.limits[0].mark(world.clock.now());
    let adjustment = Adjustment { changes: [(mark, -1)].as_slice().into() };
    world.store.inner.adjust("s", &world.limits, &adjustment, 1).await.unwrap();
    assert!(!world.admitted().await);
    world.clock.advance(Duration::from_secs(1));
    assert!(world.admitted().await);
}

#[tokio::test]
async fn leases_make_most_decisions_without_the_store() {
    let world = world(&["100000/minute"], 100_000);
    let terms = Terms { sync: SyncMode::Leased, ..EXACT };
    for _ in 0..10_000 {
        world.clock.advance(Duration::from_micros(100));
        let decision = world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap();
        assert!(decision.admitted);
        tokio::task::yield_now().await;
    }
    // The first 20 ms are exact, because no demand has been measured yet.
    let asked = world.store.asked.lock().len();
    assert!(asked < 200 + 50, "{asked} questions for 10,000 requests");
    // What lies unused goes back, to the last request.
    world.clock.advance(Duration::from_secs(1));
    world.ledger.expire_leases();
    world.settle().await;
    assert_eq!(world.ledger.held(), 0);
    let grant = world.store.inner.take("s", &world.limits, 1).await.unwrap();
    assert_eq!(grant.standings[0].left, 100_000 - 10_001);
}

#[tokio::test]
async fn near_the_limit_leased_is_exact() {
    let world = world(&["500/minute"], 100_000);
    let terms = Terms { sync: SyncMode::Leased, ..EXACT };
    let mut admitted = 0;
    for _ in 0..5_000 {
        world.clock.advance(Duration::from_micros(100));
        let decision = world.ledger.admit("s", &world.limits, ONE, terms).await.unwrap();
        admitted += u32::from(decision.admitted);
        tokio::task::yield_now().await;
    }
    assert_eq!(admitted, 500);
}

#[tokio::test]
async fn idle_subjects_are_forgotten_and_refused_ones_are_not() {
    let world = world(&["1/minute"], 100);
    assert!(world.admitted().await);
    assert!(!world.admitted().await);
    world.ledger.sweep();
    assert_eq!(world.ledger.subjects(), 1);
    world.clock.advance(Duration::from_secs(60));
    world.ledger.sweep();
    assert_eq!(world.ledger.subjects(), 0);
}

#[tokio::test]
async fn a_request_spends_its_weight_of_every_limit_or_nothing() {
    let world = world(&["10/second", "12/minute"], 1_000);
    let decision = world.decided(7).await;
    assert!(decision.admitted);
    assert_eq!(decision.states.iter().map(|state| state.remaining).collect::<Vec<_>>(), [3, 5]);
    assert!(!world.decided(4).await.admitted);
    assert_eq!(world.left().await, [3, 5], "the refusal consumed nothing");
    assert!(world.decided(3).await.admitted);
    world.clock.advance(Duration::from_secs(1));
    assert!(!world.decided(3).await.admitted);
    assert!(world.decided(2).await.admitted);
    assert_eq!(world.left().await, [8, 0]);
}

#[tokio::test]
async fn what_no_window_can_hold_is_refused_without_asking() {
    let world = world(&["10/minute", "100/hour"], 1_000);
    let refused = world.decided(11).await;
    assert!(!refused.admitted);
    assert!(world.store.asked.lock().is_empty());
    let leased = Terms { sync: SyncMode::Leased, ..EXACT };
    let weight = Weight::new(u64::MAX).unwrap();
    assert!(!world.ledger.admit("s", &world.limits, weight, leased).await.unwrap().admitted);
    assert!(world.store.asked.lock().is_empty());
    assert!(world.decided(10).await.admitted);
}

#[tokio::test]
async fn a_refused_weight_is_refused_from_memory_and_smaller_ones_are_not() {
    let world = world(&["10/minute"], 1_000);
    assert!(world.decided(7).await.admitted);
    for _ in 0..5 {
        assert!(!world.decided(4).await.admitted);
    }
    assert_eq!(world.store.asked.lock().len(), 2, "one refusal by the store, the rest by memory");
    assert!(world.decided(3).await.admitted);
    assert!(!world.decided(1).await.admitted);
    world.clock.advance(Duration::from_secs(60));
    assert!(world.decided(4).await.admitted);
}

#[tokio::test]
async fn waiters_are_served_in_order_of_arrival_as_far_as_the_grant_reaches() {
    let world = world(&["10/minute"], 0);
    let first = world.ask_for(1);
    world.settle().await;
    let waiters = [4, 6, 3, 2, 2].map(|units| world.ask_for(units));
    world.settle().await;
    world.store.gate.add_permits(2);
    assert!(first.await.unwrap().unwrap().admitted);
    let mut admitted = Vec::new();
    for waiter in waiters {
        admitted.push(waiter.await.unwrap().unwrap().admitted);
    }
    // Of nine units four are spent; six are too many for the rest, three and two are not.
    assert_eq!(admitted, [true, false, true, true, false]);
    assert_eq!(*world.store.asked.lock(), [1, 17]);
    assert_eq!(*world.store.least.lock(), [1, 2]);
}

#[tokio::test]
async fn what_a_grant_leaves_over_goes_back_at_once() {
    let world = world(&["10/minute"], 0);
    let first = world.ask_for(1);
    world.settle().await;
    let waiters = [5, 6].map(|units| world.ask_for(units));
    world.settle().await;
    world.store.gate.add_permits(2);
    let [five, six] = waiters;
    assert!(first.await.unwrap().unwrap().admitted);
    assert!(five.await.unwrap().unwrap().admitted);
    assert!(!six.await.unwrap().unwrap().admitted);
    world.settle().await;
    assert_eq!(world.ledger.held(), 0);
    assert_eq!(world.left().await, [4]);
}

#[tokio::test]
async fn what_is_held_and_what_the_store_has_pay_together() {
    let world = world(&["10/minute"], 1_000);
    let mut decision = world.decided(8).await;
    world.ledger.settle("s", &mut decision, 5);
    assert_eq!(world.ledger.held(), 3);
    // Three are held, two are left.
    assert!(world.decided(5).await.admitted);
    assert_eq!(*world.store.least.lock(), [8, 2]);
    assert_eq!((world.ledger.held(), world.left().await), (0, vec![0]));
}

#[tokio::test]
async fn unused_units_are_there_for_the_next_request() {
    let world = world(&["10/minute"], 1_000);
    let mut decision = world.decided(10).await;
    assert!(!world.decided(1).await.admitted);
    world.ledger.settle("s", &mut decision, 4);
    assert_eq!(decision.states[0].remaining, 6);
    world.ledger.settle("s", &mut decision, 0);
    world.ledger.put_back("s", &mut decision);
    assert!(world.decided(6).await.admitted, "settled once");
    assert!(!world.decided(1).await.admitted);
}

#[tokio::test]
async fn unused_units_of_a_window_that_is_over_are_worth_nothing() {
    let world = world(&["10/minute"], 1_000);
    let mut decision = world.decided(10).await;
    world.clock.advance(Duration::from_secs(60));
    assert!(world.decided(1).await.admitted);
    world.ledger.settle("s", &mut decision, 1);
    world.settle().await;
    assert_eq!((world.ledger.held(), world.left().await), (0, vec![9]));
}

#[tokio::test]
async fn an_excess_is_owed_and_refuses_what_follows() {
    let world = world(&["20/minute", "30/hour"], 1_000);
    let mut decision = world.decided(2).await;
    world.ledger.settle("s", &mut decision, 15);
    assert_eq!(decision.states[0].remaining, 5);
    world.settle().await;
    // Other gateways are refused too.
    assert_eq!(world.left().await, [5, 15]);
    assert!(!world.decided(6).await.admitted);
    assert!(world.decided(5).await.admitted);
    let mut decision = world.decided(1).await;
    assert!(!decision.admitted);
    world.ledger.settle("s", &mut decision, 100);
    world.clock.advance(Duration::from_secs(60));
    world.settle().await;
    assert_eq!(world.left().await, [20, 10], "a refused request owes nothing");
}

#[tokio::test]
async fn held_units_pay_for_an_excess_first() {
    let world = world(&["20/minute"], 1_000);
    let (mut one, mut other) = (world.decided(6).await, world.decided(6).await);
    world.ledger.settle("s", &mut one, 2);
    assert_eq!(world.ledger.held(), 4);
    world.ledger.settle("s", &mut other, 11);
    world.settle().await;
    assert_eq!(world.ledger.held(), 0);
    assert_eq!(
        *world.store.told.lock().iter().map(|(_, told)| told.changes[0].1).collect::<Vec<_>>(),
        [1]
    );
    assert_eq!(world.left().await, [7]);
}

#[tokio::test]
async fn a_debt_is_reported_by_the_flight_that_is_under_way() {
    let world = world(&["20/minute"], 1);
    let mut decision = world.decided(1).await;
    let waiter = world.ask_for(2);
    world.settle().await;
    world.ledger.settle("s", &mut decision, 6);
    world.settle().await;
    assert!(world.store.told.lock().is_empty());
    world.store.gate.add_permits(1);
    assert!(waiter.await.unwrap().unwrap().admitted);
    world.settle().await;
    assert_eq!(world.store.told.lock().len(), 1);
    assert_eq!(world.left().await, [12]);
}

#[tokio::test]
async fn a_debt_outlives_an_outage_and_counts_once() {
    let world = world(&["20/minute"], 1_000);
    let mut decision = world.decided(1).await;
    *world.store.down.lock() = true;
    world.ledger.settle("s", &mut decision, 8);
    world.settle().await;
    world.ledger.sweep();
    let local = Terms { on_failure: FailurePolicy::Local, ..EXACT };
    let alone = async |units| {
        let weight = Weight::new(units).unwrap();
        world.ledger.admit("s", &world.limits, weight, local).await.unwrap().admitted
    };
    // Nineteen were left when the store was last heard of.
    assert!(!alone(13).await, "the debt is counted without the store too");
    assert!(alone(4).await);
    *world.store.down.lock() = false;
    // The store counts a report and its answer is lost, twice.
    *world.store.deaf.lock() = 2;
    for _ in 0..2 {
        assert!(alone(1).await);
    }
    assert!(alone(1).await);
    let told = world.store.told.lock().clone();
    let counted: Vec<i64> = told.iter().map(|(_, told)| told.changes[0].1).collect();
    assert_eq!(counted, [7, 7, 7, 6], "the debt until it is known, then the rest");
    assert!(told[0].0 == told[1].0 && told[1].0 == told[2].0, "{told:?}");
    assert_eq!(world.left().await, [20 - 1 - 7 - 4 - 3]);
}

#[tokio::test]
async fn a_leased_subject_leases_for_the_weight_of_its_requests() {
    let world = world(&["10000000/minute"], 1_000_000);
    let terms = Terms { sync: SyncMode::Leased, ..EXACT };
    let weight = Weight::new(50).unwrap();
    for _ in 0..2_000 {
        world.clock.advance(Duration::from_millis(1));
        let decision = world.ledger.admit("s", &world.limits, weight, terms).await.unwrap();
        assert!(decision.admitted);
        tokio::task::yield_now().await;
    }
    let asked = world.store.asked.lock().len();
    assert!(asked < 200, "{asked} questions for 2,000 requests");
    world.clock.advance(Duration::from_secs(1));
    world.ledger.expire_leases();
    world.settle().await;
    assert_eq!((world.ledger.held(), world.left().await), (0, vec![10_000_000 - 2_000 * 50]));
}
