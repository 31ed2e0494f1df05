//! What clients see while Redis or an upstream is away, and that the gateway recovers by itself.
//! It must not know how the gateway notices an outage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use support::*;

/// No answer may take longer while the store is silent: its deadline here is 300 ms, and there is room for a
/// busy machine.
const PROMPT: Duration = Duration::from_secs(3);

fn gateway(redis: &Redis, origin: &Origin, policy: &str, cache: &str) -> Gateway {
    Gateway::spawn(&format!(
        r#"
redis: {{ url: "{redis}", timeout: 300ms }}
auth:
  jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ] }}
  cache: {{ {cache} }}
limits: {{ default: [ 1000/day ], on_store_failure: {policy}, window: 1d }}
upstreams: {{ up: {{ endpoints: [ "{up}" ] }} }}
routes: [ {{ prefix: /open, upstream: up, auth: none }}, {{ prefix: /, upstream: up }} ]
"#,
        redis = redis.url(),
        up = origin.url(),
    ))
}

const LONG: &str = "ttl: 1h, entries: 1000, max_stale: 1h";

/// Sends a request with a token of `api_key`, and asserts that the answer is in time.
fn ask(gateway: &Gateway, api_key: &str) -> Message {
    let started = Instant::now();
    let answer = gateway.get_as(api_key, "/");
    assert!(
        started.elapsed() < PROMPT,
        "{api_key}: {} after {:?}",
        answer.status(),
        started.elapsed()
    );
    answer
}

fn assert_unavailable(answer: &Message) {
    assert_eq!((answer.status(), answer.code().as_str()), (503, "store_unavailable"), "{answer:?}");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{answer:?}");
}

#[test]
fn the_gateway_starts_without_its_store_and_finds_it_later() {
    let (mut redis, origin) = (Redis::start(), Origin::start());
    redis.kill();
    let gateway = gateway(&redis, &origin, "deny", LONG);
    assert_eq!(gateway.get("/health").status(), 200);
    let unready = gateway.get("/ready");
    assert_eq!(unready.status(), 503);
    assert_eq!(gateway.get("/open").status(), 200, "what needs no token needs no store");
    for _ in 0..5 {
        assert_unavailable(&ask(&gateway, "alice"));
    }
    redis.restart();
    redis.record("alice", &[("name", "x")]);
    gateway.wait_ready();
    wait_for("the token to be found", || (ask(&gateway, "alice").status() == 200).then_some(()));
    assert_eq!(ask(&gateway, "nobody").status(), 401);
}

#[test]
fn a_lost_store_stops_strangers_but_not_known_tokens() {
    for fault in ["killed", "frozen"] {
        let (mut redis, origin) = (Redis::start(), Origin::start());
        redis.record("known", &[("name", "x")]);
        let gateway = gateway(&redis, &origin, "local", LONG);
        gateway.wait_ready();
        assert_eq!(ask(&gateway, "known").status(), 200);
        assert_eq!(ask(&gateway, "stranger").status(), 401);

        if fault == "killed" {
            redis.kill();
        } else {
            redis.freeze();
        }
        for nth in 0..5 {
            assert_eq!(ask(&gateway, "known").status(), 200, "{fault}, request {nth}");
            assert_unavailable(&ask(&gateway, &format!("new-{nth}")));
        }
        // The requests come at once: no request queues behind the dead store.
        std::thread::scope(|scope| {
            for nth in 0..20 {
                let gateway = &gateway;
                scope.spawn(move || match nth % 2 {
                    0 => assert_eq!(ask(gateway, "known").status(), 200, "{fault}"),
                    _ => assert_unavailable(&ask(gateway, &format!("late-{nth}"))),
                });
            }
        });
        wait_for("an answer that does not wait for the store", || {
            let started = Instant::now();
            assert_unavailable(&ask(&gateway, "newest"));
            (started.elapsed() < Duration::from_millis(150)).then_some(())
        });
        assert_eq!(gateway.get("/open").status(), 200, "{fault}");

        if fault == "killed" {
            redis.restart();
            redis.record("known", &[("name", "x")]);
        } else {
            redis.thaw();
        }
        redis.record("newest", &[("name", "x")]);
        wait_for("recovery", || (ask(&gateway, "newest").status() == 200).then_some(()));
        assert_eq!(ask(&gateway, "known").status(), 200, "{fault}, afterwards");
        gateway.wait_ready();
    }
}

#[test]
fn the_failure_policy_decides_about_known_tokens() {
    let (mut redis, origin) = (Redis::start(), Origin::start());
    let policies = ["local", "allow", "deny"].map(|policy| {
        // A record a gateway: the count in Redis is shared, the policy is not. It is written before the gateway starts: the
        // news of a change could come after the first request and take the record out of memory again.
        redis.record(policy, &[("rate_limit", "5")]);
        let gateway = gateway(&redis, &origin, policy, LONG);
        gateway.wait_ready();
        assert_eq!(ask(&gateway, policy).status(), 200);
        (policy, gateway)
    });
    redis.kill();
    for (policy, gateway) in &policies {
        let answers: Vec<_> = (0..15).map(|_| ask(gateway, policy)).collect();
        let count = |status| answers.iter().filter(|answer| answer.status() == status).count();
        let found = (count(200), count(429), count(503));
        match *policy {
            "local" => {
                assert!((1..=5).contains(&found.0) && found.0 + found.1 == 15, "local: {found:?}");
                assert_eq!(answers[14].code(), "rate_limited");
            }
            "allow" => assert_eq!(found, (15, 0, 0), "allow"),
            _ => {
                assert_eq!(found, (0, 0, 15), "deny");
                answers.iter().for_each(assert_unavailable);
            }
        }
    }
    redis.restart();
    for (policy, gateway) in &policies {
        redis.record(policy, &[("rate_limit", "5")]);
        wait_for("recovery", || (ask(gateway, policy).status() == 200).then_some(()));
    }
}

#[test]
fn records_outlive_the_store_for_max_stale() {
    let (mut redis, origin) = (Redis::start(), Origin::start());
    redis.record("alice", &[("name", "x")]);
    let lenient = gateway(&redis, &origin, "allow", "ttl: 100ms, entries: 1000, max_stale: 1h");
    let strict = gateway(&redis, &origin, "allow", "ttl: 100ms, entries: 1000, max_stale: 100ms");
    for gateway in [&lenient, &strict] {
        gateway.wait_ready();
        assert_eq!(ask(gateway, "alice").status(), 200);
    }
    redis.kill();
    // Once `strict` has dropped its copy, the copy of `lenient` is just as old.
    let refused = wait_for("the copy to be too old", || {
        Some(ask(&strict, "alice")).filter(|a| a.status() != 200)
    });
    assert_unavailable(&refused);
    assert_eq!(ask(&lenient, "alice").status(), 200);
}

/// A gateway without tokens in front of these endpoints.
fn upstreams(endpoints: &[&str], retries: usize) -> Gateway {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ {} ], retries: {retries}, timeouts: {{ connect: 1s, read: 500ms }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        endpoints.join(", ")
    ))
}

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let origin = Origin::start();
    let nobody = format!("http://{NOBODY}");
    let gateway = upstreams(&[&nobody, &origin.url()], 1);
    for nth in 0..6 {
        for method in ["GET", "POST"] {
            let answer = gateway.call(method, "/", &[], b"body");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "body"), "{method} {nth}");
        }
    }
    assert_eq!(origin.requests().len(), 12, "each request reached an origin once");

    let alone = upstreams(&[&nobody], 3);
    assert_eq!(alone.get("/").code(), "upstream_unreachable", "there is no other endpoint");
    let never = upstreams(&[&nobody, &origin.url()], 0);
    let statuses: Vec<_> = (0..6).map(|_| never.get("/").status()).collect();
    assert!(
        statuses.contains(&502) && statuses.contains(&200),
        "retries: 0 tries once: {statuses:?}"
    );
}

#[test]
fn a_request_that_is_tried_twice_counts_once() {
    let origin = Origin::start();
    let gateway = Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ \"http://{NOBODY}\", \"{}\" ], retries: 1 }} }}
routes: [ {{ prefix: /, upstream: up, auth: none, limits: [ {{ rate: 6/day, by: ip }} ] }} ]",
        origin.url()
    ));
    let statuses: Vec<_> = (0..8).map(|_| gateway.get("/").status()).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429, 429]);
}

#[test]
fn a_request_that_was_sent_is_repeated_only_if_that_is_safe() {
    let (closing, steady) = (Origin::start(), Origin::start());
    for path in ["/get", "/post"] {
        closing.on(path, |_, _| Ok(false));
    }
    let gateway = upstreams(&[&closing.url(), &steady.url()], 1);
    for nth in 0..6 {
        assert_eq!(gateway.get("/get?key=s3cr3t").status(), 200, "GET {nth}");
    }
    let told: Vec<_> = gateway.lines().into_iter().filter(|line| line.contains("s3cr3t")).collect();
    assert!(told.is_empty(), "a query in the log: {told:#?}");
    assert!(!closing.requests_for("/get").is_empty(), "the closing origin was never asked");

    let statuses: Vec<_> =
        (0..6).map(|_| gateway.call("POST", "/post", &[], b"body").status()).collect();
    let reached = closing.requests_for("/post").len() + steady.requests_for("/post").len();
    assert_eq!(reached, 6, "a POST was repeated or lost: {statuses:?}");
    assert_eq!(
        statuses.iter().filter(|s| **s == 502).count(),
        closing.requests_for("/post").len(),
        "{statuses:?}"
    );
    assert!(statuses.contains(&502), "the closing origin was never asked: {statuses:?}");
}

#[test]
fn a_silent_upstream_is_given_up_on_in_time() {
    let origin = Origin::start();
    let gateway = upstreams(&[&origin.url()], 1);
    let _never = origin.hold("/silent");
    let started = Instant::now();
    let answer = gateway.call("POST", "/silent", &[], b"x");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    assert_eq!(origin.requests_for("/silent").len(), 1);

    // A stale connection in the pool is no reason to refuse what can be sent on a new one.
    origin.on("/last", |request, stream| {
        origin::echo(request, stream)?;
        stream.flush().map(|()| false)
    });
    for nth in 0..5 {
        assert_eq!(gateway.get("/last").status(), 200, "{nth}");
        assert_eq!(gateway.get("/next").status(), 200, "{nth}");
    }
}

#[test]
fn a_failure_is_answered_after_an_informational_answer_too() {
    let origin = Origin::start();
    let nobody = format!("http://{NOBODY}");
    let expecting = [("Expect", "100-continue"), ("Content-Length", "4")];
    let gateway = upstreams(&[&nobody], 0);
    let mut client = gateway.connect();
    for nth in 0..2 {
        client.send(request("POST", "/", &expecting, b""));
        assert_eq!(client.head().unwrap().unwrap().status(), 100, "{nth}");
        client.send("body");
        assert_eq!(client.read().code(), "upstream_unreachable", "{nth}");
    }

    origin.on("/hints", |_, stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").map(|()| false)
    });
    let gateway = upstreams(&[&origin.url()], 0);
    let id = ("X-Request-ID", "hinted");
    let mut client = gateway.connect();
    client.send(request("GET", "/hints", &[id], b""));
    assert_eq!(client.head().unwrap().unwrap().status(), 103);
    assert_eq!(client.read().code(), "upstream_unreachable");
    let line =
        gateway.wait_log("the access line", |l| l["request_id"] == id.1 && l["status"].is_u64());
    assert_eq!(line["status"], 502, "{line}");
}

#[test]
fn a_body_that_is_sent_again_is_not_larger() {
    let (closing, steady) = (Origin::start(), Origin::start());
    closing.on("/put", |_, _| Ok(false));
    let gateway = Gateway::start(&format!(
        "max_body: 3KiB
upstreams: {{ up: {{ endpoints: [ \"{}\", \"{}\" ], retries: 1 }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        closing.url(),
        steady.url()
    ));
    let (body, coded) = ([b'x'; 2048], [("Transfer-Encoding", "chunked")]);
    for nth in 0..4 {
        let answer = gateway.call("PUT", "/put", &coded, &chunked(&body, 1000));
        assert_eq!((answer.status(), answer.body.len()), (200, body.len()), "{nth}");
    }
    assert!(!closing.requests_for("/put").is_empty(), "the closing origin was never asked");
}
