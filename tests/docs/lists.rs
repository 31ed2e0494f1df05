//! What is looked up: metrics, fields of the log, answers, header fields, exit codes, rooms. The sources are read where a
//! running gateway does not print all of a list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::markdown::{Page, at, code};
use super::support::*;

/// Every file of Rust beneath src/, by its text.
fn sources() -> Vec<String> {
    let mut texts = Vec::new();
    let mut open = vec![at("src")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// Splits `text` after its first characters that `fits`.
fn leading(text: &str, fits: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()))
}

fn is_word(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// A gateway that has answered requests of several kinds, on Redis.
fn used_gateway() -> (Gateway, Redis, Origin) {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&format!(
        "redis: {{ url: \"{}\", timeout: 1s }}\nplans: {{ gold: {{ limits: [ 2/day ] }} }}
auth: {}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /up, upstream: up }} ]",
        redis.url(),
        auth("[ { api_key: alice, plan: gold, organization_id: acme } ]"),
        origin.url()
    ));
    for status in [200, 200, 429] {
        assert_eq!(gateway.get_as("alice", "/up").status(), status);
    }
    redis.record("unreadable", &[("rate_limit", "many")]);
    for api_key in ["stranger", "unreadable"] {
        assert_eq!(gateway.get_as(api_key, "/up").status(), 401);
    }
    assert_eq!(gateway.get("/away").status(), 404);
    gateway.wait_log("the last access line", |line| line["status"] == 404);
    (gateway, redis, origin)
}

#[test]
fn every_metric_and_log_field_is_documented_and_no_other() {
    let page = Page::read("docs/reference.md");
    let mut documented = BTreeMap::new();
    for row in page.rows("Metrics") {
        let [name] = code(&row[0]).try_into().unwrap();
        documented.insert(name, code(&row[1]).into_iter().collect::<BTreeSet<_>>());
    }
    let mut registered = BTreeSet::new();
    for text in sources() {
        for rest in text.split("\"tollgate_").skip(1) {
            let (name, rest) = leading(rest, is_word);
            registered.extend(rest.starts_with('"').then(|| format!("tollgate_{name}")));
        }
    }
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), registered);

    let (gateway, _redis, _origin) = used_gateway();
    let mut printed = 0;
    for line in gateway.scrape().lines().filter(|line| line.starts_with("tollgate_")) {
        let (name, rest) = leading(line, is_word);
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = family.filter(|family| documented.contains_key(*family)).unwrap_or(name);
        let labels = rest.split("=\"").filter_map(|part| part.rsplit(['{', ',']).next());
        let labels = labels.filter(|label| label.chars().all(is_word) && *label != "le");
        let labels: BTreeSet<_> = labels.map(str::to_owned).collect();
        assert_eq!(documented.get(name), Some(&labels), "{line}");
        printed += 1;
    }
    assert!(printed > 50, "{printed} series were printed");

    let access = gateway.log().into_iter().filter(|line| line["target"] == "tollgate::access");
    let fields =
        access.flat_map(|line| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>());
    let logged: BTreeSet<_> = fields.collect();
    let rows = page.rows("Log").into_iter().flat_map(|row| code(&row[0]));
    assert_eq!(rows.collect::<BTreeSet<_>>(), logged);
}

#[test]
fn every_answer_is_documented_and_no_other() {
    let number = |constant: &str| {
        let word = |status: &::http::StatusCode| {
            status.canonical_reason().map(|reason| reason.to_uppercase().replace(' ', "_"))
        };
        let mut all = (100..600).map(|code| ::http::StatusCode::from_u16(code).unwrap());
        all.find(|status| word(status).as_deref() == Some(constant)).expect(constant).as_u16()
    };
    let mut answered = BTreeSet::new();
    for text in sources() {
        for rest in text.split("StatusCode::").skip(1) {
            let (constant, rest) = leading(rest, |c| c.is_ascii_uppercase() || c == '_');
            let Some(rest) = rest.strip_prefix(',') else { continue };
            let Some(rest) = rest.trim_start().strip_prefix('"') else { continue };
            let (code, rest) = leading(rest, is_word);
            if rest.starts_with('"') {
                answered.insert((number(constant).to_string(), code.to_owned()));
            }
        }
    }
    assert!(answered.len() > 15, "{answered:?}");
    let page = Page::read("docs/reference.md");
    let rows = page.rows("Answers of the gateway").into_iter().filter(|row| row.len() == 3);
    let documented = rows.map(|row| (row[0].clone(), code(&row[1]).concat()));
    assert_eq!(documented.collect::<BTreeSet<_>>(), answered);
}

#[test]
fn fields_and_exit_codes_are_those_of_the_program() {
    let page = Page::read("docs/reference.md");
    let sources = sources().concat().to_lowercase();
    let rows = page.rows("What the upstream sees");
    let fields: Vec<_> = rows.iter().flat_map(|row| code(&row[0])).collect();
    assert!(fields.len() > 10, "{fields:?}");
    for field in fields {
        assert!(
            sources.contains(&format!("\"{}\"", field.to_lowercase()))
                || sources.contains(&format!("header::{}", field.to_lowercase())),
            "{field}"
        );
    }

    let codes: Vec<_> = page.rows("Exit codes").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(codes, ["0", "64", "65", "69", "70", "78", "130"]);
    let redis = Redis::start();
    let away = format!("redis://{NOBODY}");
    for (code, arguments) in [
        ("0", &["--version"][..]),
        ("64", &["frobnicate"]),
        ("65", &["token", "show", "nothing", "--redis", &redis.url()]),
        ("69", &["token", "list", "--redis", &away]),
        ("78", &["check", "-c", "/nowhere/at/all.yaml"]),
    ] {
        let status = tollgate().args(arguments).output().unwrap().status;
        assert_eq!(status.code().map(|code| code.to_string()).as_deref(), Some(code));
    }
}

#[test]
fn the_rooms_of_the_architecture_page_are_those_of_the_map() {
    let library = fs::read_to_string(at("src/lib.rs")).unwrap();
    let room = |line: &str| Some(line.strip_prefix("//! | [`")?.split('`').next()?.to_owned());
    let mapped: Vec<String> = library.lines().filter_map(room).collect();
    let module = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    let modules: BTreeSet<String> = library.lines().filter_map(module).collect();
    assert_eq!(mapped.iter().cloned().collect::<BTreeSet<_>>(), modules);
    let page = Page::read("docs/architecture.md");
    let documented: Vec<_> =
        page.rows("The rooms").iter().map(|row| code(&row[0]).concat()).collect();
    assert_eq!(documented, mapped);
}
