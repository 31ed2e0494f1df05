//! Writing the chunks of a file, some at a time. A thread reads and checks lines, some hundreds ahead of the lines
//! that are being written.

use std::collections::HashSet;
use std::thread;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;

use super::source::{Chunk, Source};
use super::{ImportError, LineProblem, OnChunk, Tally};
use crate::store::{Imported, RecordStore, StoreError};

/// Chunks that are being written, and chunks that wait for it, at most.
const CHUNKS: usize = 4;

/// Writes the records of `source`. Chunks that were sent are always waited for. A chunk with a line about a token that
/// is being written waits, so that the lines about one token are written in the order of the file.
#[expect(clippy::disallowed_methods, reason = "one thread reads the file and ends with it")]
pub(super) async fn write(
    store: &dyn RecordStore,
    mut source: Source,
    replace: bool,
    interrupt: impl Future<Output = ()>,
    tally: &mut Tally,
    on_chunk: OnChunk<'_>,
) -> Result<(), ImportError> {
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    thread::spawn(move || {
        loop {
            let chunk = source.next();
            let last = !matches!(chunk, Ok(Some(_)));
            if sender.blocking_send(chunk).is_err() || last {
                return;
            }
        }
    });
    let mut interrupt = std::pin::pin!(interrupt);
    let mut writing = FuturesOrdered::new();
    let mut ended = None;
    let mut under_way: HashSet<String> = HashSet::new();
    let mut held: Option<Chunk> = None;
    loop {
        let is_free = |chunk: &mut Chunk| !chunk.ids().any(|id| under_way.contains(id));
        if ended.is_none()
            && let Some(chunk) = held.take_if(is_free)
        {
            under_way.extend(chunk.ids().cloned());
            writing.push_back(write_chunk(store, chunk, replace));
        }
        tokio::select! {
            biased;
            () = &mut interrupt, if ended.is_none() => ended = Some(Err(ImportError::Interrupted)),
            Some(written) = writing.next(), if !writing.is_empty() => {
                for (_, id, _) in &written.outcomes {
                    under_way.remove(id);
                }
                let (problems, failed) = tally.count(written);
                on_chunk(problems, tally);
                if let Some(error) = failed && !matches!(ended, Some(Err(_))) {
                    ended = Some(Err(error.into()));
                }
            }
            chunk = chunks.recv(), if ended.is_none() && held.is_none() && writing.len() < CHUNKS => match chunk {
                Some(Ok(Some(chunk))) => held = Some(chunk),
                Some(Ok(None)) => ended = Some(Ok(())),
                Some(Err(error)) => ended = Some(Err(error)),
                None => ended = Some(Err(ImportError::Reader)),
            },
            else => return ended.unwrap_or(Ok(())),
        }
    }
}

/// A chunk that was written.
struct Written {
    /// Lines without a readable record.
    bad: Vec<(u64, String)>,
    /// The outcome of each record, with its line and id.
    outcomes: Vec<(u64, String, Result<Imported, StoreError>)>,
    bytes: u64,
}

async fn write_chunk(store: &dyn RecordStore, chunk: Chunk, replace: bool) -> Written {
    let (mut bad, mut numbers, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for (number, record) in chunk.lines {
        match record {
            Ok(record) => {
                numbers.push(number);
                records.push(record);
            }
            Err(problem) => bad.push((number, problem)),
        }
    }
    let outcomes = store.import(&records, replace).await;
    let ids = records.into_iter().map(|record| record.id);
    let outcomes = numbers.into_iter().zip(ids).zip(outcomes);
    let outcomes = outcomes.map(|((number, id), outcome)| (number, id, outcome)).collect();
    Written { bad, outcomes, bytes: chunk.bytes }
}

impl Tally {
    /// Counts a chunk. Returns the faults of its lines, and the first error of the store.
    fn count(&mut self, written: Written) -> (Vec<(u64, LineProblem)>, Option<StoreError>) {
        let mut failed = None;
        self.bad += written.bad.len() as u64;
        let bad = written.bad.into_iter();
        let mut problems: Vec<_> =
            bad.map(|(line, problem)| (line, LineProblem::Bad(problem))).collect();
        for (line, id, outcome) in written.outcomes {
            match outcome {
                Ok(Imported::Written) => self.imported += 1,
                Ok(Imported::Replaced) => self.replaced += 1,
                Ok(Imported::Unchanged) => self.unchanged += 1,
                Ok(Imported::Expired) => self.expired += 1,
                Ok(Imported::Differs) => {
                    self.differing += 1;
                    problems.push((line, LineProblem::Differs { id }));
                }
                Err(error) => {
                    self.unknown += 1;
                    failed = failed.or(Some(error));
                }
            }
        }
        problems.sort_unstable_by_key(|(line, _)| *line);
        self.bytes = self.bytes.max(written.bytes);
        (problems, failed)
    }
}
