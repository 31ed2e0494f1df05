//! The map in `src/lib.rs` is true: it names every room, a room imports only rooms before it, and only certain rooms
//! name certain libraries. The tests read the sources as text.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Libraries that only these places may name.
const CONFINED: [(&str, &[&str]); 11] = [
    ("pingora_core", &["gateway", "listener", "proxy", "upstream"]),
    ("pingora_proxy", &["gateway", "listener", "proxy", "upstream"]),
    ("pingora_http", &["gateway", "listener", "proxy", "upstream"]),
    ("pingora_prometheus", &["gateway", "telemetry"]),
    ("fred", &["store/redis"]),
    ("rmp", &["store/redis"]),
    ("serde_yaml", &["config"]),
    ("saphyr_parser", &["config"]),
    ("clap", &["cli"]),
    ("jsonwebtoken", &["auth", "tokens"]),
    ("ureq", &["auth"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file by its path below `src/`, without its tests and its comments.
fn sources() -> BTreeMap<String, String> {
    fn collect(directory: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
                let code: Vec<_> =
                    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                let name = path.strip_prefix(root().join("src")).unwrap();
                found.insert(name.display().to_string(), code.join("\n"));
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&root().join("src"), &mut found);
    found
}

/// The room that a file belongs to; `None` for `lib.rs` and `main.rs`, which only name rooms.
fn room(file: &str) -> Option<&str> {
    let first = file.split('/').next().unwrap();
    match first.strip_suffix(".rs") {
        Some("lib" | "main") => None,
        Some(module) => Some(module),
        None => Some(first),
    }
}

/// The rooms in the order of the map: each may import those before it.
fn map() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

/// The words that follow `prefix` in `code`.
fn words_after<'a>(code: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    code.split(prefix)
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

#[test]
fn the_map_names_every_room() {
    let rooms: BTreeSet<_> =
        sources().keys().filter_map(|file| room(file)).map(str::to_owned).collect();
    assert_eq!(map().into_iter().collect::<BTreeSet<_>>(), rooms);
}

#[test]
fn rooms_import_only_rooms_before_them() {
    let map = map();
    let floor = |room: &str| map.iter().position(|known| known == room);
    let mut wrong = Vec::new();
    for (file, code) in sources() {
        let Some(own) = room(&file).and_then(floor) else { continue };
        for imported in words_after(&code, "crate::") {
            // A list in braces after `crate::` has no name to look up, and is wrong too.
            if floor(imported).is_none_or(|other| other > own) {
                wrong.push(format!("{file} imports `{imported}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (file, code) in sources() {
        for (library, places) in CONFINED {
            let named = [format!("{library}::"), format!("use {library};")]
                .iter()
                .any(|name| code.contains(name.as_str()));
            let may = places.iter().any(|place| {
                file.starts_with(&format!("{place}/")) || file == format!("{place}.rs")
            });
            if named && !may {
                wrong.push(format!("{file} names {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .into_keys()
        .filter(|file| {
            let text = fs::read_to_string(root().join("src").join(file)).unwrap();
            !text.starts_with("//! ")
        })
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
}
