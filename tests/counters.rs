//! Counters that hold what no gateway wrote, or outlive the credential they count for: no limit is forgotten for it.
//! It writes counters into a real Redis, whose keys `docs/redis.md` describes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
