//! The location of each key: the line and column in the file, or the environment variable it came from.
//!
//! `serde_yaml` gives values without positions, so the text is walked once more for its events, when the first fault
//! asks for a location. A configuration without faults is not walked.
//! This file knows nothing about which keys there are.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser};

use super::key_path::KeyPath;

/// The location of a key or a fault. Locations in the file sort before those in the environment, by line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// In the file; both count from 1, columns in characters.
    File {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In an environment variable of this name.
    Environment(String),
}

/// The locations of every key and list element.
#[derive(Debug, Default)]
pub struct Locations {
    text: String,
    /// What [`replace`](Self::replace) has noted before the text was walked, in its order.
    replaced: Vec<(KeyPath, String)>,
    walked: OnceCell<Walked>,
}

/// The locations that a walk has found.
#[derive(Debug, Default)]
struct Walked {
    by_path: BTreeMap<KeyPath, Location>,
    duplicates: Vec<(KeyPath, Location)>,
}

/// A mapping or list whose end has not been reached.
enum Open {
    Mapping { at: KeyPath, value_of: Option<KeyPath>, seen: BTreeSet<String> },
    List { at: KeyPath, next: usize },
}

impl Locations {
    /// The locations in `text`, as far as it is YAML.
    pub fn of(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }

    /// The location of `path`, or of the nearest node above it that has one.
    pub fn find(&self, path: &KeyPath) -> Location {
        let by_path = &self.walked().by_path;
        path.and_ancestors()
            .find_map(|ancestor| by_path.get(ancestor).cloned())
            .unwrap_or(Location::File { line: 1, column: 1 })
    }

    /// Notes that the value at `path`, and all beneath it, now comes from the variable `name`.
    pub fn replace(&mut self, path: &KeyPath, name: &str) {
        match self.walked.get_mut() {
            Some(walked) => walked.replace(path, name),
            None => self.replaced.push((path.clone(), name.to_owned())),
        }
    }

    /// Keys that were written a second time in one mapping, with the second location.
    pub fn duplicates(&self) -> &[(KeyPath, Location)] {
        &self.walked().duplicates
    }

    fn walked(&self) -> &Walked {
        self.walked.get_or_init(|| {
            let mut walked = Walked::walk(&self.text);
            for (path, name) in &self.replaced {
                walked.replace(path, name);
            }
            walked
        })
    }
}

impl Walked {
    fn walk(text: &str) -> Self {
        let mut locations = Self::default();
        let mut open: Vec<Open> = Vec::new();
        for item in Parser::new_from_str(text) {
            let Ok((event, span)) = item else { break };
            let location = Location::File { line: span.start.line(), column: span.start.col() + 1 };
            match event {
                Event::MappingEnd | Event::SequenceEnd => {
                    open.pop();
                }
                Event::DocumentEnd => break,
                Event::Scalar(text, ..) => {
                    if !locations.key(&mut open, &text, &location) {
                        locations.node(&mut open, location);
                    }
                }
                Event::Alias(_) | Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let Some(at) = locations.node(&mut open, location) else {
                        break;
                    };
                    match event {
                        Event::MappingStart(..) => {
                            open.push(Open::Mapping { at, value_of: None, seen: BTreeSet::new() })
                        }
                        Event::SequenceStart(..) => open.push(Open::List { at, next: 0 }),
                        _ => {}
                    }
                }
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_) => {}
            }
        }
        locations
    }

    /// Takes a scalar as a key, when it stands where a key is due.
    fn key(&mut self, open: &mut [Open], text: &str, location: &Location) -> bool {
        let Some(Open::Mapping { at, value_of: value_of @ None, seen }) = open.last_mut() else {
            return false;
        };
        let path = at.key(text);
        if seen.insert(text.to_owned()) {
            self.by_path.insert(path.clone(), location.clone());
        } else {
            self.duplicates.push((path.clone(), location.clone()));
        }
        *value_of = Some(path);
        true
    }

    /// The path of a node that is no key; `None` where a mapping or list is used as a key.
    fn node(&mut self, open: &mut [Open], location: Location) -> Option<KeyPath> {
        match open.last_mut() {
            None => Some(KeyPath::root()),
            Some(Open::Mapping { value_of, .. }) => value_of.take(),
            Some(Open::List { at, next }) => {
                let path = at.index(*next);
                *next += 1;
                self.by_path.insert(path.clone(), location);
                Some(path)
            }
        }
    }

    fn replace(&mut self, path: &KeyPath, name: &str) {
        self.by_path.retain(|written, _| !written.is_within(path));
        self.by_path.insert(path.clone(), Location::Environment(name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_elements_are_found_again() {
        let text = "log:\n  level: info\nlisteners:\n  - address: a\n  - { address: b }\nx: &a [1]\ny: *a\nz: 1\n";
        let locations = Locations::of(text);
        let at = |path: &KeyPath| match locations.find(path) {
            Location::File { line, column } => (line, column),
            Location::Environment(name) => panic!("{name}"),
        };
        let listeners = KeyPath::top("listeners");
        for (path, location) in [
            (KeyPath::top("log"), (1, 1)),
            (KeyPath::top("log").key("level"), (2, 3)),
            (KeyPath::top("log").key("absent"), (1, 1)),
            (listeners.index(0), (4, 5)),
            (listeners.index(1), (5, 5)),
            (listeners.index(1).key("address"), (5, 7)),
            (listeners.index(7), (3, 1)),
            (KeyPath::top("y").index(0), (7, 1)),
            (KeyPath::top("z"), (8, 1)),
        ] {
            assert_eq!(at(&path), location, "{path}");
        }
    }

    #[test]
    fn a_key_written_twice_is_noticed() {
        let locations = Locations::of("a: { b: 1, c: 2, b: 3 }\nd: { b: 1 }\na: 1\n");
        let found: Vec<_> =
            locations.duplicates().iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(found, ["a.b", "a"]);
    }
}
