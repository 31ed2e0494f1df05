//! The lines of a file, read, checked and handed over in chunks.

use std::collections::HashSet;
use std::io::BufRead;

use super::lines::Lines;
use super::{ImportError, ImportFormat};
use crate::record::row::{Rows, Rules};
use crate::store::NewRecord;

/// Lines that are handed over together.
const CHUNK: usize = 256;

/// The number of a line, and its record or its fault.
type Line = (u64, Result<NewRecord, String>);

/// Some lines in a row, no two of which name the same token.
pub(super) struct Chunk {
    pub(super) lines: Vec<Line>,
    /// How far the file has been read.
    pub(super) bytes: u64,
}

impl Chunk {
    /// The tokens that its lines name.
    pub(super) fn ids(&self) -> impl Iterator<Item = &String> {
        self.lines.iter().filter_map(|(_, record)| Some(&record.as_ref().ok()?.id))
    }
}

/// The lines of a file. See the file's comment.
pub struct Source {
    lines: Lines<Box<dyn BufRead + Send>>,
    rows: Rows,
    /// The first line of the next chunk, where it has been read.
    first: Option<Line>,
}

impl Source {
    /// Reads the header, where the format has one.
    pub(super) fn open(
        input: Box<dyn BufRead + Send>,
        format: ImportFormat,
        rules: Rules,
    ) -> Result<Self, ImportError> {
        let mut lines = Lines::new(input);
        let rows = match format {
            ImportFormat::Jsonl => Rows::jsonl(rules),
            ImportFormat::Csv => {
                let header = lines.next()?;
                let header = header.unwrap_or(Err("is missing: the first line names the columns"));
                header
                    .map_err(str::to_owned)
                    .and_then(|header| Rows::csv(header, rules))
                    .map_err(ImportError::Header)?
            }
        };
        Ok(Self { lines, rows, first: None })
    }

    /// The next lines; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, ImportError> {
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

    fn line(&mut self) -> Result<Option<Line>, ImportError> {
        if let Some(line) = self.first.take() {
            return Ok(Some(line));
        }
        let Some(line) = self.lines.next()? else { return Ok(None) };
        let record = line.map_err(str::to_owned).and_then(|line| self.rows.read(line));
        Ok(Some((self.lines.number, record)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn chunks_are_bounded_and_lose_no_line() {
        let text: String = (0..600).map(|nth| format!("{{\"api_key\":\"{nth}\"}}\n")).collect();
        let input = Box::new(io::Cursor::new(text + "{}"));
        let mut source = Source::open(input, ImportFormat::Jsonl, Rules::default()).unwrap();
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
        let mut source = Source::open(input, ImportFormat::Jsonl, Rules::default()).unwrap();
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
            let opened = Source::open(input, ImportFormat::Csv, Rules::default());
            assert!(matches!(opened, Err(ImportError::Header(_))), "{text:?}");
        }
    }
}
