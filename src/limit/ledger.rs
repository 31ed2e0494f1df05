//! Decides requests, subject by subject, from what this process holds.
//!
//! Every admission spends what an account holds. When it holds nothing, one flight asks the store for
//! as many as are waiting, and who comes later rides the next flight. In leased mode a flight also
//! takes what the next moments will need, and the next one leaves before that is used up, so that no
//! request waits; what lies unused goes back. When the store grants nothing, its answer says until
//! when, and the subject is refused from memory. Refusals consume nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ahash::RandomState;
use futures_util::future::join_all;
use hashbrown::HashTable;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::account::Account;
use super::decision::Counted;
pub use super::decision::{Decision, LimitState};
use crate::base::clock::{Clock, Moment};
use crate::base::text::Text;
use crate::quota::Limit;
use crate::store::{Adjustment, QuotaStore, StoreError};
use crate::telemetry::metrics::METRICS;

/// Parts of the subject map that lock apart from each other.
const SHARDS: usize = 64;

/// Most requests that wait for one subject's flights; more are told that the store is behind.
const MAX_WAITING: usize = 10_000;

/// How long a refusal is believed: others may give back what they do not use.
const RECHECK: Duration = Duration::from_secs(1);

/// How often a grant may come too late before the store counts as failing.
const MAX_LATE_GRANTS: usize = 3;

/// How many adjustments go to the store at once when everything is surrendered.
const SURRENDER_AT_ONCE: usize = 256;

/// What happens to requests while the store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// This process counts by itself, up to its share of the limit.
    Local,
    /// Everything is admitted, uncounted.
    Allow,
    /// Nothing is admitted.
    Deny,
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The store, each time.
    Exact,
    /// This process, from small shares paid for ahead.
    Leased,
}

/// Under which terms a request is decided, besides its limits.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Who decides.
    pub sync: SyncMode,
    /// What happens while the store is away.
    pub on_failure: FailurePolicy,
    /// How many processes share the limits.
    pub gateways: u32,
}

/// What became of one who waited for a flight.
type Outcome = Result<Decision, StoreError>;

struct State {
    account: Account,
    /// Whether the ledger finds it again.
    remembered: bool,
    in_flight: bool,
    /// When the ledger's list of leases looks at it.
    listed_at: Moment,
    /// Who rides the next flight.
    waiting: Vec<oneshot::Sender<Outcome>>,
}

/// There may be a million of them: see the test of its size.
struct Entry {
    subject: Text,
    limits: Arc<[Limit]>,
    state: Mutex<State>,
}

impl Entry {
    /// Who decides here: some limits cannot be leased.
    fn sync(&self, terms: Terms) -> SyncMode {
        let leased = terms.sync == SyncMode::Leased && self.limits.iter().all(Limit::may_be_leased);
        if leased { SyncMode::Leased } else { SyncMode::Exact }
    }
}

/// The ledger of one process.
pub struct Ledger {
    /// Entries by their subjects.
    shards: Vec<Mutex<HashTable<Arc<Entry>>>>,
    hasher: RandomState,
    store: Arc<dyn QuotaStore>,
    clock: Arc<dyn Clock>,
    max_subjects: usize,
    subjects: AtomicUsize,
    /// Leases by when to look whether they lie unused.
    leases: Mutex<BinaryHeap<Lease>>,
}

/// A lease, and when to look at it.
struct Lease(Reverse<Moment>, Arc<Entry>);

impl Ord for Lease {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Lease {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Lease {}

impl Ledger {
    /// A ledger over `store` that keeps at most `max_subjects` subjects in memory.
    pub fn new(store: Arc<dyn QuotaStore>, clock: Arc<dyn Clock>, max_subjects: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: RandomState::new(),
            store,
            clock,
            max_subjects,
            subjects: AtomicUsize::new(0),
            leases: Mutex::default(),
        }
    }

    /// Decides one request of `subject` under `limits`, and counts it if it is admitted.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer and the policy is to deny.
    pub async fn admit(
        self: &Arc<Self>,
        subject: &str,
        limits: &Arc<[Limit]>,
        terms: Terms,
    ) -> Result<Decision, StoreError> {
        if limits.is_empty() {
            return Ok(Decision::unknown(limits));
        }
        let entry = self.entry(subject, limits);
        match self.decide(&entry, terms).await {
            Ok(decision) => Ok(decision),
            Err(error) => match terms.on_failure {
                FailurePolicy::Deny => Err(error),
                FailurePolicy::Allow => Ok(Decision::unknown(limits)),
                FailurePolicy::Local => {
                    let (now, wall) = (self.clock.monotonic(), self.clock.now());
                    let mut state = entry.state.lock();
                    // What is forgotten at once cannot be counted here.
                    if !state.remembered {
                        return Err(error);
                    }
                    Ok(state.account.spend_locally(limits, now, wall, terms.gateways))
                }
            },
        }
    }

    /// Takes back a decision of `subject` that admitted a request which is not made after all.
    pub fn put_back(self: &Arc<Self>, subject: &str, decision: &mut Decision) {
        let counted = std::mem::take(&mut decision.counted);
        if counted == Counted::Nowhere {
            return;
        }
        for (limit, state) in decision.limits.iter().zip(&mut decision.states) {
            state.remaining = (state.remaining + 1).min(limit.quota);
        }
        let entry = self.entry(subject, &decision.limits);
        let mut state = entry.state.lock();
        let elsewhere = state.account.put_back(&counted);
        self.list_lease(&entry, &mut state);
        drop(state);
        self.send_back(&entry, elsewhere);
    }

    /// Gives back leases that lie unused. Called several times a second.
    pub fn expire_leases(self: &Arc<Self>) {
        let now = self.clock.monotonic();
        let mut due: Vec<Arc<Entry>> = Vec::new();
        {
            let mut leases = self.leases.lock();
            while leases.peek().is_some_and(|lease| lease.0.0 <= now) {
                due.extend(leases.pop().map(|lease| lease.1));
            }
        }
        for entry in due {
            let mut state = entry.state.lock();
            let idle = state.account.take_idle(now);
            state.listed_at = Moment::NEVER;
            self.list_lease(&entry, &mut state);
            drop(state);
            self.send_back(&entry, idle);
        }
    }

    /// Notes when to look whether what an entry holds lies unused.
    fn list_lease(&self, entry: &Arc<Entry>, state: &mut State) {
        if let Some(at) = state.account.idle_at()
            && at < state.listed_at
        {
            state.listed_at = at;
            self.leases.lock().push(Lease(Reverse(at), Arc::clone(entry)));
        }
    }

    /// Gives everything back that is held, and tells what was admitted without the store, before the
    /// process ends.
    pub async fn surrender(&self) {
        let entries: Vec<Arc<Entry>> = self
            .shards
            .iter()
            .flat_map(|shard| shard.lock().iter().cloned().collect::<Vec<_>>())
            .collect();
        for some in entries.chunks(SURRENDER_AT_ONCE) {
            join_all(some.iter().map(|entry| async move {
                let held = entry.state.lock().account.take_all();
                // What cannot be said now is lost with the process.
                if let Some(held) = held {
                    let _ = self.adjust(entry, &held).await;
                }
                let _ = self.tell(entry).await;
            }))
            .await;
        }
    }

    /// Forgets subjects about which there is nothing to remember. Called now and then.
    pub fn sweep(self: &Arc<Self>) {
        let now = self.clock.monotonic();
        let mut held = 0;
        let mut idle = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|entry| {
                let mut state = entry.state.lock();
                // What someone who left did not use is no lease, and has waited long enough.
                if let Some(adjustment) = state.account.take_idle(now) {
                    idle.push((Arc::clone(entry), adjustment));
                }
                held += state.account.held();
                state.in_flight
                    || !state.waiting.is_empty()
                    || !state.account.is_idle(now)
                    || Arc::strong_count(entry) > 1
            });
            self.subjects.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
        for (entry, adjustment) in idle {
            self.send_back(&entry, Some(adjustment));
        }
        METRICS.limit_held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// Subjects in memory.
    pub fn subjects(&self) -> usize {
        self.subjects.load(Ordering::Relaxed)
    }

    /// Requests held over all subjects.
    pub fn held(&self) -> u64 {
        let of_shard = |shard: &Mutex<HashTable<Arc<Entry>>>| -> u64 {
            shard.lock().iter().map(|entry| entry.state.lock().account.held()).sum()
        };
        self.shards.iter().map(of_shard).sum()
    }

    fn entry(self: &Arc<Self>, subject: &str, limits: &Arc<[Limit]>) -> Arc<Entry> {
        let hash = self.hasher.hash_one(subject);
        // The table itself uses the lowest and the highest bits.
        let mut shard = self.shards[(hash >> 32) as usize % SHARDS].lock();
        // One subject may be counted under several sets of limits: each has an entry of its own.
        let known = shard.find(hash, |entry| {
            *entry.subject == *subject
                && (Arc::ptr_eq(&entry.limits, limits) || entry.limits == *limits)
        });
        if let Some(entry) = known {
            return Arc::clone(entry);
        }
        // At the bound a subject is decided without being remembered: exact all the same, only dearer.
        let remembered = self.subjects() < self.max_subjects;
        let entry = Arc::new(Entry {
            subject: subject.into(),
            limits: Arc::clone(limits),
            state: Mutex::new(State::new(remembered)),
        });
        if remembered {
            let hash_of = |entry: &Arc<Entry>| self.hasher.hash_one(&*entry.subject);
            shard.insert_unique(hash, Arc::clone(&entry), hash_of);
            self.subjects.fetch_add(1, Ordering::Relaxed);
        }
        entry
    }

    async fn decide(self: &Arc<Self>, entry: &Arc<Entry>, terms: Terms) -> Outcome {
        let (receiver, flight) = match self.seat(entry, terms)? {
            Seat::Decided(decision) => return Ok(decision),
            Seat::Waits(receiver, flight) => (receiver, flight),
        };
        let mut ride = Ride { ledger: self, entry, receiver, flight };
        poll_fn(|cx| {
            if let Some(flight) = &mut ride.flight
                && flight.as_mut().poll(cx).is_ready()
            {
                ride.flight = None;
            }
            let lost = |_| Err(StoreError::Failed("the flight was lost".into()));
            Pin::new(&mut ride.receiver).poll(cx).map(|outcome| outcome.unwrap_or_else(lost))
        })
        .await
    }

    /// Decides from what is held, or takes a seat in the next flight; lets one depart where it is due.
    fn seat(self: &Arc<Self>, entry: &Arc<Entry>, terms: Terms) -> Result<Seat, StoreError> {
        let leased = entry.sync(terms) == SyncMode::Leased;
        let now = self.clock.monotonic();
        let mut state = entry.state.lock();
        if leased {
            state.account.note_demand(now);
        }
        let worthless = state.account.take_worthless(now);
        let mut seat = match state.account.decide(&entry.limits, now) {
            Some(decision) => Seat::Decided(decision),
            None if state.waiting.len() >= MAX_WAITING => {
                return Err(StoreError::Failed("too many requests wait for it".into()));
            }
            None => {
                let (sender, receiver) = oneshot::channel();
                state.waiting.push(sender);
                Seat::Waits(receiver, None)
            }
        };
        let is_due = || match seat {
            Seat::Waits(..) => true,
            Seat::Decided(_) => {
                leased && state.account.runs_low(&entry.limits, now, terms.gateways)
            }
        };
        let departs = !state.in_flight && is_due();
        state.in_flight |= departs;
        drop(state);
        self.send_back(entry, worthless);
        if departs {
            let (ledger, entry) = (Arc::clone(self), Arc::clone(entry));
            let flight = Flight { ledger, entry, terms, landed: false }.run();
            match &mut seat {
                // A task of its own would cost the one who waits two wake-ups more.
                Seat::Waits(_, own) => *own = Some(Box::pin(flight)),
                Seat::Decided(_) => drop(tokio::spawn(flight)),
            }
        }
        Ok(seat)
    }

    /// Gives back in the background: nobody waits for it, and losing it only wastes quota.
    fn send_back(self: &Arc<Self>, entry: &Arc<Entry>, adjustment: Option<Adjustment>) {
        let Some(adjustment) = adjustment else { return };
        let (ledger, entry) = (Arc::clone(self), Arc::clone(entry));
        tokio::spawn(async move {
            // Losing it only wastes what is left of a window.
            let _ = ledger.adjust(&entry, &adjustment).await;
        });
    }

    /// Tells the store what was admitted without it: that counts before anything more is taken.
    async fn tell(&self, entry: &Entry) -> Result<(), StoreError> {
        loop {
            let untold = entry.state.lock().account.untold();
            let Some((id, untold)) = untold else { return Ok(()) };
            self.store.adjust(&entry.subject, &entry.limits, &untold, id).await?;
            entry.state.lock().account.told();
        }
    }

    async fn adjust(&self, entry: &Entry, adjustment: &Adjustment) -> Result<(), StoreError> {
        let returned = adjustment.changes.iter().map(|(_, by)| -by).max().unwrap_or(0);
        let id = fastrand::u64(1..1 << 53);
        self.store.adjust(&entry.subject, &entry.limits, adjustment, id).await?;
        METRICS.limit_returned.inc_by(u64::try_from(returned).unwrap_or(0));
        Ok(())
    }
}

/// Where a request finds its decision.
enum Seat {
    Decided(Decision),
    /// With the flight, if it departs for this request.
    Waits(oneshot::Receiver<Outcome>, Option<Pin<Box<dyn Future<Output = ()> + Send>>>),
}

/// Asks the store for one subject, until nobody waits.
struct Flight {
    ledger: Arc<Ledger>,
    entry: Arc<Entry>,
    terms: Terms,
    /// Whether it ended as it should; by then the next one may have departed.
    landed: bool,
}

impl Flight {
    async fn run(mut self) {
        let mut late = 0;
        loop {
            match self.ask().await {
                Ok(()) => late = 0,
                // A grant that comes so late that its window may have ended is worth nothing.
                Err(TooLate) => late += 1,
            }
            let mut state = self.entry.state.lock();
            if late >= MAX_LATE_GRANTS {
                let error = StoreError::Failed("its answers come too late".into());
                for rider in state.waiting.drain(..) {
                    let _ = rider.send(Err(error.clone()));
                }
            }
            if state.waiting.is_empty() {
                state.in_flight = false;
                self.landed = true;
                return;
            }
        }
    }

    /// Asks once: for everyone who waits now, and ahead.
    async fn ask(&self) -> Result<(), TooLate> {
        let Self { ledger, entry, terms, .. } = self;
        let limits = &entry.limits;
        let sent_at = ledger.clock.monotonic();
        let (riders, ahead) = {
            let mut state = entry.state.lock();
            let mut riders = std::mem::take(&mut state.waiting);
            // Who came while the last answer was on its way may be served by it.
            let served = |state: &mut State, rider| match state.account.decide(limits, sent_at) {
                Some(decision) => {
                    state.hand(rider, decision);
                    None
                }
                None => Some(rider),
            };
            riders = riders.into_iter().filter_map(|rider| served(&mut state, rider)).collect();
            let ahead = match entry.sync(*terms) {
                SyncMode::Leased => state.account.lease(limits, sent_at, terms.gateways),
                SyncMode::Exact => 0,
            };
            (riders, ahead)
        };
        let wanted = riders.len() as u64 + ahead;
        if wanted == 0 {
            return Ok(());
        }
        let answer = match ledger.tell(entry).await {
            Ok(()) => ledger.store.take(&entry.subject, limits, wanted).await,
            Err(error) => Err(error),
        };
        let ahead_only = riders.is_empty();
        let flights = if ahead_only { &METRICS.flights_ahead } else { &METRICS.flights_waited };
        flights.inc();
        let now = ledger.clock.monotonic();
        let mut state = entry.state.lock();
        let grant = match answer {
            Ok(grant) => grant,
            Err(error) => {
                for rider in riders {
                    let _ = rider.send(Err(error.clone()));
                }
                return Ok(());
            }
        };
        METRICS.limit_granted.inc_by(grant.granted);
        if grant.granted > riders.len() as u64 {
            METRICS.limit_lease.observe((grant.granted - riders.len() as u64) as f64);
        }
        let stale = state.account.receive(limits, &grant, sent_at, now, RECHECK);
        let worthless = state.account.take_worthless(now);
        let result = if worthless.is_some() {
            let later = std::mem::replace(&mut state.waiting, riders);
            state.waiting.extend(later);
            Err(TooLate)
        } else {
            for rider in riders {
                let decision = state.account.spend(limits, now);
                state.hand(rider, decision);
            }
            Ok(())
        };
        ledger.list_lease(entry, &mut state);
        drop(state);
        ledger.send_back(entry, stale);
        ledger.send_back(entry, worthless);
        result
    }
}

/// The grant was worth nothing by the time it came.
struct TooLate;

impl Drop for Flight {
    /// However a flight ends, the next one can depart.
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let mut state = self.entry.state.lock();
        state.in_flight = false;
        // Dropped senders tell whoever still waits.
        state.waiting.clear();
    }
}

impl State {
    fn new(remembered: bool) -> Self {
        Self {
            account: Account::default(),
            remembered,
            in_flight: false,
            listed_at: Moment::NEVER,
            waiting: Vec::new(),
        }
    }

    /// Gives one who waits a decision. If nobody is there to take it, it is left to the next one.
    fn hand(&mut self, rider: oneshot::Sender<Outcome>, decision: Decision) {
        if let Err(Ok(decision)) = rider.send(Ok(decision)) {
            // Nothing has come between spending and putting back: the marks are the same.
            self.account.put_back(&decision.counted);
        }
    }
}

/// Waits for a flight. Who goes away with an answer unread leaves it to the others.
struct Ride<'a> {
    ledger: &'a Arc<Ledger>,
    entry: &'a Arc<Entry>,
    receiver: oneshot::Receiver<Outcome>,
    /// The flight, if it departed for this request.
    flight: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Drop for Ride<'_> {
    fn drop(&mut self) {
        // It goes on for those who ride along, and what was asked for must not be lost.
        if let Some(flight) = self.flight.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(flight);
        }
        // Closed first: what came after a look into an open channel would be lost.
        self.receiver.close();
        if let Ok(Ok(decision)) = self.receiver.try_recv() {
            let elsewhere = self.entry.state.lock().account.put_back(&decision.counted);
            self.ledger.send_back(self.entry, elsewhere);
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::base::clock::{ManualClock, UnixTime};
    use crate::store::Grant;
    use crate::store::memory::MemoryQuota;

    /// A store that answers when told to, and counts how it was asked.
    struct Gated {
        inner: MemoryQuota<Arc<ManualClock>>,
        gate: Semaphore,
        asked: Mutex<Vec<u64>>,
        down: Mutex<bool>,
        /// So many adjustments are made and not answered.
        deaf: Mutex<u32>,
        /// The adjustments that arrived.
        told: Mutex<Vec<(u64, Adjustment)>>,
    }

    #[async_trait]
    impl QuotaStore for Gated {
        async fn take(
            &self,
            subject: &str,
            limits: &[Limit],
            wanted: u64,
        ) -> Result<Grant, StoreError> {
            self.asked.lock().push(wanted);
            self.gate.acquire().await.unwrap().forget();
            if *self.down.lock() {
                return Err(StoreError::Open);
            }
            self.inner.take(subject, limits, wanted).await
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

    const EXACT: Terms =
        Terms { sync: SyncMode::Exact, on_failure: FailurePolicy::Deny, gateways: 1 };

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
            deaf: Mutex::default(),
            told: Mutex::default(),
        });
        let ledger = Arc::new(Ledger::new(store.clone(), clock.clone(), 1_000));
        let limits = limits.iter().map(|text| Limit::parse(text).unwrap()).collect();
        World { ledger, store, clock, limits }
    }

    impl World {
        fn ask(&self) -> tokio::task::JoinHandle<Result<Decision, StoreError>> {
            let (ledger, limits) = (Arc::clone(&self.ledger), Arc::clone(&self.limits));
            tokio::spawn(async move { ledger.admit("s", &limits, EXACT).await })
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
        assert_eq!(
            world.store.asked.lock().len(),
            4,
            "one refusal by the store, the rest by memory"
        );
        world.clock.advance(Duration::from_secs(59));
        let refused = world.ask().await.unwrap().unwrap();
        assert!(!refused.admitted);
        assert_eq!(refused.states[0].reset_after, Duration::from_secs(1));
        world.clock.advance(Duration::from_secs(1));
        assert!(world.admitted().await);
    }

    #[tokio::test]
    async fn who_comes_during_a_flight_rides_the_next_one_together() {
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
    async fn a_flight_goes_on_when_the_one_who_asked_leaves() {
        let world = world(&["5/minute"], 0);
        let leader = world.ask();
        world.settle().await;
        let riders: Vec<_> = (0..3).map(|_| world.ask()).collect();
        world.settle().await;
        leader.abort();
        world.settle().await;
        world.store.gate.add_permits(10);
        for rider in riders {
            assert!(rider.await.unwrap().unwrap().admitted);
        }
        assert!(world.admitted().await);
        assert!(world.admitted().await, "the one who left used nothing");
        assert!(!world.admitted().await);
    }

    #[tokio::test]
    async fn what_a_rider_leaves_behind_is_used_by_the_next() {
        let world = world(&["3/minute"], 0);
        let leader = world.ask();
        world.settle().await;
        let riders: Vec<_> = (0..2).map(|_| world.ask()).collect();
        world.settle().await;
        world.store.gate.add_permits(1);
        world.settle().await;
        assert!(leader.await.unwrap().unwrap().admitted);
        // The second flight is in the air with both riders aboard when one of them goes away.
        riders[1].abort();
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
                        let decision = ledger.admit("s", &limits, EXACT).await;
                        assert!(decision.unwrap().admitted);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    #[test]
    fn an_entry_is_small() {
        // Counted by reference it takes 16 bytes more, and mimalloc has a class of 256 bytes.
        assert!(size_of::<Entry>() <= 240, "{}", size_of::<Entry>());
    }

    #[test]
    fn a_decision_handed_to_one_that_goes_away_is_not_lost() {
        let ledger = world(&[], 0).ledger;
        for _ in 0..10_000 {
            let entry = Arc::new(Entry {
                subject: "s".into(),
                limits: Arc::new([]),
                state: Mutex::new(State::new(true)),
            });
            let (sender, receiver) = oneshot::channel();
            entry.state.lock().account.put_back(&Counted::AtStore(Default::default()));
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let ride = Ride { ledger: &ledger, entry: &entry, receiver, flight: None };
                    start.wait();
                    drop(ride);
                });
                start.wait();
                let mut state = entry.state.lock();
                let decision = state.account.spend(&entry.limits, Moment::default());
                state.hand(sender, decision);
            });
            assert_eq!(entry.state.lock().account.held(), 1);
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
            async move { ledger.admit("s", &limits, terms).await }
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
            async move { ledger.admit("s", &limits, terms).await.unwrap().admitted }
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
                let decision = world.ledger.admit("s", limits, terms).await.unwrap();
                admitted[set] += u32::from(decision.admitted);
            }
        }
        assert_eq!(admitted, [4, 9]);
        assert_eq!(world.ledger.subjects(), 2);
        // Nobody asks again: what was counted here is over when its windows are.
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
        assert!(world.ledger.admit("first", &world.limits, terms).await.unwrap().admitted);
        assert!(world.ledger.admit("second", &world.limits, terms).await.is_err());
    }

    #[tokio::test]
    async fn what_was_admitted_alone_is_told_under_one_id_until_it_is_known() {
        let world = world(&["100/day"], 1_000);
        *world.store.down.lock() = true;
        let terms = Terms { on_failure: FailurePolicy::Local, ..EXACT };
        for _ in 0..3 {
            assert!(world.ledger.admit("s", &world.limits, terms).await.unwrap().admitted);
        }
        *world.store.down.lock() = false;
        *world.store.deaf.lock() = 4;
        for _ in 0..4 {
            assert!(world.ledger.admit("s", &world.limits, terms).await.unwrap().admitted);
        }
        assert!(world.ledger.admit("s", &world.limits, terms).await.unwrap().admitted);
        let told = world.store.told.lock().clone();
        assert!(told.len() >= 5 && told[..5].iter().all(|(id, _)| *id == told[0].0), "{told:?}");
        let grant = world.store.inner.take("s", &world.limits, 0).await.unwrap();
        assert_eq!(grant.standings[0].left, 100 - 8);
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
            let decision = world.ledger.admit("s", &world.limits, terms).await.unwrap();
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
            let decision = world.ledger.admit("s", &world.limits, terms).await.unwrap();
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
}
