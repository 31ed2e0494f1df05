//! The progress of an import, on one line of a terminal that is rewritten again and again. Without a terminal there is no
//! such line.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use crate::cli::tell;

/// The shortest time between two writes of the line.
const PAUSE: Duration = Duration::from_millis(200);

/// Goes to the line's beginning and clears it (ECMA-48).
const CLEAR: &str = "\r\x1b[K";

/// The line. See the file's comment.
pub struct Progress {
    visible: bool,
    started: Instant,
    written: Option<Instant>,
    /// The size of the file, where it is known.
    total_bytes: Option<u64>,
}

impl Progress {
    /// Starts to count time.
    pub fn start(total_bytes: Option<u64>) -> Self {
        Self {
            visible: stderr().is_terminal(),
            started: Instant::now(),
            written: None,
            total_bytes,
        }
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows how far the import has come, unless the line was written a moment ago.
    pub fn show(&mut self, lines: u64, bytes: u64) {
        let now = Instant::now();
        if !self.visible || self.written.is_some_and(|written| now - written < PAUSE) {
            return;
        }
        self.written = Some(now);
        let line = line(lines, bytes, self.total_bytes, self.started.elapsed());
        tell(&format!("{CLEAR}{line}"));
    }

    /// Prints a text that is not overwritten.
    pub fn say(&mut self, text: &str) {
        self.clear();
        tell(text);
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.written.take().is_some() {
            tell(CLEAR);
        }
    }
}

fn line(lines: u64, bytes: u64, total_bytes: Option<u64>, elapsed: Duration) -> String {
    let rate = lines as f64 / elapsed.as_secs_f64().max(0.001);
    let part = match total_bytes {
        Some(total) if total > 0 => format!(", {} %", bytes.min(total) * 100 / total),
        _ => String::new(),
    };
    format!("{lines} lines{part}, {rate:.0} a second")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_and_how_fast() {
        let two = Duration::from_secs(2);
        assert_eq!(line(1_000, 50, Some(200), two), "1000 lines, 25 %, 500 a second");
        assert_eq!(line(1_000, 300, Some(200), two), "1000 lines, 100 %, 500 a second");
        assert_eq!(line(1_000, 300, None, two), "1000 lines, 500 a second");
        assert_eq!(line(0, 0, Some(0), Duration::ZERO), "0 lines, 0 a second");
    }
}
