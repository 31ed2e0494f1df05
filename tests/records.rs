//! One schema: a value gets the same verdict in whatever shape a record comes. Values are made at random, of those that
//! are nearly right; a failure prints the seed that repeats it (`TOLLGATE_FUZZ_SEED`).
//! It must not know how a field is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::sync::Arc;

use fastrand::Rng;
use serde_json::{Map, Value, json};
use tollgate::auth::claims::Claims;
use tollgate::config;
use tollgate::record::field::{self, FIELDS};
use tollgate::record::row::{Rows, Rules};
use tollgate::record::stored::{fields, texts as hash_of};
use tollgate::record::{Grant, StoredRecord, TokenRecord};

/// Random records, unless `TOLLGATE_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 3_000;

/// A record as it is understood: whether it is disabled, and its grant. `None` where it is refused.
type Verdict = Option<(bool, Grant)>;

fn verdict<E>(record: Result<TokenRecord, E>) -> Verdict {
    record.ok().map(|record| (record.disabled, record.grant))
}

fn read(stored: &StoredRecord) -> Verdict {
    verdict(TokenRecord::read(&"k".into(), stored))
}

fn as_json(record: &Map<String, Value>) -> Verdict {
    read(&StoredRecord::Json(json!(record).to_string()))
}

fn as_hash(record: &[(String, String)]) -> Verdict {
    read(&StoredRecord::Fields(record.iter().cloned().collect()))
}

/// The grant alone, because claims have no other part of a record.
fn as_claims(record: &Map<String, Value>) -> Option<Grant> {
    let mut claims = record.clone();
    claims.retain(|name, _| field::is_claim(name));
    claims.insert("api_key".into(), json!("k"));
    claims.insert("exp".into(), json!(1_000));
    let claims = Claims::read(json!(claims).to_string().as_bytes()).ok()?;
    let claims = claims.verified(true, (0, 0)).ok()?;
    Some(claims.grant.map_or_else(Grant::default, |grant| *grant))
}

/// The record that gateways read once the line is imported.
fn imported(rows: &mut Rows, line: &str) -> Verdict {
    let record = rows.read(line).ok()?;
    let read = as_hash(&record.fields);
    assert!(read.is_some(), "imported and not understood: {line}");
    read
}

fn as_jsonl(record: &Map<String, Value>) -> Verdict {
    let mut record = record.clone();
    record.insert("api_key".into(), json!("k"));
    imported(&mut Rows::jsonl(Rules::default()), &json!(record).to_string())
}

fn as_csv(record: &[(String, String)]) -> Verdict {
    let cell = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let names: Vec<_> = record.iter().map(|(name, _)| name.as_str()).collect();
    let cells: Vec<_> = record.iter().map(|(_, text)| cell(text)).collect();
    let header = ["api_key"].into_iter().chain(names).collect::<Vec<_>>().join(",");
    let line = ["k".to_owned()].into_iter().chain(cells).collect::<Vec<_>>().join(",");
    imported(&mut Rows::csv(&header, Rules::default()).unwrap(), &line)
}

fn as_yaml(record: &Map<String, Value>) -> Verdict {
    let mut record = record.clone();
    record.insert("api_key".into(), json!("k"));
    let plan = record.get("plan").and_then(Value::as_str).filter(|name| field::is_plan_name(name));
    let plans: Map<String, Value> =
        plan.map(|name| (name.to_owned(), json!({ "limits": [] }))).into_iter().collect();
    let text = json!({ "auth": { "tokens": [record] }, "plans": plans }).to_string();
    // `${` would begin a variable.
    let file = config::parse(
        &text.replace("${", "$${"),
        "t.yaml",
        &std::iter::empty::<(String, String)>().collect(),
    );
    let token = &file.ok()?.live.auth.tokens[0];
    // The record as commands show it means the same.
    assert_eq!(as_json(&token.fields), Some((token.record.disabled, token.record.grant.clone())));
    Some((token.record.disabled, token.record.grant.clone()))
}

/// A value that a field may have, nearly has, or never has.
fn value(random: &mut Rng) -> Value {
    let texts = [
        "",
        "basic",
        "A.b-c_9",
        "null",
        "a b",
        "caf\u{e9}",
        "a\nb",
        "true",
        "false",
        "maybe",
        "0",
        "1",
        "7",
        "+7",
        "007",
        " 7",
        "7.0",
        "1e2",
        "-1",
        "1000000000001",
        "18446744073709551616",
        "5/minute",
        "5 / minute",
        "5/fortnight",
        "0/day",
        "2030-01-31T12:00:00Z",
        "2030-01-31 12:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "1893456000",
        "1893456000000",
        "/a",
        "/a/*",
        "*",
        "[]",
        "[\"/a\"]",
        "{}",
        "\"7\"",
        "\u{1b}[2J",
        "$x",
        "${X}",
    ];
    let text = |random: &mut Rng| json!(texts[random.usize(..texts.len())]);
    match random.u8(..12) {
        0 => Value::Null,
        1 => json!(random.bool()),
        2 => {
            let bounds = [0, 1, 2, 1_000_000_000_000, 253_402_300_799, u64::MAX];
            json!(bounds[random.usize(..bounds.len())].saturating_add(random.u64(..2)))
        }
        3 => [json!(-1), json!(1.5), json!(1e300), json!(0.0)][random.usize(..4)].clone(),
        4..7 => text(random),
        7 => limit(random),
        8 => (0..random.usize(..4)).map(|_| limit(random)).collect(),
        9 | 10 => {
            let paths = [
                "/", "/a", "/a/*", "*", "/a*", "", "**", "api/*", "/api/*/x", "/a b", "/%61pi",
                "/a%20b", "/a//b", "/a/../b", "/a?b", "/a#b", "/a%2Fb", "/a;b", "/\u{e9}", "/a{b}",
                "/a%7", "//",
            ];
            let path = |random: &mut Rng| json!(paths[random.usize(..paths.len())]);
            (0..random.usize(..3)).map(|_| path(random)).collect()
        }
        _ => (0..random.usize(..3)).map(|_| text(random)).collect(),
    }
}

fn limit(random: &mut Rng) -> Value {
    let rates = ["5/minute", "9/day", "7 / second", "1000000/day", "5/week", "0/day", ""];
    let rate = json!(rates[random.usize(..rates.len())]);
    if random.bool() {
        return rate;
    }
    let mut limit = json!({ "rate": rate });
    let members = [
        ("burst", vec![json!(9), json!("9"), json!(0), json!(-1), json!(1.5), Value::Null]),
        ("algorithm", vec![json!("sliding_log"), json!("token_bucket"), json!("guess"), json!(7)]),
        (
            "by",
            vec![json!("ip"), json!(["ip", "route"]), json!(["ip", "ip"]), json!([]), json!([7])],
        ),
        ("name", vec![json!("n"), json!("a b"), json!(""), Value::Null]),
        ("per", vec![json!(1)]),
    ];
    for (name, values) in members {
        if random.u8(..4) == 0 {
            limit[name] = values[random.usize(..values.len())].clone();
        }
    }
    limit
}

#[test]
fn a_value_gets_the_same_verdict_in_every_shape() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("TOLLGATE_FUZZ_SEED");
    let seeds = first.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let runs = if first.is_some() { 1 } else { number("TOLLGATE_FUZZ_RUNS").unwrap_or(RUNS) };
    let (mut understood, mut refused) = (HashMap::new(), HashMap::new());
    // The fields that every shape has.
    let fields: Vec<_> = FIELDS[1..].iter().filter(|field| !field.is_of_store).collect();
    for seed in seeds..seeds + runs {
        let mut random = Rng::with_seed(seed);
        let mut record = Map::new();
        // A single field as a rule, because the first of several faults would hide the other faults.
        for _ in 0..[1, 1, 1, 2][random.usize(..4)] {
            let field = fields[random.usize(..fields.len())];
            record.insert(field.name.to_owned(), value(&mut random));
        }
        let case = format!("TOLLGATE_FUZZ_SEED={seed}: {}", json!(record));
        let typed = as_json(&record);
        for name in record.keys() {
            let counts = if typed.is_some() { &mut understood } else { &mut refused };
            *counts.entry(name.clone()).or_insert(0) += 1;
        }
        assert_eq!(as_jsonl(&record), typed, "JSON lines, {case}");
        let is_claimed = record.keys().all(|name| field::is_claim(name));
        if is_claimed {
            assert_eq!(as_claims(&record), typed.clone().map(|(_, grant)| grant), "claims, {case}");
        }

        // Where there are only texts, a text may stand for a number, and an empty one for nothing.
        let texts: Vec<_> =
            hash_of(&record).into_iter().filter(|(name, _)| !record[name].is_null()).collect();
        let textual = as_hash(&texts);
        let on_one_line = texts.iter().all(|(_, text)| !text.contains(['\n', '\r']));
        let is_list = |name: &str| ["limits", "allowed_routes"].contains(&name);
        // A cell of CSV has lists of its own.
        if on_one_line && !texts.iter().any(|(name, _)| is_list(name) && record[name].is_string()) {
            assert_eq!(as_csv(&texts), textual, "CSV, {case}");
        }
        let is_text = |name: &str| ["plan", "organization_id", "name"].contains(&name);
        let loses_its_type = |(name, value): (&String, &Value)| {
            !value.is_null() && value.is_string() != is_text(name)
        };
        let loses_a_type = record.iter().any(loses_its_type);
        match loses_a_type {
            false => assert_eq!(textual, typed, "hash, {case}"),
            true => assert!(typed.is_none() || textual == typed, "hash, {case}"),
        }

        // YAML has types, and texts where a variable of the environment puts them.
        let in_yaml = as_yaml(&record);
        match loses_a_type {
            false => assert_eq!(in_yaml, typed, "YAML, {case}"),
            true => assert!(in_yaml == typed || in_yaml == textual, "YAML, {case}"),
        }

        // A record that is shown and written again is the same record.
        if let Some(typed) = typed {
            let stored = StoredRecord::Json(json!(record).to_string());
            let again = texts_of(&stored);
            assert_eq!(as_hash(&again), Some(typed), "written again, {case}");
        }
    }
    if first.is_none() {
        for field in fields {
            for (what, counts) in [("understood", &understood), ("refused", &refused)] {
                assert!(counts.contains_key(field.name), "{} was never {what}", field.name);
            }
        }
    }
}

/// The hash that holds what `stored` says.
fn texts_of(stored: &StoredRecord) -> Vec<(String, String)> {
    let mut fields = fields(stored);
    fields.retain(|_, value| !value.is_null());
    hash_of(&fields)
}

#[test]
fn what_was_accepted_somewhere_is_refused_everywhere() {
    let id: Arc<str> = "k".into();
    for (name, value) in [
        ("expires_at", json!(1_893_456_000_000_u64)),
        ("expires_at", json!(253_402_300_800_u64)),
        ("allowed_routes", json!(["/a b"])),
        ("allowed_routes", json!(["/%61pi"])),
        ("allowed_routes", json!(["/api/*/x"])),
        ("allowed_routes", json!(["api/*"])),
        ("plan", json!("a b")),
        ("name", json!("a\u{1b}[2Jb")),
        ("disabled", json!(1)),
        ("limits", json!([{ "rate": "5/minute", "per": "ip" }])),
    ] {
        let record = Map::from_iter([(name.to_owned(), value.clone())]);
        let texts = hash_of(&record);
        let verdicts = [
            as_json(&record),
            as_jsonl(&record),
            as_hash(&texts),
            as_csv(&texts),
            as_yaml(&record),
        ];
        assert_eq!(verdicts, [const { None }; 5], "{name}: {value}");
        if field::is_claim(name) {
            assert_eq!(as_claims(&record), None, "{name}: {value}");
        }
        let error =
            TokenRecord::read(&id, &StoredRecord::Json(json!(record).to_string())).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(name) && message.contains("write"), "{message}");
    }
}

#[test]
fn an_empty_organization_and_an_empty_plan_are_absent_everywhere() {
    let nothing = Some((false, Grant::default()));
    for name in ["organization_id", "plan"] {
        let record = Map::from_iter([(name.to_owned(), json!(""))]);
        let texts = hash_of(&record);
        for verdict in
            [as_json(&record), as_jsonl(&record), as_hash(&texts), as_csv(&texts), as_yaml(&record)]
        {
            assert_eq!(verdict, nothing, "{name}");
        }
        assert_eq!(as_claims(&record), Some(Grant::default()), "{name}");
    }
}

#[test]
fn an_id_that_would_break_a_line_of_a_log_is_none() {
    for (id, is_one) in [("k", true), ("a b", true), ("a\nb", false), ("caf\u{e9}", false)] {
        let claims = json!({ "api_key": id, "exp": 1_000 }).to_string();
        let claims = Claims::read(claims.as_bytes()).unwrap();
        assert_eq!(claims.verified(true, (0, 0)).is_ok(), is_one, "{id:?}");
    }
}
