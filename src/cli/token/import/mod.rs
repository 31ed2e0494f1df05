//! `tollgate token import`: many records from a file, into one server or a cluster.
//!
//! Whatever ends an import, doing it again goes on where it stopped: a record is written whole or not at
//! all, and one that is there already is left alone. A thread reads lines and checks them, some hundreds
//! ahead of those that are being written.

mod lines;
mod progress;
mod row;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;

use self::lines::Lines;
use self::progress::Progress;
use self::row::{Format, Rows, Rules};
use super::Admin;
use super::fields::printable;
use super::records::{Records, StoreArguments, storage_key};
use crate::cli::{Failure, say};
use crate::config::Config;
use crate::store::{Imported, NewRecord, StoreError};

/// Lines that are handed over together.
const CHUNK: usize = 256;

/// Chunks that are being written, and chunks that wait for it, at most.
const CHUNKS: usize = 4;

/// Bytes of the file that are read together.
const READ: usize = 256 << 10;

/// Arguments of `tollgate token import`.
#[derive(Args, Debug)]
pub struct ImportArguments {
    /// The file; - for standard input
    #[arg(id = "input", value_name = "FILE")]
    file: PathBuf,
    /// How it is written; from the file's name, if that ends in .csv, .jsonl or .ndjson
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Overwrite records that differ, instead of reporting them
    #[arg(long)]
    replace: bool,
    /// Check every line and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArguments,
}

/// Imports a file.
///
/// # Errors
/// [`Failure::Data`] when lines are bad, or records differ; all others are imported nevertheless.
/// [`Failure::Unavailable`] when Redis does not answer, [`Failure::Interrupted`] by Ctrl-C: doing it
/// again goes on from there.
pub fn run(arguments: &ImportArguments) -> Result<String, Failure> {
    let format = format(arguments)?;
    let records = open(arguments)?;
    let rules = rules(&records);
    let (input, total_bytes) = input(&arguments.file)?;
    let mut source = Source::open(input, format, rules)?;
    let mut progress = Progress::start(total_bytes);
    let mut tally = Tally::default();
    let ended = match &records.admin {
        Some(admin) if !arguments.dry_run => {
            admin.wait(write(admin, source, arguments.replace, &mut tally, &mut progress))
        }
        _ => loop {
            match source.next() {
                Ok(Some(chunk)) => tally.check(chunk, &mut progress),
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        },
    };
    progress.clear();
    say(&tally.summary(arguments.dry_run, progress.elapsed().as_secs_f64()))?;
    ended.and_then(|()| tally.verdict())
}

/// How the file is written.
fn format(arguments: &ImportArguments) -> Result<Format, Failure> {
    if let Some(format) = arguments.format {
        return Ok(format);
    }
    match arguments.file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        _ => Err(Failure::Usage(
            "the file's name does not say how it is written: add --format csv or --format jsonl"
                .into(),
        )),
    }
}

/// The configuration and Redis; a check of the lines alone needs neither.
fn open(arguments: &ImportArguments) -> Result<Records, Failure> {
    if arguments.dry_run {
        return arguments.store.open_if_named();
    }
    let records = arguments.store.open()?;
    match records.admin {
        Some(_) => Ok(records),
        None => Err(Failure::Usage(
            "this configuration has no redis to import into: name one with --redis".into(),
        )),
    }
}

fn rules(records: &Records) -> Rules {
    let plans = |config: &Config| config.plans.keys().cloned().collect();
    Rules { plans: records.config.as_ref().map(plans), are_claims: records.are_claims() }
}

/// The file and its size, if it has one.
fn input(file: &Path) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(BufReader::with_capacity(READ, io::stdin())), None));
    }
    let fault = |error: io::Error| Failure::Data(format!("{}: {error}", file.display()));
    let input = File::open(file).map_err(fault)?;
    let metadata = input.metadata().map_err(fault)?;
    let total = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(BufReader::with_capacity(READ, input)), total))
}

/// What became of a line so far: its number, and its record or what is wrong with it.
type Line = (u64, Result<NewRecord, String>);

/// Some lines in a row, no two of which name the same token.
struct Chunk {
    lines: Vec<Line>,
    /// How far the file has been read.
    bytes: u64,
}

impl Chunk {
    /// The tokens that its lines name.
    fn ids(&self) -> impl Iterator<Item = &String> {
        self.lines.iter().filter_map(|(_, record)| Some(&record.as_ref().ok()?.id))
    }
}

/// The lines of a file, read and checked.
struct Source {
    lines: Lines<Box<dyn BufRead + Send>>,
    rows: Rows,
    /// The first line of the next chunk, where it has been read.
    first: Option<Line>,
}

impl Source {
    /// Reads the header, where the format has one.
    fn open(input: Box<dyn BufRead + Send>, format: Format, rules: Rules) -> Result<Self, Failure> {
        let mut lines = Lines::new(input);
        let rows = match format {
            Format::Jsonl => Rows::jsonl(rules),
            Format::Csv => {
                let header = lines.next().map_err(unreadable)?;
                let header = header.unwrap_or(Err("is missing: the first line names the columns"));
                header
                    .map_err(str::to_owned)
                    .and_then(|header| Rows::csv(header, rules))
                    .map_err(|problem| Failure::Data(format!("the header: {problem}")))?
            }
        };
        Ok(Self { lines, rows, first: None })
    }

    /// The next lines; `None` after the last.
    fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        let mut lines = Vec::with_capacity(CHUNK);
        let mut ids = HashSet::new();
        while lines.len() < CHUNK {
            let Some(line) = self.line()? else { break };
            if let Ok(record) = &line.1
                && !ids.insert(record.id.clone())
            {
                self.first = Some(line);
                break;
            }
            lines.push(line);
        }
        let bytes = self.lines.bytes;
        Ok((!lines.is_empty()).then_some(Chunk { lines, bytes }))
    }

    fn line(&mut self) -> Result<Option<Line>, Failure> {
        if let Some(line) = self.first.take() {
            return Ok(Some(line));
        }
        let Some(line) = self.lines.next().map_err(unreadable)? else { return Ok(None) };
        let record = line.map_err(str::to_owned).and_then(|line| self.rows.read(line));
        Ok(Some((self.lines.number, record)))
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::Data(format!("the file cannot be read: {error}"))
}

/// Writes what `source` says, some chunks at a time. What was sent is waited for, whatever happens, and by
/// lines about the same token: they are written in the order of the file.
async fn write(
    admin: &Admin,
    mut source: Source,
    replace: bool,
    tally: &mut Tally,
    progress: &mut Progress,
) -> Result<(), Failure> {
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
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
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
            writing.push_back(write_chunk(admin, chunk, replace));
        }
        tokio::select! {
            biased;
            _ = &mut interrupt, if ended.is_none() => {
                ended = Some(Err(Failure::Interrupted(format!("interrupted: {AGAIN}"))));
            }
            Some(written) = writing.next(), if !writing.is_empty() => {
                for (_, id, _) in &written.answers {
                    under_way.remove(id);
                }
                if let Err(error) = tally.count(written, progress) && !matches!(ended, Some(Err(_))) {
                    let failure = admin.failure(&error);
                    ended = Some(Err(Failure::Unavailable(format!("{failure}: {AGAIN}"))));
                }
            }
            chunk = chunks.recv(), if ended.is_none() && held.is_none() && writing.len() < CHUNKS => match chunk {
                Some(Ok(Some(chunk))) => held = Some(chunk),
                Some(Ok(None)) => ended = Some(Ok(())),
                Some(Err(failure)) => ended = Some(Err(failure)),
                None => ended = Some(Err(Failure::Internal("the file was not read to its end".into()))),
            },
            else => return ended.unwrap_or(Ok(())),
        }
    }
}

/// What to do about an import that ended early.
const AGAIN: &str = "the same command goes on where this one stopped";

/// A chunk that was written.
struct Written {
    bad: Vec<(u64, String)>,
    answers: Vec<(u64, String, Result<Imported, StoreError>)>,
    bytes: u64,
}

async fn write_chunk(admin: &Admin, chunk: Chunk, replace: bool) -> Written {
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
    let answers = admin.store().import(&records, replace).await;
    let ids = records.into_iter().map(|record| record.id);
    let answers = numbers.into_iter().zip(ids).zip(answers);
    let answers = answers.map(|((number, id), answer)| (number, id, answer)).collect();
    Written { bad, answers, bytes: chunk.bytes }
}

/// How many lines became what.
#[derive(Debug, Default)]
struct Tally {
    imported: u64,
    replaced: u64,
    unchanged: u64,
    expired: u64,
    differing: u64,
    bad: u64,
    /// Lines of which Redis did not say what became of them.
    unknown: u64,
    bytes: u64,
}

impl Tally {
    /// Counts a chunk; the first error of Redis, if there was one.
    fn count(&mut self, written: Written, progress: &mut Progress) -> Result<(), StoreError> {
        let mut failed = Ok(());
        self.bad += written.bad.len() as u64;
        let mut reports = written.bad;
        for (line, id, answer) in written.answers {
            match answer {
                Ok(Imported::Written) => self.imported += 1,
                Ok(Imported::Replaced) => self.replaced += 1,
                Ok(Imported::Unchanged) => self.unchanged += 1,
                Ok(Imported::Expired) => self.expired += 1,
                Ok(Imported::Differs) => {
                    self.differing += 1;
                    let key = storage_key(&id);
                    reports.push((
                        line,
                        format!("{key} is there and differs: --replace overwrites it"),
                    ));
                }
                Err(error) => {
                    self.unknown += 1;
                    failed = failed.and(Err(error));
                }
            }
        }
        reports.sort_unstable_by_key(|(line, _)| *line);
        for (line, problem) in reports {
            report(line, &problem, progress);
        }
        self.bytes = self.bytes.max(written.bytes);
        progress.show(self.lines(), self.bytes);
        failed
    }

    /// Counts a chunk that is not to be written.
    fn check(&mut self, chunk: Chunk, progress: &mut Progress) {
        for (line, record) in chunk.lines {
            match record {
                Ok(_) => self.imported += 1,
                Err(problem) => {
                    self.bad += 1;
                    report(line, &problem, progress);
                }
            }
        }
        progress.show(self.lines(), chunk.bytes);
    }

    fn lines(&self) -> u64 {
        self.imported + self.replaced + self.unchanged + self.expired + self.differing + self.bad
    }

    fn summary(&self, dry_run: bool, seconds: f64) -> String {
        let Self { imported, replaced, unchanged, expired, differing, bad, unknown, .. } = self;
        if dry_run {
            return format!("good {imported}, bad {bad}; nothing was written; {seconds:.1} s\n");
        }
        let unknown = match unknown {
            0 => String::new(),
            lines => format!(", unknown {lines}"),
        };
        format!(
            "imported {imported}, replaced {replaced}, unchanged {unchanged}, differing {differing}, expired {expired}, bad {bad}{unknown}; {seconds:.1} s\n"
        )
    }

    /// Whether everything in the file is in Redis now, as far as it has not expired.
    fn verdict(&self) -> Result<String, Failure> {
        match (self.bad, self.differing) {
            (0, 0) => Ok(String::new()),
            (bad, differing) => Err(Failure::Data(format!(
                "not all of it is imported: bad lines {bad}, records that differ {differing}"
            ))),
        }
    }
}

/// Says what is wrong with a line.
fn report(line: u64, problem: &str, progress: &mut Progress) {
    progress.say(&format!("line {line}: {}\n", printable(problem)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_and_lose_no_line() {
        let text: String = (0..600).map(|nth| format!("{{\"api_key\":\"{nth}\"}}\n")).collect();
        let input = Box::new(io::Cursor::new(text + "{}"));
        let mut source = Source::open(input, Format::Jsonl, Rules::default()).unwrap();
        let mut sizes = Vec::new();
        let mut last = None;
        while let Some(chunk) = source.next().unwrap() {
            sizes.push(chunk.lines.len());
            last = chunk.lines.into_iter().last();
        }
        assert_eq!(sizes, [CHUNK, CHUNK, 601 - 2 * CHUNK]);
        assert!(matches!(last, Some((601, Err(_)))));
    }

    #[test]
    fn no_token_is_in_a_chunk_twice() {
        let lines = ["a", "b", "a", "a", "c", "b"];
        let text: String = lines.map(|id| format!("{{\"api_key\":\"{id}\"}}\n")).concat();
        let input = Box::new(io::Cursor::new(text));
        let mut source = Source::open(input, Format::Jsonl, Rules::default()).unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = source.next().unwrap() {
            chunks.push(chunk.lines.iter().map(|(number, _)| *number).collect::<Vec<_>>());
        }
        assert_eq!(chunks, [vec![1, 2], vec![3], vec![4, 5, 6]]);
    }

    #[test]
    fn a_file_of_csv_needs_a_header() {
        for text in ["", "\n", "tg_x\n"] {
            let input = Box::new(io::Cursor::new(text));
            let opened = Source::open(input, Format::Csv, Rules::default());
            assert!(matches!(opened, Err(Failure::Data(_))), "{text:?}");
        }
    }
}
