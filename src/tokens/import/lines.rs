//! Lines of a file of any size, one at a time and none longer than a bound.

use std::io::{self, BufRead, Read as _};

/// The longest line, in bytes.
const MAX_LINE: usize = 64 << 10;

/// Reads lines. See the file's comment.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    /// Lines read so far, empty ones too.
    pub number: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

impl<R: BufRead> Lines<R> {
    /// Nothing is read before [`Lines::next`].
    pub fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, bytes: 0 }
    }

    /// The next line that is not empty, without its end; or why the line cannot be used. `None` at the end.
    ///
    /// # Errors
    /// The error of the system when the input cannot be read.
    pub fn next(&mut self) -> io::Result<Option<Result<&str, &'static str>>> {
        loop {
            self.line.clear();
            let most = MAX_LINE as u64 + 1;
            let read = self.input.by_ref().take(most).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += read as u64;
            if self.line.len() > MAX_LINE && !self.line.ends_with(b"\n") {
                self.skip()?;
                return Ok(Some(Err("is longer than 64 KiB")));
            }
            // A byte order mark stands at the beginning of the file only.
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Ok(Some(std::str::from_utf8(line).map_err(|_| "is not UTF-8")))
    }

    /// Goes on to the end of a line.
    fn skip(&mut self) -> io::Result<()> {
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            let (length, end) = match memchr::memchr(b'\n', buffer) {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.input.consume(length);
            self.bytes += length as u64;
            if end {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_as_editors_number_them() {
        let text = b"\xef\xbb\xbfa\r\n\n  \nb\n\xff\nc";
        let mut lines = Lines::new(&text[..]);
        let mut read = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            let line = line.map(str::to_owned);
            read.push((lines.number, line));
        }
        let line = |text: &str| Ok(text.to_owned());
        let expected = [(1, line("a")), (4, line("b")), (5, Err("is not UTF-8")), (6, line("c"))];
        assert_eq!(read, expected);
        assert_eq!(lines.bytes, text.len() as u64);
    }

    #[test]
    fn a_line_without_end_is_passed_over_in_pieces() {
        for (length, fits) in
            [(MAX_LINE - 1, true), (MAX_LINE, true), (MAX_LINE + 1, false), (MAX_LINE * 9, false)]
        {
            for end in ["", "\nnext"] {
                let text = format!("{}{end}", "x".repeat(length));
                let mut lines = Lines::new(text.as_bytes());
                assert_eq!(lines.next().unwrap().unwrap().is_ok(), fits, "{length}");
                assert!(lines.line.len() <= MAX_LINE + 1);
                let rest = lines.next().unwrap().map(|line| line.map(str::to_owned));
                assert_eq!(rest, (!end.is_empty()).then(|| Ok("next".into())));
                assert_eq!(lines.bytes, text.len() as u64);
            }
        }
    }
}
