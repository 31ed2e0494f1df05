//! The faults of a configuration with their locations: one line a fault, all of them at once.
//!
//! It knows the locations of keys, not their meaning. No fault shows a value: any value may be a secret
//! under the wrong key.

use std::collections::BTreeSet;
use std::fmt;

use super::key_path::KeyPath;
use super::location::{Location, Locations};

/// Faults reported in one go; the rest are reported once these are mended.
pub(super) const MAX_FAULTS: usize = 100;

/// The faults of a configuration. `Display` gives one line a fault:
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
/// A node that was reported as broken is silent from then on: neither it nor any node beneath it is reported
/// again.
pub(super) struct Report {
    /// The locations of the keys.
    pub locations: Locations,
    broken: BTreeSet<KeyPath>,
    faults: Vec<Fault>,
}

struct Fault {
    location: Location,
    path: KeyPath,
    message: String,
}

impl Report {
    pub fn new(locations: Locations) -> Self {
        Self { locations, broken: BTreeSet::new(), faults: Vec::new() }
    }

    /// Notes that the value at `path` is wrong.
    pub fn fault(&mut self, path: &KeyPath, message: impl fmt::Display) {
        if !self.is_broken(path) {
            self.at(self.locations.find(path), path, message);
        }
    }

    /// Notes that the value at `path` is wrong and will not be looked at again.
    pub fn broken(&mut self, path: &KeyPath, message: impl fmt::Display) {
        self.fault(path, message);
        self.broken.insert(path.clone());
    }

    /// Notes a fault at a location that does not follow from `path`.
    pub fn at(&mut self, location: Location, path: &KeyPath, message: impl fmt::Display) {
        self.faults.push(Fault { location, path: path.clone(), message: message.to_string() });
    }

    /// Whether anything was reported at `path`, beneath it, or as broken above it.
    pub fn has_fault_within(&self, path: &KeyPath) -> bool {
        self.is_broken(path) || self.faults.iter().any(|fault| fault.path.is_within(path))
    }

    /// Whether the node at `path`, or one above it, was reported as broken.
    pub fn is_broken(&self, path: &KeyPath) -> bool {
        !self.broken.is_empty()
            && path.and_ancestors().any(|ancestor| self.broken.contains(ancestor))
    }

    /// Whether [`MAX_FAULTS`] faults are noted.
    pub fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// `value` when nothing is wrong, else every fault in the order of the file.
    pub fn finish<T>(mut self, file: &str, value: Option<T>) -> Result<T, Faults> {
        if let (Some(value), true) = (value, self.faults.is_empty()) {
            return Ok(value);
        }
        self.faults.sort_by(|a, b| a.location.cmp(&b.location));
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
        let location = match &self.location {
            Location::File { line, column } => format!("{file}:{line}:{column}"),
            Location::Environment(name) => format!("environment {name}"),
        };
        let path = match self.path.is_root() {
            true => String::new(),
            false => format!(" {}:", self.path),
        };
        one_line(&format!("{location}:{path} {}", self.message))
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
        let mut report = Report::new(Locations::default());
        report.broken(&KeyPath::top("redis"), "is a list");
        report.fault(&KeyPath::top("redis").key("url"), "missing");
        report.fault(&KeyPath::top("log"), "a\nb");
        let faults = report.finish("f", None::<()>).unwrap_err();
        assert_eq!(faults.to_string(), "f:1:1: redis: is a list\nf:1:1: log: a\u{fffd}b");
    }
}
