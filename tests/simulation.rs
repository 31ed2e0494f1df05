//! Many gateways, one store, hostile circumstances, one thread, one seed: the promises of the ledger
//! hold after every step, whatever is lost, late, doubled, reordered, crashed or reset.
//!
//! `TOLLGATE_SIMULATION_SEED=n` replays one run, `TOLLGATE_SIMULATION_RUNS=n` makes more of them.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tollgate::clock::{Clock, ManualClock, UnixTime};
use tollgate::limit::ledger::{Decision, FailurePolicy, Ledger, Sync, Terms};
use tollgate::quota::Limit;
use tollgate::quota::algorithm::window_end;
use tollgate::store::memory::MemoryQuota;
use tollgate::store::{Adjustment, Grant, QuotaStore, StoreError};

const RUNS: u64 = 2_000;
const STEPS: usize = 150;
const START: UnixTime = UnixTime::from_secs(1_000_000_020);

/// A message on its way to the store.
enum Message {
    Take { subject: String, limits: Vec<Limit>, wanted: u64, reply: Reply<Grant> },
    Adjust { subject: String, limits: Vec<Limit>, what: Adjustment, id: u64, reply: Reply<()> },
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// An answer on its way back.
type Answer = Box<dyn FnOnce() + Send>;

/// The network and the store behind it: nothing arrives before the run says so.
struct Network {
    store: MemoryQuota<Arc<ManualClock>>,
    to_store: Mutex<Vec<Message>>,
    to_gateways: Mutex<Vec<Answer>>,
    adjusted: Mutex<HashSet<u64>>,
}

#[async_trait]
impl QuotaStore for Network {
    async fn take(
        &self,
        subject: &str,
        limits: &[Limit],
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        let (reply, answer) = oneshot::channel();
        let (subject, limits) = (subject.to_owned(), limits.to_vec());
        self.to_store.lock().push(Message::Take { subject, limits, wanted, reply });
        answer.await.unwrap_or(Err(StoreError::Timeout(Duration::ZERO)))
    }

    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        id: u64,
    ) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let (subject, limits) = (subject.to_owned(), limits.to_vec());
        let what = adjustment.clone();
        self.to_store.lock().push(Message::Adjust { subject, limits, what, id, reply });
        answer.await.unwrap_or(Err(StoreError::Timeout(Duration::ZERO)))
    }
}

impl Network {
    /// The store acts on a message `times` times; its answer is then on its way.
    async fn arrive(&self, message: Message, times: u32) {
        match message {
            Message::Take { subject, limits, wanted, reply } => {
                let mut result = Err(StoreError::Open);
                for _ in 0..times {
                    result = self.store.take(&subject, &limits, wanted).await;
                }
                self.to_gateways.lock().push(Box::new(move || drop(reply.send(result))));
            }
            Message::Adjust { subject, limits, what, id, reply } => {
                for _ in 0..times {
                    if self.adjusted.lock().insert(id) {
                        self.store.adjust(&subject, &limits, &what, id).await.unwrap();
                    }
                }
                self.to_gateways.lock().push(Box::new(move || drop(reply.send(Ok(())))));
            }
        }
    }
}

struct Gateway {
    ledger: Arc<Ledger>,
    clock: Arc<ManualClock>,
    asking: Vec<(usize, JoinHandle<Result<Decision, StoreError>>)>,
}

struct Run {
    seed: u64,
    random: fastrand::Rng,
    /// Nothing is lost, doubled or crashed: then nothing may be wasted either.
    gentle: bool,
    network: Arc<Network>,
    store_clock: Arc<ManualClock>,
    gateways: Vec<Gateway>,
    subjects: Vec<(Arc<str>, Arc<[Limit]>)>,
    terms: Terms,
    /// Admissions by subject, limit and end of window.
    admitted: HashMap<(usize, usize, UnixTime), u64>,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let store_clock = Arc::new(ManualClock::new(START));
        let network = Arc::new(Network {
            store: MemoryQuota::new(Arc::clone(&store_clock), 100),
            to_store: Mutex::default(),
            to_gateways: Mutex::default(),
            adjusted: Mutex::default(),
        });
        let limits = |random: &mut fastrand::Rng| -> Arc<[Limit]> {
            let quota = [1, 3, 20, 500][random.usize(..4)];
            let second = Limit::per(quota, Duration::from_secs(1)).unwrap();
            let minute = Limit::per(quota * 5 / 2 + 1, Duration::from_secs(60)).unwrap();
            match random.u8(..3) {
                0 => [second].into(),
                1 => [minute].into(),
                _ => [second, minute].into(),
            }
        };
        let subjects = (0..random.usize(1..3))
            .map(|nth| (Arc::from(format!("s{nth}")), limits(&mut random)))
            .collect();
        let gateways = random.usize(1..5);
        let terms = Terms {
            sync: if random.bool() { Sync::Leased } else { Sync::Exact },
            on_failure: FailurePolicy::Deny,
            gateways: gateways as u32,
        };
        let mut run = Self {
            seed,
            gentle: random.u8(..4) == 0,
            random,
            network,
            store_clock,
            gateways: Vec::new(),
            subjects,
            terms,
            admitted: HashMap::new(),
            log: Vec::new(),
        };
        for _ in 0..gateways {
            let gateway = run.gateway();
            run.gateways.push(gateway);
        }
        run
    }

    fn gateway(&self) -> Gateway {
        let clock = Arc::new(ManualClock::new(self.store_clock.now()));
        let ledger = Ledger::new(Arc::clone(&self.network) as _, Arc::clone(&clock) as _, 100);
        Gateway { ledger: Arc::new(ledger), clock, asking: Vec::new() }
    }

    async fn step(&mut self) {
        let at = self.random.usize(..self.gateways.len());
        match self.random.u8(..100) {
            0..30 => {
                for _ in 0..self.random.usize(1..40) {
                    self.ask(at);
                    if self.random.bool() {
                        let by = self.random.u64(..3_000);
                        self.pass(Duration::from_micros(by));
                        self.settle().await;
                    }
                }
            }
            30..60 => self.move_message().await,
            60..75 => self.move_answer(),
            75..88 => {
                let most = [1_000, 100_000, 1_200_000][self.random.usize(..3)];
                let by = self.random.u64(..most);
                self.pass(Duration::from_micros(by));
            }
            88..93 => self.gateways[at].ledger.expire_leases(),
            93..95 => {
                // A gateway's wall clock is nobody's business.
                let wrong = START.as_secs() - 100_000 + self.random.u64(..200_000);
                self.gateways[at].clock.set(UnixTime::from_secs(wrong));
            }
            95..97 => {
                if let Some((_, asking)) = self.gateways[at].asking.pop() {
                    self.log.push(format!("gateway {at}: a client leaves"));
                    asking.abort();
                }
            }
            97..98 if !self.gentle => {
                self.log.push(format!("gateway {at} crashes"));
                let fresh = self.gateway();
                let crashed = std::mem::replace(&mut self.gateways[at], fresh);
                crashed.asking.iter().for_each(|(_, asking)| asking.abort());
            }
            _ => self.gateways[at].ledger.sweep(),
        }
        self.settle().await;
    }

    fn ask(&mut self, at: usize) {
        let which = self.random.usize(..self.subjects.len());
        let (subject, limits) = self.subjects[which].clone();
        let (ledger, terms) = (Arc::clone(&self.gateways[at].ledger), self.terms);
        let asking = tokio::spawn(async move { ledger.admit(&subject, &limits, terms).await });
        self.gateways[at].asking.push((which, asking));
    }

    /// One message arrives, out of order, perhaps twice, or is lost.
    async fn move_message(&mut self) {
        let message = {
            let mut waiting = self.network.to_store.lock();
            if waiting.is_empty() {
                return;
            }
            let nth = self.random.usize(..waiting.len());
            waiting.swap_remove(nth)
        };
        match self.random.u8(..10) {
            0 if !self.gentle => self.log.push("a message is lost".into()),
            1 if !self.gentle => {
                self.log.push("a message is doubled".into());
                self.network.arrive(message, 2).await;
            }
            _ => self.network.arrive(message, 1).await,
        }
    }

    /// One answer arrives, out of order, or is lost.
    fn move_answer(&mut self) {
        let mut waiting = self.network.to_gateways.lock();
        if waiting.is_empty() {
            return;
        }
        let nth = self.random.usize(..waiting.len());
        let answer = waiting.swap_remove(nth);
        if self.gentle || self.random.u8(..10) > 0 {
            answer();
        } else {
            self.log.push("an answer is lost".into());
        }
    }

    fn pass(&mut self, by: Duration) {
        self.store_clock.advance(by);
        self.gateways.iter().for_each(|gateway| gateway.clock.advance(by));
    }

    /// Lets every task run as far as it can, then counts who was admitted at this moment.
    async fn settle(&mut self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let now = self.store_clock.now();
        for gateway in &mut self.gateways {
            let (done, asking): (Vec<_>, Vec<_>) = std::mem::take(&mut gateway.asking)
                .into_iter()
                .partition(|(_, asking)| asking.is_finished());
            gateway.asking = asking;
            for (which, done) in done {
                let Ok(Ok(decision)) = done.await else { continue };
                for (at, limit) in self.subjects[which].1.iter().enumerate() {
                    if let Some(state) = decision.states.get(at) {
                        assert!(state.remaining <= limit.quota, "seed {}", self.seed);
                    }
                    if decision.admitted {
                        let window = (which, at, window_end(now, limit.window));
                        *self.admitted.entry(window).or_default() += 1;
                    }
                }
            }
        }
        for ((which, at, end), admitted) in &self.admitted {
            let limit = &self.subjects[*which].1[*at];
            assert!(
                *admitted <= limit.quota,
                "seed {}: {admitted} admitted of {} in the window of limit {at} of subject {which} that ends at {end:?}\n{:?}\n{}",
                self.seed,
                limit.quota,
                self.terms,
                self.log.join("\n"),
            );
        }
    }

    /// When everything has arrived and leases have gone back, the store has counted what was admitted
    /// in the windows still open, and not one request more.
    async fn nothing_is_wasted(&mut self) {
        for _ in 0..2_000 {
            let quiet = self.network.to_store.lock().is_empty()
                && self.network.to_gateways.lock().is_empty();
            let held: u64 = self.gateways.iter().map(|gateway| gateway.ledger.held()).sum();
            if quiet && held == 0 {
                break;
            }
            self.move_message().await;
            self.move_answer();
            self.pass(Duration::from_millis(5));
            self.gateways.iter().for_each(|gateway| {
                gateway.ledger.expire_leases();
                gateway.ledger.sweep();
            });
            self.settle().await;
        }
        let now = self.store_clock.now();
        for (which, (subject, limits)) in self.subjects.clone().into_iter().enumerate() {
            let grant = self.network.store.take(&subject, &limits, 0).await.unwrap();
            for (at, limit) in limits.iter().enumerate() {
                let window = (which, at, window_end(now, limit.window));
                let admitted = self.admitted.get(&window).copied().unwrap_or(0);
                // Whoever left with an answer in hand was counted and is not seen here.
                let left = self.log.iter().filter(|line| line.ends_with("leaves")).count() as u64;
                assert!(
                    grant.used[at] <= admitted + left,
                    "seed {}: {} counted, {admitted} admitted, {left} left",
                    self.seed,
                    grant.used[at],
                );
            }
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_window_admits_more_than_its_quota_and_nothing_is_wasted() {
    let seeds = match number("TOLLGATE_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOLLGATE_SIMULATION_RUNS").unwrap_or(RUNS),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut admitted, mut gentle) = (0, 0);
    for seed in seeds {
        // The ledger draws ids from the thread's generator.
        fastrand::seed(seed);
        runtime.block_on(async {
            let mut run = Run::new(seed);
            for _ in 0..STEPS {
                run.step().await;
            }
            if run.gentle {
                run.nothing_is_wasted().await;
                gentle += 1;
            }
            admitted += run.admitted.values().sum::<u64>();
        });
    }
    assert!(admitted > 0 && (gentle > 0 || number("TOLLGATE_SIMULATION_SEED").is_some()));
}
