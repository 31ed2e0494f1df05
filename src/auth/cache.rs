//! Answers of the store about tokens, kept for a while: records and revocations.
//!
//! The cache is bounded, and loads a token once at a time. Unknown tokens are remembered briefly and apart, so
//! that neither guesses nor a burst turn into a burst at the store or drive out known records. A request with a
//! token in use never waits, because the cache renews an answer before its lifetime ends. The store tells which
//! records change: the cache forgets a changed record, and asks for every record again when it may have missed a
//! change. While the store is away, known records stay usable for a bounded time; no other answer does.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use log::warn;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::OnceCell;

use super::changes::Changes;
use crate::base::clock::{AtomicMoment, Clock, Moment};
use crate::base::task::detach;
use crate::record::key::public_id;
use crate::record::{RecordError, TokenRecord};
use crate::store::{RecordReader, StoreError};

/// How long a token stays unknown, or its record unreadable, without another question to the store.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// Most unknown tokens that are remembered.
const UNKNOWN_ENTRIES: usize = 10_000;

/// The part of its lifetime after which an answer in use is renewed.
const REFRESH_AT: f64 = 0.8;

/// The pause after a failed renewal, in which no answer is renewed ahead of need.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// How the cache answered a look-up, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// Answered from memory.
    Hit,
    /// Asked the store.
    Miss,
    /// Answered from memory although too old, because the store is away.
    Stale,
}

/// Bounds of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRules {
    /// How long a record is used without asking again, if the store tells of no change.
    pub ttl: Duration,
    /// Most records that are kept; a record larger than a kibibyte counts as several.
    pub entries: usize,
    /// How much longer a record is used while the store is away.
    pub max_stale: Duration,
}

/// A question to the store about the id of a token.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The content of an answer.
    type Value: Clone + Send + Sync + 'static;

    /// Asks the store about `id`.
    ///
    /// # Errors
    /// [`StoreError`] when it did not answer.
    async fn ask(&self, id: &Arc<str>) -> Result<Answer<Self::Value>, StoreError>;

    /// The size of the answer, in bytes, as far as it differs between answers.
    fn bytes(value: &Self::Value) -> usize;

    /// Whether the store knows the id. Any client can make up unknown ids, so the answers about them are kept
    /// apart and briefly, and are not used while the store is away.
    fn is_known(value: &Self::Value) -> bool;
}

/// An answer of the store.
pub struct Answer<V> {
    /// The content.
    pub value: V,
    /// The time from the question on after which the answer is wrong; `None` where the store names no such time.
    pub expires_in: Option<Duration>,
}

/// Why a token has no record that can be used.
#[derive(Clone, Debug)]
pub enum NoRecord {
    /// The store has no record.
    Unknown,
    /// The store has a record that cannot be read.
    Unreadable(Arc<RecordError>),
}

/// The records of tokens.
pub struct Records(pub Arc<dyn RecordReader>);

#[async_trait]
impl Source for Records {
    type Value = Result<Arc<TokenRecord>, NoRecord>;

    async fn ask(&self, id: &Arc<str>) -> Result<Answer<Self::Value>, StoreError> {
        let (value, expires_in) = match self.0.read(id).await {
            Ok(Some(kept)) => (TokenRecord::read(id, &kept.record), kept.expires_in),
            Ok(None) => {
                return Ok(Answer { value: Err(NoRecord::Unknown), expires_in: None });
            }
            // The store has answered, and other records can be read.
            Err(StoreError::Unreadable(problem)) => {
                (Err(RecordError::new("record", problem)), None)
            }
            Err(error) => return Err(error),
        };
        let value = value.map(Arc::new).map_err(|error| {
            let id = public_id(id);
            warn!("token refused: the record of {id} cannot be read: {error}");
            NoRecord::Unreadable(Arc::new(error))
        });
        Ok(Answer { value, expires_in })
    }

    fn bytes(record: &Self::Value) -> usize {
        record.as_ref().map_or(0, |record| record.bytes())
    }

    fn is_known(record: &Self::Value) -> bool {
        record.is_ok()
    }
}

/// The revocations of tokens that need no record.
pub struct Revocations(pub Arc<dyn RecordReader>);

#[async_trait]
impl Source for Revocations {
    type Value = bool;

    async fn ask(&self, id: &Arc<str>) -> Result<Answer<bool>, StoreError> {
        Ok(Answer { value: self.0.is_revoked(id).await?, expires_in: None })
    }

    fn bytes(_: &bool) -> usize {
        0
    }

    /// Only verified tokens are asked about.
    fn is_known(_: &bool) -> bool {
        true
    }
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    loaded_at: Moment,
    /// When the value is wrong at the latest, by the store's own word.
    expires_at: Moment,
    /// The era in which the value was loaded.
    era: u64,
}

/// How long a memo is used: the cache must see now and then that the record is in use, or would drop it.
const MEMO_LIFETIME: Duration = Duration::from_secs(10);

/// The record that was found for an id, kept with a verified token, so that most requests need no look-up. It is
/// used for a short time, and only until the store tells of a change; and it keeps no record alive.
#[derive(Debug, Default)]
pub struct Memo(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    record: Weak<TokenRecord>,
    until: Moment,
    /// The counter for the changes of the id, and its count before the record was looked up.
    counter: u8,
    changes: u64,
}

/// The size in bytes from which an entry counts as several.
const ENTRY_BYTES: usize = 1024;

struct Size<S>(PhantomData<S>);

impl<S> Clone for Size<S> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<S: Source> Weighter<Arc<str>, Entry<S::Value>> for Size<S> {
    fn weight(&self, _: &Arc<str>, entry: &Entry<S::Value>) -> u64 {
        1 + (S::bytes(&entry.value) / ENTRY_BYTES) as u64
    }
}

type Load<V> = Arc<OnceCell<Result<Entry<V>, StoreError>>>;

/// The cache in front of a [`Source`].
pub struct StoreCache<S: Source> {
    source: S,
    clock: Arc<dyn Clock>,
    rules: CacheRules,
    known: Cache<Arc<str>, Entry<S::Value>, Size<S>>,
    unknown: Cache<Arc<str>, Entry<S::Value>>,
    loads: Mutex<HashMap<Arc<str>, Load<S::Value>>>,
    changes: Changes,
    /// When answers are renewed ahead of need again, after a renewal failed.
    renewals_resume_at: AtomicMoment,
    on_lookup: fn(CacheOutcome),
}

/// Records of tokens.
pub type RecordCache = StoreCache<Records>;

/// Revocations of tokens that need no record.
pub type RevocationCache = StoreCache<Revocations>;

impl<S: Source> StoreCache<S> {
    /// A cache over `source`; `on_lookup` is told how each look-up was answered.
    pub fn new(
        source: S,
        clock: Arc<dyn Clock>,
        rules: CacheRules,
        on_lookup: fn(CacheOutcome),
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            clock,
            rules,
            known: Cache::with_weighter(rules.entries, rules.entries as u64, Size(PhantomData)),
            unknown: Cache::new(rules.entries.min(UNKNOWN_ENTRIES)),
            loads: Mutex::default(),
            changes: Changes::new(),
            renewals_resume_at: AtomicMoment::default(),
            on_lookup,
        })
    }

    /// Forgets the answer about `id`, which has changed.
    pub fn forget(&self, id: &str) {
        // The lock under which loads keep their answers: an answer is either removed here, or its load sees the count.
        let mut loads = self.loads.lock();
        self.known.remove(id);
        self.unknown.remove(id);
        // Counted after the removal: a look-up that found the entry just before must not make a memo that holds.
        self.changes.counter(id).fetch_add(1, Ordering::AcqRel);
        // A request that asks from here on must not be served by a load that began before.
        loads.remove(id);
    }

    /// Notes that any id may have changed: each is asked about again before its answer is used, unless the
    /// store is away.
    pub fn doubt(&self) {
        self.changes.end_era(self.clock.monotonic(), self.rules.max_stale);
        self.loads.lock().clear();
    }

    /// The store's answer about `id`, from memory where that is possible.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer and no earlier answer may stand in.
    pub async fn get(self: &Arc<Self>, id: &Arc<str>) -> Result<S::Value, StoreError> {
        match self.find(id) {
            Some(entry) => Ok(entry.value),
            None => self.fetch(id).await,
        }
    }

    /// The store's answer about `id`, for which [`recall`](RecordCache::recall) found no answer in memory.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn fetch(&self, id: &Arc<str>) -> Result<S::Value, StoreError> {
        match self.load(id).await {
            Ok(entry) => {
                (self.on_lookup)(CacheOutcome::Miss);
                Ok(entry.value)
            }
            Err(error) => match self.known.get(id).filter(|entry| self.may_be_stale(entry)) {
                Some(entry) => {
                    (self.on_lookup)(CacheOutcome::Stale);
                    Ok(entry.value)
                }
                None => Err(error),
            },
        }
    }

    /// Whether a record of `id` is in memory, however old it is.
    pub fn was_known(&self, id: &Arc<str>) -> bool {
        self.known.peek(id).is_some()
    }

    /// The answer in memory about `id`.
    fn find(self: &Arc<Self>, id: &Arc<str>) -> Option<Entry<S::Value>> {
        let entry = self.known.get(id).or_else(|| self.unknown.get(id))?;
        let (age, lifetime) = (self.age(&entry), self.lifetime(&entry));
        if age >= lifetime || entry.era != self.changes.era() {
            return None;
        }
        (self.on_lookup)(CacheOutcome::Hit);
        if age > lifetime.mul_f64(REFRESH_AT) && S::is_known(&entry.value) {
            self.refresh(id);
        }
        Some(entry)
    }

    /// Asks about `id`, which is in use, before its answer's lifetime ends, so that no request waits for the store.
    fn refresh(self: &Arc<Self>, id: &Arc<str>) {
        let now = self.clock.monotonic();
        if now < self.renewals_resume_at.load() || self.loads.lock().contains_key(id) {
            return;
        }
        let (cache, id) = (Arc::clone(self), Arc::clone(id));
        detach(async move {
            if cache.load(&id).await.is_err() {
                cache.renewals_resume_at.store(cache.clock.monotonic() + RENEWAL_PAUSE);
            }
        });
    }

    /// Whether an answer may still be used while the store is away: `max_stale` counts from when the answer was
    /// last known to be right.
    fn may_be_stale(&self, entry: &Entry<S::Value>) -> bool {
        let expired = entry.loaded_at + self.rules.ttl;
        let since = match self.changes.end_of(entry.era) {
            _ if entry.era == self.changes.era() => expired,
            Some(ended) => ended.min(expired),
            None => return false,
        };
        let now = self.clock.monotonic();
        now - since < self.rules.max_stale && now < entry.expires_at
    }

    fn age(&self, entry: &Entry<S::Value>) -> Duration {
        self.clock.monotonic() - entry.loaded_at
    }

    /// How long after its load the entry may be used without asking again.
    fn lifetime(&self, entry: &Entry<S::Value>) -> Duration {
        let ttl = match S::is_known(&entry.value) {
            true => self.rules.ttl,
            false => NEGATIVE_TTL.min(self.rules.ttl),
        };
        ttl.min(entry.expires_at - entry.loaded_at)
    }

    /// Loads once for all requests that ask meanwhile. If the request that loads goes away, the next request loads.
    async fn load(&self, id: &Arc<str>) -> Result<Entry<S::Value>, StoreError> {
        let load = Arc::clone(self.loads.lock().entry(Arc::clone(id)).or_default());
        let _forget = ForgetLoad { loads: &self.loads, id, load: &load };
        load.get_or_init(|| self.ask(id)).await.clone()
    }

    async fn ask(&self, id: &Arc<str>) -> Result<Entry<S::Value>, StoreError> {
        // A change at the store from here on may not be in the answer, so the age counts from the question.
        let loaded_at = self.clock.monotonic();
        let era = self.changes.era();
        let counter = self.changes.counter(id);
        let changes = counter.load(Ordering::Acquire);
        let Answer { value, expires_in } = self.source.ask(id).await?;
        let expires_at = expires_in.map_or(Moment::NEVER, |left| loaded_at + left);
        let entry = Entry { value, loaded_at, expires_at, era };
        // An id that changed while it was read may have its old answer, which is not kept.
        let _loads = self.loads.lock();
        if counter.load(Ordering::Acquire) == changes {
            if S::is_known(&entry.value) {
                self.known.insert(Arc::clone(id), entry.clone());
                self.unknown.remove(id);
            } else {
                self.unknown.insert(Arc::clone(id), entry.clone());
                self.known.remove(id);
            }
        }
        Ok(entry)
    }
}

impl RecordCache {
    /// The answer in memory about `id`: from its `memo`, where there is one. `None` when the store must be asked,
    /// by [`fetch`](StoreCache::fetch).
    pub fn recall(
        self: &Arc<Self>,
        id: &Arc<str>,
        memo: Option<&Memo>,
    ) -> Option<Result<Arc<TokenRecord>, NoRecord>> {
        let Some(memo) = memo else { return self.find(id).map(|entry| entry.value) };
        if let Some(record) = self.noted(memo) {
            (self.on_lookup)(CacheOutcome::Hit);
            return Some(Ok(record));
        }
        let counter = self.changes.counter_of(id);
        let changes = self.changes.count(counter);
        let entry = self.find(id)?;
        if let Ok(record) = &entry.value {
            // A renewal starts with a look-up in the cache, so the memo must end before.
            let renewal = entry.loaded_at + self.lifetime(&entry).mul_f64(REFRESH_AT);
            let until = renewal.min(self.clock.monotonic() + MEMO_LIFETIME);
            let noted = Noted { record: Arc::downgrade(record), until, counter, changes };
            *memo.0.lock() = noted;
        }
        Some(entry.value)
    }

    /// The record of `memo`, if it still holds.
    fn noted(&self, memo: &Memo) -> Option<Arc<TokenRecord>> {
        let Noted { record, until, counter, changes } = &*memo.0.lock();
        let unchanged = self.changes.count(*counter) == *changes;
        let holds = unchanged && self.clock.monotonic() < *until;
        holds.then(|| record.upgrade()).flatten()
    }
}

/// Takes a load off the list when the last request that waits for it has gone.
struct ForgetLoad<'a, V> {
    loads: &'a Mutex<HashMap<Arc<str>, Load<V>>>,
    id: &'a Arc<str>,
    load: &'a Load<V>,
}

impl<V> Drop for ForgetLoad<'_, V> {
    fn drop(&mut self) {
        let mut loads = self.loads.lock();
        let ours = loads.get(self.id).is_some_and(|listed| Arc::ptr_eq(listed, self.load));
        // Two references: the list's and this request's. A finished load must not serve later requests.
        if ours && (self.load.initialized() || Arc::strong_count(self.load) <= 2) {
            loads.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::auth::changes::MAX_ERAS;
    use crate::base::clock::{ManualClock, UnixTime};
    use crate::record::RateRule;
    use crate::store::{KeptRecord, StoredRecord};

    #[derive(Default)]
    struct Scripted {
        asked: AtomicU64,
        answer: Mutex<Option<Result<Option<StoredRecord>, StoreError>>>,
        expires_in: Mutex<Option<Duration>>,
    }

    impl Scripted {
        fn answers(&self, answer: Result<Option<&str>, StoreError>) {
            let answer = answer.map(|text| text.map(|text| StoredRecord::Json(text.into())));
            *self.answer.lock() = Some(answer);
        }
    }

    #[async_trait]
    impl RecordReader for Scripted {
        async fn is_revoked(&self, _id: &str) -> Result<bool, StoreError> {
            unreachable!("records are asked for")
        }

        async fn read(&self, _id: &str) -> Result<Option<KeptRecord>, StoreError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            let answer = self.answer.lock().clone().unwrap()?;
            let expires_in = *self.expires_in.lock();
            Ok(answer.map(|record| KeptRecord { record, expires_in }))
        }
    }

    fn cache() -> (Arc<Scripted>, Arc<ManualClock>, Arc<RecordCache>) {
        let store = Arc::new(Scripted::default());
        let clock = Arc::new(ManualClock::new(UnixTime::from_secs(1)));
        let rules = CacheRules {
            ttl: Duration::from_secs(10),
            entries: 100,
            max_stale: Duration::from_secs(5),
        };
        let cache = RecordCache::new(Records(store.clone()), clock.clone(), rules, |_| {});
        (store, clock, cache)
    }

    #[tokio::test]
    async fn a_record_is_read_once_in_its_lifetime() {
        let (store, clock, cache) = cache();
        store.answers(Ok(Some("{}")));
        let id: Arc<str> = "k".into();
        for _ in 0..3 {
            assert!(cache.get(&id).await.unwrap().is_ok());
        }
        assert_eq!(store.asked.load(Ordering::SeqCst), 1);
        clock.advance(Duration::from_secs(10));
        store.answers(Ok(None));
        assert!(cache.get(&id).await.unwrap().is_err());
        assert_eq!(store.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn unknown_and_unreadable_tokens_are_remembered_briefly() {
        let (store, clock, cache) = cache();
        let id: Arc<str> = "k".into();
        for answer in [None, Some("[]"), Some(r#"{"rate_limit":0}"#)] {
            store.answers(Ok(answer));
            let before = store.asked.load(Ordering::SeqCst);
            assert!(cache.get(&id).await.unwrap().is_err());
            assert!(cache.get(&id).await.unwrap().is_err());
            assert_eq!(store.asked.load(Ordering::SeqCst), before + 1);
            clock.advance(NEGATIVE_TTL);
        }
    }

    #[tokio::test]
    async fn no_record_is_used_longer_than_the_store_keeps_it() {
        let (store, clock, cache) = cache();
        let id: Arc<str> = "k".into();
        // (the life of the key in the store, how long the record is used, and while the store is away)
        for (life, used, stale) in [(3, 3, 3), (10, 10, 10), (12, 10, 12), (60, 10, 15)] {
            store.answers(Ok(Some("{}")));
            *store.expires_in.lock() = Some(Duration::from_secs(life));
            cache.forget("k");
            let memo = Memo::default();
            cache.get(&id).await.unwrap().unwrap();
            store.answers(Err(StoreError::Open));
            for second in 0..20 {
                let found = cache.recall(&id, Some(&memo));
                assert_eq!(found.is_some(), second < used, "{life} s: recalled after {second} s");
                let found = cache.get(&id).await;
                assert_eq!(found.is_ok(), second < stale, "{life} s: used after {second} s");
                clock.advance(Duration::from_secs(1));
            }
        }
    }

    #[tokio::test]
    async fn an_unreadable_value_is_the_fault_of_its_token_alone() {
        let (store, _, cache) = cache();
        store.answers(Err(StoreError::Unreadable("the field `note` is not UTF-8".into())));
        match cache.get(&"k".into()).await.unwrap() {
            Err(NoRecord::Unreadable(error)) => {
                assert_eq!(error.to_string(), "record: the field `note` is not UTF-8");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn many_requests_at_once_cost_one_load() {
        let (store, _, cache) = cache();
        store.answers(Ok(Some("{}")));
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let cache = Arc::clone(&cache);
                tokio::spawn(async move { cache.get(&"k".into()).await.unwrap().is_ok() })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap());
        }
        assert_eq!(store.asked.load(Ordering::SeqCst), 1);
        assert!(cache.loads.lock().is_empty());
    }

    #[tokio::test]
    async fn an_outage_leaves_known_records_for_a_bounded_time() {
        let (store, clock, cache) = cache();
        let (known, unknown, gone): (Arc<str>, Arc<str>, Arc<str>) =
            ("k".into(), "u".into(), "g".into());
        store.answers(Ok(Some("{}")));
        cache.get(&known).await.unwrap().unwrap();
        store.answers(Ok(None));
        cache.get(&gone).await.unwrap().unwrap_err();
        clock.advance(Duration::from_secs(10));
        store.answers(Err(StoreError::Open));
        assert!(cache.get(&known).await.unwrap().is_ok());
        assert!(cache.get(&unknown).await.is_err());
        assert!(
            cache.get(&gone).await.is_err(),
            "an unknown token is not remembered through an outage"
        );
        clock.advance(Duration::from_secs(5));
        assert!(cache.get(&known).await.is_err());
        store.answers(Ok(Some("{}")));
        assert!(cache.get(&known).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_changed_record_is_read_again_even_if_it_was_being_read() {
        let (store, _, cache) = cache();
        store.answers(Ok(Some("{}")));
        let id: Arc<str> = "k".into();
        assert!(cache.get(&id).await.unwrap().is_ok());
        store.answers(Ok(None));
        assert!(cache.get(&id).await.unwrap().is_ok(), "the store told of no change");
        cache.forget("k");
        assert!(cache.get(&id).await.unwrap().is_err());

        for missed in [false, true] {
            store.answers(Ok(Some("{}")));
            cache.forget("k");
            let reading = tokio::spawn({
                let (cache, id) = (Arc::clone(&cache), Arc::clone(&id));
                async move { cache.get(&id).await.unwrap().is_ok() }
            });
            tokio::task::yield_now().await;
            // The answer is on its way.
            if missed {
                cache.doubt()
            } else {
                cache.forget("k")
            }
            assert!(reading.await.unwrap());
            store.answers(Ok(None));
            assert!(
                cache.get(&id).await.unwrap().is_err(),
                "a record that was read during a change is not kept"
            );
        }
    }

    #[tokio::test]
    async fn a_memo_spares_look_ups_and_keeps_no_record_alive() {
        let (store, clock, cache) = cache();
        store.answers(Ok(Some("{}")));
        let (id, memo): (Arc<str>, _) = ("k".into(), Memo::default());
        let asked = || store.asked.load(Ordering::SeqCst);
        let recall = async || match cache.recall(&id, Some(&memo)) {
            Some(record) => record,
            None => cache.fetch(&id).await.unwrap(),
        };
        for _ in 0..2 {
            assert!(cache.noted(&memo).is_none());
            assert!(recall().await.is_ok());
        }
        let held = recall().await;
        cache.known.remove(&id);
        assert!(recall().await.is_ok());
        assert_eq!(asked(), 1);
        drop(held);
        assert!(recall().await.is_ok());
        assert_eq!(asked(), 2, "the record is gone");

        let forgotten: [fn(&RecordCache, &ManualClock); 3] = [
            |cache, _| cache.forget("k"),
            |cache, _| cache.doubt(),
            |_, clock| clock.advance(Duration::from_secs(9)),
        ];
        for forget in forgotten {
            // Loaded first, then found.
            for _ in 0..2 {
                assert!(recall().await.is_ok());
            }
            assert!(cache.noted(&memo).is_some());
            forget(&cache, &clock);
            assert!(cache.noted(&memo).is_none());
        }
    }

    #[tokio::test]
    async fn a_change_discards_only_the_loads_under_way() {
        let (store, _, cache) = cache();
        store.answers(Ok(Some("{}")));
        let ids = (0..).map(|nth: u32| Arc::<str>::from(nth.to_string()));
        let mut together = ids.filter(|id| cache.changes.counter_of(id) == 0);
        let mut next = || together.next().unwrap();
        let (changed, under_way, later) = (next(), next(), next());
        let mut first = Box::pin(cache.get(&under_way));
        assert!(first.as_mut().now_or_never().is_none());
        cache.forget(&changed);
        let mut second = Box::pin(cache.get(&later));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
        assert!(cache.find(&under_way).is_none());
        assert!(cache.find(&later).is_some());
    }

    #[test]
    fn no_request_is_served_a_record_from_before_a_change_that_was_told() {
        const CHANGES: u64 = 1_000;
        let (store, _, cache) = cache();
        let told = AtomicU64::new(0);
        let change = |nth: u64| {
            store.answers(Ok(Some(&format!(r#"{{"rate_limit":{nth}}}"#))));
            cache.forget("k");
            told.store(nth, Ordering::SeqCst);
        };
        change(1);
        let ask = || {
            let (id, memo): (Arc<str>, _) = ("k".into(), Memo::default());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut least = 1;
            while least < CHANGES {
                least = told.load(Ordering::SeqCst);
                let record = cache
                    .recall(&id, Some(&memo))
                    .unwrap_or_else(|| runtime.block_on(cache.fetch(&id)).unwrap())
                    .unwrap();
                let Some(RateRule::Bare(nth)) = record.grant.rate else { panic!("{record:?}") };
                assert!(nth >= least, "{nth} after {least}");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(ask);
            }
            for nth in 2..=CHANGES {
                change(nth);
                // Time for a record to be read, found and noted, some of the time.
                for _ in 0..fastrand::u32(..20) {
                    std::thread::yield_now();
                }
            }
        });
    }

    #[tokio::test]
    async fn records_in_doubt_are_used_while_the_store_is_away_and_not_for_ever() {
        let (store, clock, cache) = cache();
        store.answers(Ok(Some("{}")));
        let id: Arc<str> = "k".into();
        cache.get(&id).await.unwrap().unwrap();
        store.answers(Err(StoreError::Open));
        clock.advance(Duration::from_secs(1));
        cache.doubt();
        clock.advance(Duration::from_secs(4));
        assert!(cache.get(&id).await.unwrap().is_ok());
        for _ in 0..5 * MAX_ERAS {
            cache.doubt();
        }
        assert!(cache.get(&id).await.unwrap().is_ok(), "however often it is doubted");
        clock.advance(Duration::from_secs(1));
        assert!(cache.get(&id).await.is_err(), "five seconds since the first doubt");
        for _ in 0..5 * MAX_ERAS {
            cache.doubt();
        }
        assert!(cache.get(&id).await.is_err());
        assert!(cache.changes.remembered_eras() <= MAX_ERAS);
        store.answers(Ok(None));
        assert!(cache.get(&id).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_record_in_use_is_renewed_before_a_request_has_to_wait() {
        let (store, clock, cache) = cache();
        store.answers(Ok(Some("{}")));
        let id: Arc<str> = "k".into();
        cache.get(&id).await.unwrap().unwrap();
        let asked = || store.asked.load(Ordering::SeqCst);
        let get_now = || cache.get(&id).now_or_never().expect("no request waits").unwrap();
        clock.advance(Duration::from_secs(8));
        get_now().unwrap();
        tokio::task::yield_now().await;
        assert_eq!(asked(), 1, "it is young");
        clock.advance(Duration::from_millis(500));
        store.answers(Err(StoreError::Open));
        for _ in 0..5 {
            get_now().unwrap();
            while cache.loads.lock().contains_key(&id) || asked() == 1 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(asked(), 2, "a store that fails is left alone for a second");
        clock.advance(Duration::from_secs(1));
        store.answers(Ok(Some(r#"{"disabled":true}"#)));
        assert!(!get_now().unwrap().disabled);
        while asked() == 2 || cache.loads.lock().contains_key(&id) {
            tokio::task::yield_now().await;
        }
        assert!(get_now().unwrap().disabled, "renewed");
        clock.advance(Duration::from_secs(5));
        assert!(get_now().unwrap().disabled, "and good for its whole time");
        assert_eq!(asked(), 3);
    }

    #[tokio::test]
    async fn guesses_do_not_drive_out_known_records() {
        let (store, _, cache) = cache();
        store.answers(Ok(Some("{}")));
        let known: Vec<Arc<str>> = (0..50).map(|nth| format!("known-{nth}").into()).collect();
        for id in &known {
            cache.get(id).await.unwrap().unwrap();
        }
        store.answers(Ok(None));
        for nth in 0..5_000 {
            assert!(cache.get(&format!("guess-{nth}").into()).await.unwrap().is_err());
        }
        assert!(cache.unknown.len() <= 100 && cache.loads.lock().is_empty());
        let asked = store.asked.load(Ordering::SeqCst);
        for id in &known {
            assert!(cache.get(id).await.unwrap().is_ok());
        }
        assert_eq!(store.asked.load(Ordering::SeqCst), asked);
    }

    #[tokio::test]
    async fn large_records_take_the_place_of_several() {
        let (store, _, cache) = cache();
        let routes: Vec<String> = (0..200).map(|nth| format!("/{nth:0200}")).collect();
        let record = serde_json::json!({ "allowed_routes": routes }).to_string();
        store.answers(Ok(Some(&record)));
        for nth in 0..200 {
            cache.get(&format!("large-{nth}").into()).await.unwrap().unwrap();
        }
        assert!(
            cache.known.len() <= 3,
            "{} records of 45 KiB in the place of 100",
            cache.known.len()
        );
    }
}
