//! Counters that hold what no gateway wrote, or outlive the credential they count for: no limit is forgotten for it.
//! It writes counters into a real Redis, whose keys `docs/redis.md` describes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

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
