//! The promises of a store about records: reading, writing, importing, listing and reporting changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tollgate::base::clock::{Clock as _, SystemClock, UnixTime};
use tollgate::store::{
    Imported, NewRecord, PageMark, RecordChange, RecordLister, RecordReader, RecordStore,
    RecordWatch, RecordWriter, StoreError, StoredRecord,
};

use super::until_async;

/// Later than any test runs.
const LATER: UnixTime = UnixTime::from_secs(4_000_000_000);

/// Long ago.
const PAST: UnixTime = UnixTime::from_secs(1);

/// Reads, writes and lists.
pub async fn keeps_records(store: &dyn RecordStore) {
    reads_what_was_written(store).await;
    forgets_what_has_expired(store).await;
    imports_whole_records(store).await;
    shortens_and_never_lengthens(store).await;
    revokes_for_a_while(store).await;
    lists_every_record(store).await;
}

fn record(id: &str, fields: &[(&str, &str)], expires_at: Option<UnixTime>) -> NewRecord {
    let fields = fields.iter().map(|&(name, text)| (name.into(), text.into())).collect();
    NewRecord { id: id.into(), fields, expires_at }
}

fn stored(fields: &[(&str, &str)]) -> Option<StoredRecord> {
    Some(StoredRecord::Fields(fields.iter().map(|&(k, v)| (k.into(), v.into())).collect()))
}

async fn reads_what_was_written(store: &dyn RecordStore) {
    let reader: &dyn RecordReader = store;
    let writer: &dyn RecordWriter = store;
    for id in ["a", "with space", "ü:1", "{braces}"] {
        assert_eq!(reader.record(id).await.unwrap(), None, "{id}");
        assert!(!writer.delete(id).await.unwrap(), "{id}");
        let fields = [("plan", "basic"), ("name", "x\ny \u{fc}"), ("empty", "")];
        writer.put(&record(id, &fields, None)).await.unwrap();
        assert_eq!(reader.record(id).await.unwrap(), stored(&fields), "{id}");
        writer.put(&record(id, &[("plan", "premium")], Some(LATER))).await.unwrap();
        let replaced = reader.record(id).await.unwrap();
        assert_eq!(replaced, stored(&[("plan", "premium")]), "nothing of the old record is left");
        assert!(!reader.is_revoked(id).await.unwrap());
        assert!(writer.delete(id).await.unwrap());
        assert!(!writer.delete(id).await.unwrap());
        assert_eq!(reader.record(id).await.unwrap(), None);
    }
}

async fn forgets_what_has_expired(store: &dyn RecordStore) {
    store.put(&record("past", &[("plan", "basic")], None)).await.unwrap();
    store.put(&record("past", &[("plan", "basic")], Some(PAST))).await.unwrap();
    assert_eq!(store.record("past").await.unwrap(), None);
    let soon = SystemClock::default().now() + Duration::from_millis(1_500);
    store.put(&record("soon", &[("plan", "basic")], Some(soon))).await.unwrap();
    let left = store.kept_for("soon").await.unwrap().unwrap();
    assert!(left <= Duration::from_millis(1_500), "{left:?}");
    until_async("the record has expired", async || store.record("soon").await.unwrap().is_none())
        .await;
    assert_eq!(store.kept_for("soon").await.unwrap(), None);
    assert!(!store.delete("soon").await.unwrap());
    store.put(&record("lasting", &[("plan", "basic")], None)).await.unwrap();
    assert_eq!(store.kept_for("lasting").await.unwrap(), None);
    assert!(store.delete("lasting").await.unwrap());
}

async fn imports_whole_records(store: &dyn RecordStore) {
    let basic = [("plan", "basic"), ("name", "n")];
    let import = async |record: NewRecord, replace: bool| {
        let mut outcomes = store.import(&[record], replace).await;
        assert_eq!(outcomes.len(), 1);
        outcomes.pop().unwrap().unwrap()
    };
    assert!(store.import(&[], false).await.is_empty());
    assert_eq!(import(record("i", &basic, Some(PAST)), true).await, Imported::Expired);
    assert_eq!(store.record("i").await.unwrap(), None);
    assert_eq!(import(record("i", &basic, None), false).await, Imported::Written);
    assert_eq!(import(record("i", &basic, None), true).await, Imported::Unchanged);
    for other in [&[("plan", "premium")][..], &basic[..1], &[("plan", "basic"), ("name", "m")]] {
        assert_eq!(import(record("i", other, None), false).await, Imported::Differs);
        assert_eq!(store.record("i").await.unwrap(), stored(&basic));
    }
    // The record exists already, and its expiry is corrected.
    assert_eq!(import(record("i", &basic, Some(LATER)), false).await, Imported::Unchanged);
    assert!(store.kept_for("i").await.unwrap().is_some());
    assert_eq!(import(record("i", &basic, None), false).await, Imported::Unchanged);
    assert_eq!(store.kept_for("i").await.unwrap(), None);
    assert_eq!(import(record("i", &[("x", "y")], Some(PAST)), true).await, Imported::Expired);
    assert_eq!(store.record("i").await.unwrap(), stored(&basic));
    assert_eq!(import(record("i", &[("x", "y")], Some(LATER)), true).await, Imported::Replaced);
    assert_eq!(store.record("i").await.unwrap(), stored(&[("x", "y")]));
    assert!(store.kept_for("i").await.unwrap().is_some());

    // As many outcomes as records, in their order.
    let many: Vec<_> =
        (0..300).map(|nth| record(&format!("import-{nth}"), &[("n", "1")], None)).collect();
    for nth in [7, 130, 299] {
        store.put(&record(&format!("import-{nth}"), &[("n", "2")], None)).await.unwrap();
    }
    let outcomes = store.import(&many, false).await;
    let expected = (0..300).map(|nth| match nth {
        7 | 130 | 299 => Imported::Differs,
        _ => Imported::Written,
    });
    assert!(outcomes.into_iter().map(Result::unwrap).eq(expected));
    for written in many.iter().map(|record| record.id.as_str()).chain(["i"]) {
        assert!(store.delete(written).await.unwrap());
    }
}

async fn shortens_and_never_lengthens(store: &dyn RecordStore) {
    let now = SystemClock::default().now();
    let seconds = Duration::from_secs;
    let expiring = |text: &str| stored(&[("plan", "basic"), ("expires_at", text)]).unwrap();
    store.put(&record("s", &[("plan", "basic")], None)).await.unwrap();
    let before = store.record("s").await.unwrap().unwrap();
    let shorten = async |at: UnixTime, before: &StoredRecord, after: &StoredRecord| {
        store.shorten("s", at, before, after).await.unwrap()
    };
    assert!(shorten(now + seconds(100), &before, &expiring("in 100")).await);
    assert_eq!(store.record("s").await.unwrap(), Some(expiring("in 100")));
    let left = store.kept_for("s").await.unwrap().unwrap();
    assert!(left > seconds(50) && left <= seconds(100), "{left:?}");

    assert!(!shorten(now + seconds(50), &before, &expiring("in 50")).await, "it has changed");
    assert_eq!(store.record("s").await.unwrap(), Some(expiring("in 100")));
    assert!(shorten(LATER, &expiring("in 100"), &expiring("later")).await);
    let left = store.kept_for("s").await.unwrap().unwrap();
    assert!(left <= seconds(100), "the record lives longer than it did: {left:?}");
    assert!(shorten(PAST, &expiring("later"), &expiring("now")).await);
    assert_eq!(store.record("s").await.unwrap(), None);
    assert!(!shorten(LATER, &expiring("now"), &expiring("later")).await, "there is no record");
    assert_eq!(store.record("s").await.unwrap(), None);
}

async fn revokes_for_a_while(store: &dyn RecordStore) {
    store.put(&record("r", &[("plan", "basic")], None)).await.unwrap();
    store.revoke("r", Duration::from_secs(1)).await.unwrap();
    assert!(store.is_revoked("r").await.unwrap());
    assert!(store.record("r").await.unwrap().is_some(), "a record is another matter");
    store.revoke("long", Duration::from_secs(1_000_000)).await.unwrap();
    until_async("the revocation has ended", async || !store.is_revoked("r").await.unwrap()).await;
    assert!(store.is_revoked("long").await.unwrap());
    assert!(store.delete("r").await.unwrap());
}

/// The ids on all pages, and how many pages there were.
async fn list(lister: &dyn RecordLister, prefix: &str, size: usize) -> (BTreeSet<String>, usize) {
    let (mut ids, mut pages) = (BTreeSet::new(), 0);
    let mut next = Some(lister.first_page());
    while let Some(mark) = next {
        // A mark goes through the hands of people and programs as text.
        let mark: PageMark = mark.to_string().parse().unwrap();
        let page = lister.page(&mark, prefix, size).await.unwrap();
        ids.extend(page.ids);
        next = page.next;
        pages += 1;
    }
    (ids, pages)
}

async fn lists_every_record(store: &dyn RecordStore) {
    assert_eq!(list(store, "", 100).await.0, BTreeSet::new());
    let many: Vec<_> =
        (0..1_200).map(|nth| record(&format!("list{nth}"), &[("n", "1")], None)).collect();
    assert!(store.import(&many, false).await.iter().all(Result::is_ok));
    store.put(&record("other", &[("n", "1")], None)).await.unwrap();
    store.revoke("unlisted", Duration::from_secs(1_000_000)).await.unwrap();
    let (ids, pages) = list(store, "", 100).await;
    assert_eq!(ids.len(), 1_201);
    assert!(ids.contains("other") && ids.contains("list7") && pages > 3, "{pages} pages");
    assert_eq!(list(store, "list1", 500).await.0.len(), 1 + 10 + 100 + 200);
    assert_eq!(list(store, "none", 500).await.0, BTreeSet::new());

    // Records that stay are listed, whatever is deleted between two pages.
    let first = store.page(&store.first_page(), "", 100).await.unwrap();
    for id in first.ids.iter().chain((0..50).map(|nth| &many[nth * 24 + 5].id)) {
        store.delete(id).await.unwrap();
    }
    let left = list(store, "", 500).await.0;
    let mut seen: BTreeSet<String> = first.ids.into_iter().collect();
    let mut next = first.next;
    while let Some(mark) = next {
        let page = store.page(&mark, "", 100).await.unwrap();
        seen.extend(page.ids);
        next = page.next;
    }
    assert!(left.is_subset(&seen), "{:?} are missing", left.difference(&seen));

    for foreign in ["here", "0.0.0", "-1", "18446744073709551616"] {
        let error = store.page(&foreign.parse().unwrap(), "", 100).await.unwrap_err();
        assert!(matches!(error, StoreError::PageMark(_)), "{foreign}: {error}");
    }
    for id in left {
        store.delete(&id).await.unwrap();
    }
}

/// The changes that the store has reported so far.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    /// Listens to `store`, which has not started yet.
    pub fn listen(store: &dyn RecordWatch) -> Self {
        let heard = Self::default();
        let told = heard.clone();
        store.on_record_change(Arc::new(move |change| {
            told.0.lock().push(match change {
                RecordChange::Of(id) => format!("record {id}"),
                RecordChange::Revocation(id) => format!("revocation {id}"),
                RecordChange::Unknown => "unknown".to_owned(),
            });
        }));
        heard
    }

    async fn until(&self, what: &str) {
        until_async(what, async || self.0.lock().iter().any(|heard| heard == what)).await;
        self.0.lock().clear();
    }
}

/// The store reports every change. It has started after `heard` began to listen.
pub async fn tells_of_changes(store: &dyn RecordStore, heard: &Heard) {
    store.put(&record("w", &[("plan", "basic")], None)).await.unwrap();
    heard.until("record w").await;
    let before = store.record("w").await.unwrap().unwrap();
    let after = stored(&[("plan", "basic"), ("expires_at", "later")]).unwrap();
    assert!(store.shorten("w", LATER, &before, &after).await.unwrap());
    heard.until("record w").await;
    store.import(&[record("v", &[("n", "1")], None)], true).await[0].clone().unwrap();
    heard.until("record v").await;
    store.import(&[record("v", &[("n", "2")], None)], true).await[0].clone().unwrap();
    heard.until("record v").await;
    assert!(store.delete("w").await.unwrap());
    heard.until("record w").await;
    store.revoke("w", Duration::from_secs(1_000_000)).await.unwrap();
    heard.until("revocation w").await;
    assert!(store.delete("v").await.unwrap());
    heard.until("record v").await;
}
