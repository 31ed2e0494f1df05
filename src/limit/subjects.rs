//! The subjects in memory, up to a bound, in parts that lock apart from each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use super::entry::SubjectEntry;
use crate::quota::Limit;

/// Parts that lock apart from each other.
const SHARDS: usize = 64;

pub(super) struct Subjects {
    /// Entries by their subjects.
    shards: Vec<Mutex<HashTable<Arc<SubjectEntry>>>>,
    hasher: RandomState,
    most: usize,
    count: AtomicUsize,
}

impl Subjects {
    /// Remembers at most `most` subjects.
    pub(super) fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: RandomState::new(),
            most,
            count: AtomicUsize::new(0),
        }
    }

    /// The entry of `subject` under `limits`, made where there is none.
    pub(super) fn entry(&self, subject: &str, limits: &Arc<[Limit]>) -> Arc<SubjectEntry> {
        let hash = self.hasher.hash_one(subject);
        // The table itself uses the lowest and the highest bits.
        let mut shard = self.shards[(hash >> 32) as usize % SHARDS].lock();
        // A subject may be counted under several sets of limits: each has an entry of its own.
        let known = shard.find(hash, |entry| {
            *entry.subject == *subject
                && (Arc::ptr_eq(&entry.limits, limits) || entry.limits == *limits)
        });
        if let Some(entry) = known {
            return Arc::clone(entry);
        }
        // At the bound a subject is decided without being remembered: exact all the same, only dearer.
        let remembered = self.len() < self.most;
        let entry = Arc::new(SubjectEntry::new(subject, limits, remembered));
        if remembered {
            let hash_of = |entry: &Arc<SubjectEntry>| self.hasher.hash_one(&*entry.subject);
            shard.insert_unique(hash, Arc::clone(&entry), hash_of);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        entry
    }

    /// Forgets the entries for which `keep` is false.
    pub(super) fn retain(&self, mut keep: impl FnMut(&Arc<SubjectEntry>) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|entry| keep(entry));
            self.count.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    /// Every entry.
    pub(super) fn all(&self) -> Vec<Arc<SubjectEntry>> {
        let of_shard = |shard: &Mutex<HashTable<Arc<SubjectEntry>>>| {
            shard.lock().iter().cloned().collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// Subjects in memory.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
