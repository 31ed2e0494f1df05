//! Protection of clients from each other: a client cannot hold too many requests open, and cannot guess tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::*;

fn gateway(origin: &Origin, auth: &str, limits: &str) -> Gateway {
    Gateway::start(&format!(
        "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ] }}, {auth} }}
limits: {{ default: [ 100/day ], {limits} }}
trusted_proxies: [ 127.0.0.1/32 ]
upstreams: {{ up: {{ endpoints: [ \"{up}\" ] }} }}
routes:
  - {{ prefix: /, upstream: up }}
  - {{ prefix: /open, upstream: up, auth: none }}
  - {{ prefix: /narrow, upstream: up, auth: none, max_in_flight: 1 }}
",
        up = origin.url(),
    ))
}

/// Sends a request and does not wait for its answer.
fn send(gateway: &Gateway, target: &str, credential: &str) -> Client {
    let mut client = gateway.connect();
    client.send(request("GET", target, &[("Authorization", credential)], b""));
    client
}

#[test]
fn a_token_has_a_bounded_number_of_requests_under_way() {
    let origin = Origin::start();
    let gateway =
        gateway(&origin, "tokens: [ { api_key: a }, { api_key: b } ]", "max_in_flight: 2");
    let gate = origin.hold("/slow");
    let mut waiting: Vec<_> = (0..2).map(|_| send(&gateway, "/slow", &bearer("a"))).collect();
    wait_for("both to be under way", || (origin.requests_for("/slow").len() == 2).then_some(()));
    for _ in 0..3 {
        let refused = gateway.get_as("a", "/fast");
        assert_eq!((refused.status(), refused.code().as_str()), (429, "too_many_in_flight"));
        assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(gateway.get_as("b", "/fast").status(), 200, "another token is not concerned");
    gate.open();
    gate.open();
    assert!(waiting.iter_mut().all(|client| client.read().text() == "held"));
    let next = wait_for("a place", || {
        Some(gateway.get_as("a", "/fast")).filter(|answer| answer.status() == 200)
    });
    assert_eq!(
        next.header("x-ratelimit-remaining").as_deref(),
        Some("97"),
        "refusals consumed nothing"
    );
    let refusals = gateway.metric("tollgate_rejections_total{code=\"too_many_in_flight\"}");
    assert!(refusals.is_some_and(|refusals| refusals >= 3.0), "{refusals:?}");
}

#[test]
fn a_client_that_leaves_gives_its_place_up() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "tokens: []", "max_in_flight: none");
    let gate = origin.hold("/narrow/slow");
    let gone = send(&gateway, "/narrow/slow", "");
    origin.one("/narrow/slow");
    let refused = gateway.get("/narrow/fast");
    assert_eq!((refused.status(), refused.code().as_str()), (429, "too_many_in_flight"));
    assert_eq!(gateway.get("/open").status(), 200, "another route is not concerned");
    drop(gone);
    wait_for("the place", || (gateway.get("/narrow/fast").status() == 200).then_some(()));
    drop(gate);
}

#[test]
fn a_client_that_guesses_tokens_is_told_to_wait_and_no_other_client_is() {
    let origin = Origin::start();
    let gateway =
        gateway(&origin, "tokens: [ { api_key: a } ], max_failures: 5/hour", "sync: exact");
    let ask = |credential: &str, client: &str| {
        let fields = [("Authorization", credential), ("X-Forwarded-For", client)];
        gateway.call("GET", "/", &fields, b"")
    };
    let known = bearer("a");
    assert_eq!(ask(&known, "2001:db8::1").status(), 200);
    // An hour's end may fall between the first and the last request, but only once.
    let refused = wait_for("too many guesses", || {
        let answer = ask("Bearer guess", "2001:db8::1");
        match answer.status() {
            401 => None,
            _ => Some(answer),
        }
    });
    assert_eq!((refused.status(), refused.code().as_str()), (429, "too_many_failures"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3_600).contains(&wait), "{wait}");
    assert_eq!(refused.header("www-authenticate"), None);
    assert_eq!(ask(&bearer("unknown"), "2001:db8::2").status(), 429, "the same network");
    assert_eq!(ask("Bearer guess", "192.0.2.1").status(), 401, "another client");
    let missing = gateway.call("GET", "/", &[("X-Forwarded-For", "2001:db8::1")], b"");
    assert_eq!(missing.status(), 401, "no token is no guess");
    assert_eq!(ask(&known, "2001:db8::1").status(), 200, "a token that was verified before passes");
}
