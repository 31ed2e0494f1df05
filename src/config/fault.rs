//! What is wrong with a configuration, and where: one line a fault, all of them at once.
//!
//! It knows where keys stand, not what they mean. Values are not echoed by the code that reports:
//! any of them may be a secret in the wrong place.

use std::collections::BTreeSet;
use std::fmt;

use super::key_path::KeyPath;
use super::location::{Place, Places};

/// Faults reported in one go; what lies beyond is found when these are mended.
pub(super) const MAX_FAULTS: usize = 100;

/// Everything that is wrong with a configuration. `Display` gives one line a fault:
/// `file:line:column: key.path[0].x: what is wrong; what is allowed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    lines: Vec<String>,
}

impl Faults {
    /// A fault of the file as a whole.
    pub(super) fn of_file(file: &str, message: impl fmt::Display) -> Self {
        Self { lines: vec![one_line(&format!("{file}: {message}"))] }
    }

    /// The lines of `Display`, one for each fault.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// Collects faults while a configuration is read.
///
/// A node once reported as broken is silent from then on: nothing is said about it, or about what
/// lies beneath it, a second time.
pub(super) struct Report {
    /// Where the keys stand.
    pub places: Places,
    broken: BTreeSet<KeyPath>,
    faults: Vec<Fault>,
}

struct Fault {
    place: Place,
    path: KeyPath,
    message: String,
}

impl Report {
    pub fn new(places: Places) -> Self {
        Self { places, broken: BTreeSet::new(), faults: Vec::new() }
    }

    /// Notes that the value at `path` is wrong.
    pub fn fault(&mut self, path: &KeyPath, message: impl fmt::Display) {
        if !self.is_broken(path) {
            self.at(self.places.of(path), path, message);
        }
    }

    /// Notes that the value at `path` is wrong and will not be looked at again.
    pub fn broken(&mut self, path: &KeyPath, message: impl fmt::Display) {
        self.fault(path, message);
        self.broken.insert(path.clone());
    }

    /// Notes a fault at a place that `path` alone does not lead to.
    pub fn at(&mut self, place: Place, path: &KeyPath, message: impl fmt::Display) {
        self.faults.push(Fault { place, path: path.clone(), message: message.to_string() });
    }

    /// Whether anything was reported at `path`, beneath it, or as broken above it.
    pub fn has_fault_within(&self, path: &KeyPath) -> bool {
        self.is_broken(path) || self.faults.iter().any(|fault| fault.path.is_within(path))
    }

    /// Whether the node at `path`, or one above it, was reported as broken.
    pub fn is_broken(&self, path: &KeyPath) -> bool {
        path.and_ancestors().any(|ancestor| self.broken.contains(&ancestor))
    }

    /// Whether as many faults are known as are reported.
    pub fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// `value` when nothing is wrong, else every fault in the order of the file.
    pub fn finish<T>(mut self, file: &str, value: Option<T>) -> Result<T, Faults> {
        if let (Some(value), true) = (value, self.faults.is_empty()) {
            return Ok(value);
        }
        self.faults.sort_by(|a, b| a.place.cmp(&b.place));
        let mut lines: Vec<_> =
            self.faults.iter().take(MAX_FAULTS).map(|fault| fault.line(file)).collect();
        if self.is_full() {
            lines.push(format!("{file}: no more than {MAX_FAULTS} faults are reported at once"));
        }
        Err(Faults { lines })
    }
}

impl Fault {
    fn line(&self, file: &str) -> String {
        let place = match &self.place {
            Place::File { line, column } => format!("{file}:{line}:{column}"),
            Place::Environment(name) => format!("environment {name}"),
        };
        let path = match self.path.is_root() {
            true => String::new(),
            false => format!(" {}:", self.path),
        };
        one_line(&format!("{place}:{path} {}", self.message))
    }
}

/// Names come from the file and may hold anything; a fault stays on its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_node_is_reported_once() {
        let mut report = Report::new(Places::default());
        report.broken(&KeyPath::top("redis"), "is a list");
        report.fault(&KeyPath::top("redis").key("url"), "missing");
        report.fault(&KeyPath::top("log"), "a\nb");
        let faults = report.finish("f", None::<()>).unwrap_err();
        assert_eq!(faults.to_string(), "f:1:1: redis: is a list\nf:1:1: log: a\u{fffd}b");
    }
}
