//! Importing many records from a file, into one server or a cluster.
//!
//! An import that is run again goes on where it stopped: a record is written whole or not at all, and a record that is
//! there already is left alone. This room prints nothing: the caller is told of each chunk of lines.

mod lines;
mod source;
mod write;

use std::io::{self, BufRead};

pub use self::source::Source;
use super::Tokens;
use crate::record::row::Rules;
use crate::store::StoreError;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// A line of column names, then a record a line (RFC 4180).
    Csv,
    /// A JSON object a line.
    Jsonl,
}

/// Why an import ended before the end of the file.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The first line does not name the columns.
    #[error("the header: {0}")]
    Header(String),
    /// The system could not read the file.
    #[error("the file cannot be read: {0}")]
    File(#[from] io::Error),
    /// There is no store to import into.
    #[error("there is no store to import into")]
    NoStore,
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller asked for it.
    #[error("interrupted")]
    Interrupted,
    /// The thread that reads the file died.
    #[error("the file was not read to its end")]
    Reader,
}

/// A fault of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineProblem {
    /// The line holds no record that a gateway could read. The text repeats no value of the line.
    Bad(String),
    /// The store holds another record of this id, which was not to be replaced.
    Differs {
        /// The id.
        id: String,
    },
}

/// The number of lines by their outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were not there before; of a check, good lines.
    pub imported: u64,
    /// Records that replaced other ones.
    pub replaced: u64,
    /// Records that were there already.
    pub unchanged: u64,
    /// Records that had expired and were not written.
    pub expired: u64,
    /// Records that are there, differ and were not replaced.
    pub differing: u64,
    /// Lines without a readable record.
    pub bad: u64,
    /// Lines whose outcome is unknown, because the store did not answer.
    pub unknown: u64,
    /// How far the file was read, in bytes.
    pub bytes: u64,
}

impl Tally {
    /// Lines whose outcome is known.
    pub fn lines(&self) -> u64 {
        self.imported + self.replaced + self.unchanged + self.expired + self.differing + self.bad
    }
}

/// Is told of each chunk of lines: the faults by the numbers of their lines, and the progress of the import.
pub type OnChunk<'a> = &'a mut dyn FnMut(Vec<(u64, LineProblem)>, &Tally);

impl Tokens {
    /// The lines of `input`. Each line is checked as it is read.
    ///
    /// # Errors
    /// [`ImportError::Header`] and [`ImportError::File`] when not even the first line can be used.
    pub fn import_source(
        &self,
        input: Box<dyn BufRead + Send>,
        format: ImportFormat,
    ) -> Result<Source, ImportError> {
        let rules = Rules { plans: self.rules.plans.clone(), are_claims: self.rules.claims_stand };
        Source::open(input, format, rules)
    }

    /// Writes the records of `source`, until the end of the file or of `interrupt`. The outcomes of the lines are in
    /// `tally`, however the import ends.
    ///
    /// # Errors
    /// [`ImportError`] says why it ended before the end of the file.
    pub async fn import(
        &self,
        source: Source,
        replace: bool,
        interrupt: impl Future<Output = ()>,
        tally: &mut Tally,
        on_chunk: OnChunk<'_>,
    ) -> Result<(), ImportError> {
        let store = self.store().ok_or(ImportError::NoStore)?;
        write::write(store, source, replace, interrupt, tally, on_chunk).await
    }
}

/// Checks the lines of `source` and writes nothing.
///
/// # Errors
/// [`ImportError::File`] when the file cannot be read to its end.
pub fn check(
    mut source: Source,
    tally: &mut Tally,
    on_chunk: OnChunk<'_>,
) -> Result<(), ImportError> {
    while let Some(chunk) = source.next()? {
        let mut problems = Vec::new();
        tally.bytes = chunk.bytes;
        for (number, record) in chunk.lines {
            match record {
                Ok(_) => tally.imported += 1,
                Err(problem) => {
                    tally.bad += 1;
                    problems.push((number, LineProblem::Bad(problem)));
                }
            }
        }
        on_chunk(problems, tally);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::clock::{ManualClock, UnixTime};
    use crate::store::RecordStore;
    use crate::store::memory::MemoryRecords;
    use crate::tokens::{Signer, SignerError, TokenRules};

    #[tokio::test]
    async fn an_import_counts_each_line_and_says_what_is_wrong_with_which() {
        let clock = ManualClock::new(UnixTime::from_secs(1_700_000_000));
        let store: Arc<dyn RecordStore> = Arc::new(MemoryRecords::new(clock, 10_000));
        let signer: Result<Signer, _> = Err(SignerError::NoKey);
        let tokens = Tokens::new(TokenRules::default(), Some(Arc::clone(&store)), signer);
        let import = async |text: &str, replace: bool| {
            let input = Box::new(io::Cursor::new(text.to_owned()));
            let source = tokens.import_source(input, ImportFormat::Jsonl).unwrap();
            let (mut tally, mut problems) = (Tally::default(), Vec::new());
            let mut on_chunk = |found: Vec<(u64, LineProblem)>, _: &Tally| problems.extend(found);
            let never = std::future::pending();
            tokens.import(source, replace, never, &mut tally, &mut on_chunk).await.unwrap();
            assert_eq!(tally.bytes, text.len() as u64);
            (tally, problems)
        };
        let text: String = (0..1_000).map(|nth| format!("{{\"api_key\":\"{nth}\"}}\n")).collect();
        let (tally, problems) = import(&format!("{text}{{}}\n"), false).await;
        assert_eq!((tally.imported, tally.bad, tally.lines()), (1_000, 1, 1_001));
        assert!(matches!(&problems[..], [(1_001, LineProblem::Bad(_))]), "{problems:?}");
        let text = "{\"api_key\":\"7\"}\n{\"api_key\":\"8\",\"plan\":\"p\"}\n{\"api_key\":\"9\",\"expires_at\":1}\n";
        let (tally, problems) = import(text, false).await;
        assert_eq!((tally.unchanged, tally.differing), (1, 2));
        let differs = |id: &str| LineProblem::Differs { id: id.into() };
        assert_eq!(problems, [(2, differs("8")), (3, differs("9"))]);
        let (tally, problems) = import(text, true).await;
        assert_eq!((tally.unchanged, tally.replaced, tally.expired), (1, 1, 1));
        assert!(problems.is_empty() && store.record("8").await.unwrap().is_some());

        let input = Box::new(io::Cursor::new(text));
        let source = tokens.import_source(input, ImportFormat::Jsonl).unwrap();
        let mut tally = Tally::default();
        let ended =
            tokens.import(source, true, std::future::ready(()), &mut tally, &mut |_, _| {}).await;
        assert!(matches!(ended, Err(ImportError::Interrupted)), "{ended:?}");
    }

    #[test]
    fn a_check_counts_good_and_bad_lines() {
        let tokens = Tokens::new(TokenRules::default(), None, Err(SignerError::NoKey));
        let input = Box::new(io::Cursor::new("{\"api_key\":\"a\"}\n{}\n"));
        let source = tokens.import_source(input, ImportFormat::Jsonl).unwrap();
        let (mut tally, mut lines) = (Tally::default(), Vec::new());
        let mut on_chunk = |problems: Vec<(u64, LineProblem)>, _: &Tally| {
            lines.extend(problems.into_iter().map(|(line, _)| line));
        };
        check(source, &mut tally, &mut on_chunk).unwrap();
        assert_eq!((tally.imported, tally.bad, lines), (1, 1, vec![2]));
    }
}
