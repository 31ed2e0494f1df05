//! `tollgate token import`: many records from a file, into one server or a cluster.
//!
//! `tokens::import` reads and writes the lines; this file prints messages about them.

mod progress;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::progress::Progress;
use super::fields::printable;
use super::session::{Session, StoreArguments};
use crate::cli::{Failure, say};
use crate::tokens::import::{ImportError, ImportFormat, LineProblem, Tally, check};
use crate::tokens::storage_key;

/// Bytes of the file that are read together.
const READ: usize = 256 << 10;

/// The advice after an import that ended early.
const AGAIN: &str = "the same command goes on where this one stopped";

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line of column names, then a record a line
    Csv,
    /// A JSON object a line
    Jsonl,
}

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
/// [`Failure::Data`] when lines are bad, or records differ; all other lines are imported nevertheless.
/// [`Failure::Unavailable`] when the store does not answer, [`Failure::Interrupted`] by Ctrl-C: doing it again goes on
/// from there.
pub fn run(arguments: &ImportArguments) -> Result<String, Failure> {
    let format = format(arguments)?;
    let session = open(arguments)?;
    let (input, total_bytes) = input(&arguments.file)?;
    let source =
        session.tokens.import_source(input, format).map_err(|error| failure(&session, &error))?;
    let mut progress = Progress::start(total_bytes);
    let mut on_chunk = |problems: Vec<(u64, LineProblem)>, tally: &Tally| {
        for (line, problem) in problems {
            let problem = printable(&problem_text(problem));
            progress.say(&format!("line {line}: {problem}\n"));
        }
        progress.show(tally.lines(), tally.bytes);
    };
    let mut tally = Tally::default();
    let ended = if arguments.dry_run {
        check(source, &mut tally, &mut on_chunk)
    } else {
        session.wait(async {
            let interrupt = async {
                // Without this handler, Ctrl-C ends the process.
                if tokio::signal::ctrl_c().await.is_err() {
                    std::future::pending().await
                }
            };
            let tokens = &session.tokens;
            tokens.import(source, arguments.replace, interrupt, &mut tally, &mut on_chunk).await
        })
    };
    progress.clear();
    say(&summary(&tally, arguments.dry_run, progress.elapsed().as_secs_f64()))?;
    ended.map_err(|error| failure(&session, &error))?;
    verdict(&tally)
}

/// How the file is written.
fn format(arguments: &ImportArguments) -> Result<ImportFormat, Failure> {
    match arguments.format {
        Some(Format::Csv) => return Ok(ImportFormat::Csv),
        Some(Format::Jsonl) => return Ok(ImportFormat::Jsonl),
        None => {}
    }
    match arguments.file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(ImportFormat::Csv),
        Some("jsonl" | "ndjson") => Ok(ImportFormat::Jsonl),
        _ => Err(Failure::Usage(
            "the file's name does not say how it is written: add --format csv or --format jsonl"
                .into(),
        )),
    }
}

/// The configuration and the store; a check of the lines alone needs neither.
fn open(arguments: &ImportArguments) -> Result<Session, Failure> {
    if arguments.dry_run {
        return arguments.store.open_if_named();
    }
    let session = arguments.store.open(None)?;
    match session.tokens.store() {
        Some(_) => Ok(session),
        None => Err(Failure::Usage(
            "this configuration has no redis to import into: name one with --redis".into(),
        )),
    }
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

/// The failure of an import that ended early.
fn failure(session: &Session, error: &ImportError) -> Failure {
    match error {
        ImportError::Header(_) | ImportError::File(_) => Failure::Data(error.to_string()),
        ImportError::NoStore => Failure::Usage(error.to_string()),
        ImportError::Store(error) => {
            Failure::Unavailable(format!("{}: {AGAIN}", session.store_failure(error)))
        }
        ImportError::Interrupted => Failure::Interrupted(format!("{error}: {AGAIN}")),
        ImportError::Reader => Failure::Internal(error.to_string()),
    }
}

fn problem_text(problem: LineProblem) -> String {
    match problem {
        LineProblem::Bad(problem) => problem,
        LineProblem::Differs { id } => {
            format!("{} is there and differs: --replace overwrites it", storage_key(&id))
        }
    }
}

fn summary(tally: &Tally, dry_run: bool, seconds: f64) -> String {
    let Tally { imported, replaced, unchanged, expired, differing, bad, unknown, .. } = tally;
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

/// Fails unless every record of the file that has not expired is in the store.
fn verdict(tally: &Tally) -> Result<String, Failure> {
    match (tally.bad, tally.differing) {
        (0, 0) => Ok(String::new()),
        (bad, differing) => Err(Failure::Data(format!(
            "not all of it is imported: bad lines {bad}, records that differ {differing}"
        ))),
    }
}
