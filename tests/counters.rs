//! Counters that hold what no gateway wrote, or outlive the credential they count for: no limit is forgotten for it.
//! It writes counters into a real Redis, whose keys `docs/redis.md` describes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::*;

/// A gateway on `redis` that has these records.
fn gateway(redis: &Redis, origin: &Origin, tokens: &str) -> Gateway {
    Gateway::start(&format!(
        "redis: {{ url: \"{}\", timeout: 2s }}\nauth: {}\nlimits: {{ default: [] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]",
        redis.url(),
        auth(tokens),
        origin.url()
    ))
}

/// How many of `requests` are admitted.
fn admitted(gateway: &Gateway, api_key: &str, requests: usize) -> usize {
    (0..requests).filter(|_| gateway.get_as(api_key, "/").status() == 200).count()
}

/// A counter of each algorithm, with what follows the length of the window in its key.
const ALGORITHMS: [(&str, &str); 4] = [
    ("fixed_window", ""),
    ("sliding_window", ":sliding"),
    ("sliding_log", ":log"),
    ("token_bucket", ":bucket"),
];

#[test]
fn junk_in_a_counter_is_an_outage_and_no_second_quota() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let values: [&[&str]; 4] =
        [&["SET", "junk"], &["SET", "5:"], &["RPUSH", "1"], &["HSET", "a", "1"]];
    let token = |algorithm: &str, nth: usize| format!("{algorithm}{nth}");
    let records: Vec<String> = ALGORITHMS
        .iter()
        .flat_map(|(algorithm, _)| (0..values.len()).map(move |nth| (*algorithm, nth)))
        .map(|(algorithm, nth)| {
            let id = token(algorithm, nth);
            format!("{{ api_key: {id}, limits: [ {{ rate: 5/day, algorithm: {algorithm} }}, 100/hour ] }}")
        })
        .collect();
    let gateway = gateway(&redis, &origin, &format!("[ {} ]", records.join(", ")));
    for (algorithm, kind) in ALGORITHMS {
        for (nth, value) in values.iter().enumerate() {
            let id = token(algorithm, nth);
            // In every second case a request has been counted before.
            let before = admitted(&gateway, &id, nth % 2);
            let key = format!("quota:{{token:{id}}}:day:86400{kind}");
            redis.command(&["DEL", &key]);
            redis.command(&[&[value[0], &key], &value[1..]].concat());
            let more = admitted(&gateway, &id, 40);
            assert!(before + more <= 5, "{id}: {before} and {more}");
            assert!(more > 0, "{id}: the policy is local");
            // The other limit counts each request once.
            let hour = redis.try_command(&["GET", &format!("quota:{{token:{id}}}:hour:3600")]);
            let hour = hour.unwrap();
            let counted = hour.split(':').nth(1).map_or(0, |used| used.parse().unwrap());
            assert!(counted <= before + more, "{id}: {hour}");
        }
    }
}

/// As after the clock of Redis was set back: the marks of a log and of a bucket are later than now.
#[test]
fn marks_later_than_now_count_from_now() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(
        &redis,
        &origin,
        "[ { api_key: log, limits: [ { rate: 3/second, algorithm: sliding_log } ] },
           { api_key: bucket, limits: [ { rate: 60/minute, burst: 3 } ] } ]",
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let later = (now + Duration::from_secs(600)).as_micros().to_string();
    let log = "quota:{token:log}:second:1:log";
    for n in 1..=3 {
        redis.command(&["ZADD", log, &later, &format!("{later}-{n}")]);
    }
    redis.command(&["SET", "quota:{token:bucket}:minute:60:bucket", &format!("{later}:3")]);
    for api_key in ["log", "bucket"] {
        let started = Instant::now();
        assert_eq!(gateway.get_as(api_key, "/").status(), 429, "{api_key}");
        wait_for("a unit to be there again", || {
            (gateway.get_as(api_key, "/").status() == 200).then_some(())
        });
        assert!(started.elapsed() < Duration::from_secs(10), "{api_key}");
    }
    // Full logs of the most units are moved in pieces, and none is lost.
    let script = "for n = 1, 2500 do redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1] .. '-' .. n) end";
    redis.command(&["EVAL", script, "1", log, &later]);
    assert_eq!(gateway.get_as("log", "/").status(), 429);
    assert!(redis.command(&["ZCARD", log]).parse::<u64>().unwrap() >= 2_500);
    assert_eq!(redis.command(&["ZCOUNT", log, &later, "+inf"]), "0");
}

/// The same for the gateways that share the limits: one that has gone is not counted for as long as the step was.
#[test]
fn a_gateway_that_was_seen_later_than_now_is_forgotten_in_time() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let seen = |gateway: &str| redis.command(&["ZSCORE", "tollgate:gateways", gateway]);
    let later = (token::now() + 3_600) * 1_000;
    redis.command(&["ZADD", "tollgate:gateways", &later.to_string(), "gone"]);
    let _gateway = gateway(&redis, &origin, "[]");
    wait_for("the mark of the gateway to be no later than now", || {
        (seen("gone").parse::<u64>().ok()? <= (token::now() + 1) * 1_000).then_some(())
    });
    let latest = seen("gone");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(seen("gone"), latest, "it is moved once");
}

fn token_command(arguments: &[&str], input: &str) -> Output {
    let mut command = tollgate();
    command.arg("token").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What a command that succeeds says in JSON.
fn made(arguments: &[&str]) -> Value {
    let output = token_command(&[arguments, &["--json"]].concat(), "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn id(token: &Value) -> &str {
    token["storage_key"].as_str().unwrap().strip_prefix("token:").unwrap()
}

fn ask(gateway: &Gateway, token: &Value) -> u16 {
    let credential = format!("Bearer {}", token["credential"].as_str().unwrap());
    gateway.call("GET", "/", &[("Authorization", &credential)], b"").status()
}

#[test]
fn a_rotated_token_goes_on_with_the_old_counters() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&redis, &origin, "[]");
    let file = gateway.config.to_str().unwrap();
    for kind in ["jwt", "key"] {
        let first = made(&["create", "--kind", kind, "--limit", "4/day", "-c", file]);
        assert_eq!(ask(&gateway, &first), 200);
        let second = made(&["rotate", id(&first), "--grace", "1h", "-c", file]);
        assert_eq!(
            redis.command(&["HGET", &format!("token:{}", id(&second)), "counts_as"]),
            id(&first)
        );
        assert_eq!([ask(&gateway, &second), ask(&gateway, &first)], [200, 200], "{kind}");
        // The first token ends; its counters go on.
        let third = made(&["rotate", id(&second), "--grace", "0s", "-c", file]);
        assert_eq!(token_command(&["revoke", id(&first), "-c", file], "").status.code(), Some(0));
        assert_eq!([ask(&gateway, &third), ask(&gateway, &third)], [200, 429], "{kind}");
        // Upstreams and logs know each token by its own name.
        let public = third["api_key"].as_str().unwrap();
        let seen = origin.requests_for("/");
        assert_eq!(seen.last().unwrap().all("x-token-id"), [public], "{kind}");
    }
}

/// The author of one record must not use up the quota of another token.
#[test]
fn only_a_record_of_the_store_names_the_counters_of_another_token() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let open = gateway(&redis, &origin, "[]");
    let file = open.config.to_str().unwrap();
    let lines = [
        ("jsonl", json!({ "api_key": "mallory", "counts_as": "alice" }).to_string()),
        ("csv", "api_key,counts_as\nmallory,alice\n".into()),
    ];
    for (format, line) in lines {
        let output = token_command(&["import", "-", "--format", format, "-c", file], &line);
        assert_eq!(output.status.code(), Some(65), "{format}");
        assert_eq!(redis.command(&["EXISTS", "token:mallory"]), "0", "{format}");
    }
    let yaml = std::fs::read_to_string(&open.config).unwrap();
    let yaml = yaml.replace("tokens: []", "tokens: [ { api_key: mallory, counts_as: alice } ]");
    let path = open.config.with_file_name("claiming.yaml");
    std::fs::write(&path, yaml).unwrap();
    let checked = tollgate().args(["check", "-c", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(checked.status.code(), Some(78));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("auth.tokens[0].counts_as: is not a known key"), "{said}");

    for id in ["alice", "mallory"] {
        redis.record(id, &[("limits", r#"["1/day"]"#)]);
    }
    let claims = json!({ "api_key": "mallory", "exp": token::now() + 600, "counts_as": "alice" });
    let claiming = format!("Bearer {}", token::claims(claims));
    let status = || open.call("GET", "/", &[("Authorization", &claiming)], b"").status();
    assert_eq!([status(), status()], [200, 429]);
    assert_eq!(open.get_as("alice", "/").status(), 200, "nothing of it is used");
    // A counter of something else than a token has no name that a record could say.
    redis.record("eve", &[("limits", r#"["1/day"]"#), ("counts_as", "x\u{1}y")]);
    assert_eq!(open.get_as("eve", "/").status(), 401);
}
