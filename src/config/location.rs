//! Where each key stands: the line and column in the file, or the environment variable it came from.
//!
//! `serde_yaml` gives values without positions, so the text is walked once more for its events.
//! This file knows nothing about which keys there are.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser};

use super::key_path::KeyPath;

/// Where something was written. Places in the file sort first, by line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
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

/// The place of every key and list element.
#[derive(Debug, Default)]
pub struct Places {
    known: BTreeMap<KeyPath, Place>,
    duplicates: Vec<(KeyPath, Place)>,
}

/// A mapping or list whose end has not been reached.
enum Open {
    Mapping { at: KeyPath, value_of: Option<KeyPath>, seen: BTreeSet<String> },
    List { at: KeyPath, next: usize },
}

impl Places {
    /// Walks `text` as far as it is YAML.
    pub fn walk(text: &str) -> Self {
        let mut places = Self::default();
        let mut open: Vec<Open> = Vec::new();
        for item in Parser::new_from_str(text) {
            let Ok((event, span)) = item else { break };
            let place = Place::File { line: span.start.line(), column: span.start.col() + 1 };
            match event {
                Event::MappingEnd | Event::SequenceEnd => {
                    open.pop();
                }
                Event::DocumentEnd => break,
                Event::Scalar(text, ..) => {
                    if !places.key(&mut open, &text, &place) {
                        places.node(&mut open, place);
                    }
                }
                Event::Alias(_) | Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let Some(at) = places.node(&mut open, place) else {
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
        places
    }

    /// Takes a scalar as a key, when it stands where a key is due.
    fn key(&mut self, open: &mut [Open], text: &str, place: &Place) -> bool {
        let Some(Open::Mapping { at, value_of: value_of @ None, seen }) = open.last_mut() else {
            return false;
        };
        let path = at.key(text);
        if seen.insert(text.to_owned()) {
            self.known.insert(path.clone(), place.clone());
        } else {
            self.duplicates.push((path.clone(), place.clone()));
        }
        *value_of = Some(path);
        true
    }

    /// The path of a node that is no key; `None` where a mapping or list is used as a key.
    fn node(&mut self, open: &mut [Open], place: Place) -> Option<KeyPath> {
        match open.last_mut() {
            None => Some(KeyPath::root()),
            Some(Open::Mapping { value_of, .. }) => value_of.take(),
            Some(Open::List { at, next }) => {
                let path = at.index(*next);
                *next += 1;
                self.known.insert(path.clone(), place);
                Some(path)
            }
        }
    }

    /// Where `path` stands, or the nearest node above it that stands anywhere.
    pub fn of(&self, path: &KeyPath) -> Place {
        path.and_ancestors()
            .find_map(|ancestor| self.known.get(&ancestor).cloned())
            .unwrap_or(Place::File { line: 1, column: 1 })
    }

    /// Says that what is at `path` now, and all beneath it, came from the variable `name`.
    pub fn replace(&mut self, path: &KeyPath, name: &str) {
        self.known.retain(|known, _| !known.is_within(path));
        self.known.insert(path.clone(), Place::Environment(name.to_owned()));
    }

    /// Keys that were written a second time in one mapping, and where.
    pub fn duplicates(&self) -> &[(KeyPath, Place)] {
        &self.duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_elements_are_found_again() {
        let text = "log:\n  level: info\nlisteners:\n  - address: a\n  - { address: b }\nx: &a [1]\ny: *a\nz: 1\n";
        let places = Places::walk(text);
        let at = |path: &KeyPath| match places.of(path) {
            Place::File { line, column } => (line, column),
            Place::Environment(name) => panic!("{name}"),
        };
        let listeners = KeyPath::top("listeners");
        for (path, place) in [
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
            assert_eq!(at(&path), place, "{path}");
        }
    }

    #[test]
    fn a_key_written_twice_is_noticed() {
        let places = Places::walk("a: { b: 1, c: 2, b: 3 }\nd: { b: 1 }\na: 1\n");
        let found: Vec<_> = places.duplicates().iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(found, ["a.b", "a"]);
    }
}
