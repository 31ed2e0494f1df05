//! From a tree of YAML values to the structs of `file`, with every structural fault, not just the first.
//!
//! Serde stops at the first fault. So the node it stopped at is reported and taken out of the tree, and the
//! rest is read again, until nothing is left to report. The meaning of values is not known here.

use serde_path_to_error::Segment;
use serde_yaml::{Mapping, Value};

use super::fault::Report;
use super::file::File;
use super::key_path::{KeyPath, Step};

/// Reports YAML that no configuration has: tags, and keys that are not text.
pub(super) fn plain(node: &mut Value, at: &KeyPath, report: &mut Report) {
    match node {
        Value::Tagged(_) => {
            report.broken(at, "has a YAML tag; write the value without it");
            *node = Value::Null;
        }
        Value::Sequence(list) => {
            for (i, child) in list.iter_mut().enumerate() {
                plain(child, &at.index(i), report);
            }
        }
        Value::Mapping(map) => {
            map.retain(|key, _| {
                let text = match key {
                    Value::String(_) => return true,
                    Value::Bool(key) => key.to_string(),
                    Value::Number(key) => key.to_string(),
                    _ => String::from("?"),
                };
                report.broken(&at.key(&text), "is a key that is not text; quote it");
                false
            });
            for (key, child) in map.iter_mut() {
                plain(child, &at.key(key.as_str().unwrap_or_default()), report);
            }
        }
        _ => {}
    }
}

/// Reads `tree`, reporting each node that does not fit and going on without it.
pub(super) fn read(mut tree: Value, report: &mut Report) -> File {
    if tree.is_null() {
        tree = Value::Mapping(Mapping::new());
    }
    while !report.is_full() {
        let error = match serde_path_to_error::deserialize::<_, File>(&tree) {
            Ok(file) => return file,
            Err(error) => error,
        };
        let path = key_path(error.path());
        let message = explain(&error.inner().to_string(), path.find(&mut tree));
        report.broken(&path, message);
        if path.is_root() || !take_out(&mut tree, &path) {
            break;
        }
    }
    File::default()
}

fn key_path(path: &serde_path_to_error::Path) -> KeyPath {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

/// Removes an entry, or empties a list element so that its siblings keep their numbers. `false` when
/// there is nothing left to take out.
fn take_out(tree: &mut Value, path: &KeyPath) -> bool {
    let [parent @ .., Step::Key(key)] = &path.steps()[..] else {
        let node = path.find(tree).filter(|node| !node.is_null());
        return node.map(|node| *node = Value::Null).is_some();
    };
    match parent.iter().copied().cloned().collect::<KeyPath>().find(tree) {
        Some(Value::Mapping(map)) => map.remove(key.as_str()).is_some(),
        _ => false,
    }
}

/// Serde's message in this program's words, without the value it may quote.
fn explain(message: &str, node: Option<&mut Value>) -> String {
    if let Some((found, expected)) = message.rsplit_once(", expected ")
        && found.starts_with("invalid ")
    {
        let expected = match expected {
            "a sequence" => "a list",
            "a map" => "a mapping",
            text if text.starts_with("struct ") => "a mapping",
            text => text,
        };
        return format!("is {}; write {expected}", yaml_type(node));
    }
    if message.starts_with("unknown field ") {
        let expected = message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
        let keys: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
        return format!("is not a known key; known are {}", keys.join(", "));
    }
    message.to_owned()
}

/// The YAML type of a node, in words.
fn yaml_type(node: Option<&mut Value>) -> &'static str {
    match node {
        None | Some(Value::Null) => "empty",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a single text",
        Some(Value::Sequence(_)) => "a list",
        Some(Value::Mapping(_)) => "a mapping",
        Some(Value::Tagged(_)) => "a tagged value",
    }
}
