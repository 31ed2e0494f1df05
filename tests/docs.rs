//! The documentation: its commands run, its configurations load, its links lead somewhere, and its lists are those of
//! the program. `keys` has the configuration, `lists` the reference and the rooms. It must not know what commands do
//! inside, only what they print.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "docs/keys.rs"]
mod keys;
#[path = "docs/lists.rs"]
mod lists;
#[path = "docs/markdown.rs"]
mod markdown;
#[path = "docs/session.rs"]
mod session;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use markdown::{Block, Page, at};
use serde_yaml::Value;
use support::*;

/// Blocks of shell that no test can run, by page and first line.
const NOT_RUN: [(&str, &str); 2] = [
    ("docs/operation.md", "export TOLLGATE_JWT_SECRET=$(openssl rand -base64 48)"),
    ("docs/performance.md", "make bench"),
];

/// The output of blocks of shell, by a text of the block. A block that is followed by its output is not here.
const PRINTED: [(&str, &[&str]); 18] = [
    ("make run ", &[]),
    ("make build", &[]),
    ("tollgate run -c", &["/files", "redis://"]),
    ("--routes '/files/*'", &["api_key ", "(shown only now)", "10/minute", "curl "]),
    ("Bearer $TOKEN", &["HTTP/1.1 200 OK", "x-ratelimit-remaining: 9", "# Tollgate"]),
    ("token revoke \"$ID\"", &["10/minute", "organization_id  acme", "revoked "]),
    ("TOLLGATE_LOG__LEVEL=debug", &["10/second, 1000/day"]),
    ("check -c gateway.yaml\n", &["/files"]),
    ("--kind key", &["tg_", "HTTP/1.1 200 OK", "x-ratelimit-limit: 100"]),
    ("redis-cli HSET", &["OK"]),
    ("token rotate", &["alice", "organization_id  acme", "tg_", "revoked bob"]),
    ("token import", &["good 2, bad 0; nothing was written", "imported 2"]),
    ("make simulate", &[]),
    ("tollgate health", &[]),
    ("/metrics", &["tollgate_requests_total{"]),
    ("kill -HUP", &["/files"]),
    ("kill -QUIT", &[]),
    ("kill -TERM", &["exit code 0"]),
];

/// Blocks that are run or written, of all pages, in order.
fn session_blocks() -> Vec<Block> {
    let blocks = Page::all().into_iter().flat_map(|page| page.blocks());
    blocks
        .filter(|block| {
            (block.language() == "sh" && !block.says("no-run")) || block.value("file").is_some()
        })
        .collect()
}

#[test]
fn the_commands_do_what_the_pages_say() {
    let blocks = session_blocks();
    let outputs = session::run(&blocks);
    // The output that follows a block on the page is the whole output.
    let mut expected = BTreeMap::new();
    for page in Page::all() {
        for pair in page.blocks().windows(2) {
            if pair[1].says("output") {
                expected.insert(pair[0].place.clone(), pair[1].text.clone());
            }
        }
    }
    let mut met = BTreeSet::new();
    for (block, output) in blocks.iter().zip(&outputs).filter(|(block, _)| block.language() == "sh")
    {
        if let Some(expected) = expected.get(&block.place) {
            assert_eq!(output, expected, "{}", block.place);
            continue;
        }
        let known = PRINTED.iter().find(|(needle, _)| block.text.contains(needle));
        let (needle, parts) = known.unwrap_or_else(|| panic!("{} prints what?", block.place));
        met.insert(*needle);
        for part in *parts {
            let printed = output.to_lowercase().contains(&part.to_lowercase());
            assert!(printed, "{}: no `{part}` in\n{output}", block.place);
        }
    }
    let unmet: Vec<_> = PRINTED.iter().filter(|(needle, _)| !met.contains(needle)).collect();
    assert!(unmet.is_empty(), "no page has {unmet:?}");
}

#[test]
fn few_blocks_of_shell_are_not_run() {
    let mut not_run = Vec::new();
    for page in Page::all() {
        for block in page.blocks() {
            let known = ["sh", "yaml", "json", "text"].contains(&block.language());
            assert!(known, "{}: `{}` is a language of no test", block.place, block.language());
            if block.language() == "json" {
                serde_json::from_str::<serde_json::Value>(&block.text).expect(&block.place);
            }
            if block.language() == "sh" && block.says("no-run") {
                not_run.push((page.path.clone(), block.text.lines().next().unwrap().to_owned()));
            }
        }
    }
    let expected: Vec<_> =
        NOT_RUN.iter().map(|(page, line)| (page.to_string(), line.to_string())).collect();
    assert_eq!(not_run, expected);
}

#[test]
fn the_configurations_are_valid() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut checked = 0;
    for block in Page::all().iter().flat_map(Page::blocks).filter(|b| b.language() == "yaml") {
        let text = match block.says("part") {
            true => {
                let mut whole = serde_yaml::from_str(LEAST).unwrap();
                merge(&mut whole, serde_yaml::from_str(&block.text).expect(&block.place));
                serde_yaml::to_string(&whole).unwrap()
            }
            false => {
                let whole = block.says("whole") || block.value("file").is_some();
                assert!(whole, "{}: say `whole`, `part` or `file=NAME`", block.place);
                block.text.clone()
            }
        };
        let text = with_secret_files(&text, dir.path());
        let text = with_certificates(&text, dir.path());
        let file = dir.path().join("page.yaml");
        fs::write(&file, &text).unwrap();
        let variables = text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap());
        let output = tollgate()
            .args(["check", "-c", file.to_str().unwrap()])
            .envs(variables.map(|name| (name, long_secret())))
            .output()
            .unwrap();
        let faults = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {faults}\n{text}", block.place);
        checked += 1;
    }
    assert!(checked > 5, "only {checked} configurations were found");
}

/// A small, valid configuration, into which the parts on the pages are merged.
const LEAST: &str = r#"
auth: { jwt: { keys: [ { algorithm: HS256, secret: "${LEAST_SECRET}" } ] } }
upstreams: { up: { endpoints: [ "http://127.0.0.1:1" ] } }
routes: [ { prefix: /, upstream: up } ]
"#;

/// A secret that is long enough for every algorithm.
fn long_secret() -> String {
    "0123456789abcdef".repeat(6)
}

/// Puts the files under /run/secrets that `text` names into `dir`.
fn with_secret_files(text: &str, dir: &Path) -> String {
    const SECRETS: &str = "/run/secrets/";
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    for rest in text.split(SECRETS).skip(1) {
        let name = rest.split(ends).next().unwrap();
        fs::write(dir.join(name), long_secret()).unwrap();
    }
    text.replace(SECRETS, &format!("{}/", dir.display()))
}

/// Puts the certificates and keys under /etc/tollgate that `text` names into `dir`.
fn with_certificates(text: &str, dir: &Path) -> String {
    const FILES: &str = "/etc/tollgate/";
    let issued = tls::Authority::new("docs").issue(&["docs.test"]);
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    for rest in text.split(FILES).skip(1) {
        issued.write(dir, rest.split(ends).next().unwrap());
    }
    text.replace(FILES, &format!("{}/", dir.display()))
}

fn merge(into: &mut Value, part: Value) {
    match (into, part) {
        (Value::Mapping(into), Value::Mapping(part)) => {
            for (key, value) in part {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, part) => *into = part,
    }
}

#[test]
fn links_lead_somewhere() {
    let mut pages = Page::all();
    pages.push(Page::read("docs/SUMMARY.md"));
    let mut links = 0;
    for page in &pages {
        let anchors = page.anchors();
        let titles = page.sections().len() - 1;
        assert_eq!(anchors.len(), titles, "{}: two headings are the same", page.path);
        for (line, target) in page.links() {
            links += 1;
            let place = format!("{}:{line}: {target}", page.path);
            if target.contains("://") {
                let url = url::Url::parse(&target).expect(&place);
                assert!(url.scheme() == "https" && url.host_str().is_some(), "{place}");
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match file {
                "" => at(&page.path),
                file => at(&page.path).parent().unwrap().join(file),
            };
            assert!(file.exists(), "{place}: there is no such file");
            if !anchor.is_empty() {
                let file = file.canonicalize().unwrap();
                let linked = pages.iter().find(|page| at(&page.path) == file);
                let linked = linked.unwrap_or_else(|| panic!("{place}: is no page"));
                assert!(linked.anchors().contains(anchor), "{place}: there is no such heading");
            }
        }
    }
    assert!(links > 50, "only {links} links were found");
    let readme: BTreeSet<_> = pages[0].links().into_iter().map(|(_, target)| target).collect();
    for page in &pages[1..pages.len() - 1] {
        assert!(readme.contains(&page.path), "the README does not link to {}", page.path);
    }
    let files = fs::read_dir(at("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let files = files.filter(|name| name.to_string_lossy().ends_with(".md")).count();
    assert_eq!(files, pages.len() - 1, "a page is not in docs/SUMMARY.md");
    assert!(pages[0].lines() <= 220, "the README has {} lines", pages[0].lines());
}

#[test]
fn the_tests_that_hold_promises_exist() {
    let mut named = 0;
    for page in Page::all() {
        for span in page.code_spans() {
            let Some((file, name)) = span.split_once("::") else { continue };
            if !file.starts_with("tests/") {
                continue;
            }
            let text =
                fs::read_to_string(at(file)).unwrap_or_else(|error| panic!("{span}: {error}"));
            let test = format!("fn {name}()");
            let is_test = |before: &str| {
                let above = before.trim_end().trim_end_matches("async").trim_end().lines().last();
                above.is_some_and(|line| line.starts_with("#[") && line.contains("test"))
            };
            let found = text.split_once(&test).is_some_and(|(before, _)| is_test(before));
            assert!(found, "{}: `{span}` is no test", page.path);
            named += 1;
        }
    }
    let promises = Page::read("docs/limits.md");
    let promises =
        promises.prose().iter().filter(|(_, line)| line.starts_with("  Held by ")).count();
    assert!(promises >= 20 && named > promises, "{named} tests for {promises} promises");
}
