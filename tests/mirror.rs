//! Copies of requests for a second upstream: what they carry, and that a request never waits for one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/h2_origin.rs"]
mod h2_origin;
mod support;

use std::time::{Duration, Instant};

use h2_origin::{Authority, H2Origin};
use support::*;

/// A gateway whose routes copy their requests for `shadow`.
fn config(origin: &Origin, shadow: &str, rules: &str) -> String {
    format!(
        r#"auth: {}
upstreams:
  up: {{ endpoints: [ "{}" ] }}
  shadow: {{ endpoints: [ "{shadow}" ], timeouts: {{ connect: 200ms }} }}
routes:
  - prefix: /copied
    upstream: up
    strip_prefix: true
    forward_credential: false
    mirror: {{ upstream: shadow, {rules} }}
    headers: {{ request: {{ set: {{ X-Source: tollgate }} }} }}"#,
        auth("[ { api_key: alice, organization_id: acme } ]"),
        origin.url(),
    )
}

fn copies(gateway: &Gateway, outcome: &str) -> f64 {
    let series =
        format!("tollgate_mirrored_requests_total{{outcome=\"{outcome}\",upstream=\"shadow\"}}");
    gateway.metric(&series).unwrap_or(0.0)
}

fn wait_copies(gateway: &Gateway, outcome: &str, number: f64) {
    wait_for(outcome, || (copies(gateway, outcome) == number).then_some(()));
}

fn call(client: &mut Client, method: &str, path: &str, case: &str, body: &[u8]) -> Message {
    let bearer = bearer("alice");
    let fields = [("Authorization", &*bearer), ("X-Case", case), ("Host", "shop.test")];
    client.call(method, path, &fields, body)
}

#[test]
fn a_copy_is_what_the_upstream_gets() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let gateway =
        Gateway::start_with_one_thread(&config(&origin, &shadow.url(), "methods: [ GET, POST ]"));
    let mut client = gateway.connect();
    for (case, method, path, body) in [
        ("get", "GET", "/copied/a%20b?x=1", vec![]),
        ("head", "HEAD", "/copied/c", vec![]),
        ("post", "POST", "/copied/d", b"hello".to_vec()),
        ("large", "POST", "/copied/e", vec![b'x'; 64 << 10]),
    ] {
        let answer = call(&mut client, method, path, case, &body);
        assert_eq!(answer.status(), 200, "{case}");
        let copy = wait_for(case, || shadow.case(case).filter(|copy| copy.complete));
        let sent = origin.case(case).unwrap();
        assert_eq!(copy.line, sent.line, "{case}");
        assert!(copy.body == body, "{case}");
        let fields = |message: &Message| {
            let own = ["connection"];
            let fields =
                message.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone()));
            let mut fields: Vec<_> =
                fields.filter(|(name, _)| !own.contains(&name.as_str())).collect();
            fields.sort();
            fields
        };
        assert_eq!(fields(&copy), fields(&sent), "{case}");
        assert_eq!(copy.header("authorization"), None);
        assert_eq!(copy.all("x-organization-id"), ["acme"]);
        assert_eq!(copy.all("x-source"), ["tollgate"]);
    }
    wait_copies(&gateway, "sent", 4.0);
    assert_eq!(shadow.connections(), 1, "connections are kept");

    // In chunks: the copy has the length that is known by then.
    let bearer = bearer("alice");
    let fields =
        [("Transfer-Encoding", "chunked"), ("Authorization", &*bearer), ("X-Case", "chunks")];
    client.send(request("POST", "/copied/chunks", &fields, b""));
    client.send(chunked(b"in several parts", 3));
    assert_eq!(client.read().text(), "in several parts");
    let copy = wait_for("the copy", || shadow.case("chunks").filter(|copy| copy.complete));
    assert_eq!(copy.text(), "in several parts");
    assert_eq!(copy.all("content-length"), ["16"]);
}

#[test]
fn refused_requests_other_methods_and_large_bodies_are_not_copied() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let gateway = Gateway::start_with_one_thread(&config(&origin, &shadow.url(), "percent: 100"));
    assert_eq!(gateway.get("/copied/refused").status(), 401);
    assert_eq!(gateway.get_as("stranger", "/copied/refused").status(), 401);
    let mut client = gateway.connect();
    assert_eq!(call(&mut client, "POST", "/copied", "post", b"x").status(), 200);
    let large = vec![b'x'; (64 << 10) + 1];
    assert_eq!(call(&mut client, "GET", "/copied", "large", &large).status(), 200);
    wait_copies(&gateway, "dropped", 1.0);
    assert_eq!(call(&mut client, "GET", "/copied", "last", b"").status(), 200);
    wait_copies(&gateway, "sent", 1.0);
    assert_eq!(shadow.requests().len(), 1);
    assert!(shadow.case("last").is_some());
}

#[test]
fn the_percentage_is_kept_and_a_reload_changes_it() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let gateway = Gateway::start(&config(&origin, &shadow.url(), "percent: 20"));
    let mut client = gateway.connect();
    for _ in 0..500 {
        assert_eq!(call(&mut client, "GET", "/copied", "x", b"").status(), 200);
    }
    wait_for("the copies", || {
        (copies(&gateway, "sent") == shadow.requests().len() as f64).then_some(())
    });
    let copied = shadow.requests().len();
    assert!((50..160).contains(&copied), "{copied}");
    let generation = gateway.metric("tollgate_config_generation").unwrap();
    gateway.reload(&config(&origin, &shadow.url(), "percent: 100"));
    wait_for("the reload", || {
        (gateway.metric("tollgate_config_generation")? > generation).then_some(())
    });
    for _ in 0..20 {
        call(&mut client, "GET", "/copied", "x", b"");
    }
    wait_copies(&gateway, "sent", (copied + 20) as f64);
}

#[test]
fn a_dead_or_silent_upstream_for_copies_costs_requests_nothing() {
    let origin = Origin::start();
    let silent = Origin::start();
    let _gate = silent.hold("/");
    let dead = format!("http://{NOBODY}");
    for (shadow, requests) in [(&dead, 50), (&silent.url(), 64)] {
        let rules = "max_in_flight: 20, timeout: 2s";
        let gateway = Gateway::start_with_one_thread(&config(&origin, shadow, rules));
        let mut client = gateway.connect();
        let mut slowest = Duration::ZERO;
        for _ in 0..requests {
            let started = Instant::now();
            assert_eq!(call(&mut client, "GET", "/copied", "x", b"").status(), 200);
            slowest = slowest.max(started.elapsed());
        }
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        if shadow == &dead {
            wait_copies(&gateway, "failed", 50.0);
        } else {
            // No more than 20 wait at the same time, and none for ever.
            assert_eq!(copies(&gateway, "dropped"), 44.0);
            wait_copies(&gateway, "failed", 20.0);
            assert_eq!(copies(&gateway, "sent"), 0.0);
        }
    }
}

/// An upstream may get copies of one route and serve another.
#[test]
fn copies_say_nothing_about_an_upstream_that_serves_requests() {
    let (origin, shared) = (Origin::start(), Origin::start());
    let slow = |request: &Message, stream: &mut std::net::TcpStream| {
        std::thread::sleep(Duration::from_millis(400));
        support::origin::echo(request, stream)
    };
    shared.on("/copied", slow);
    shared.on("/own", slow);
    shared.reply("/own/bad", "HTTP/1.1 503 Bad\r\nContent-Length: 0\r\n\r\n");
    let gateway = Gateway::start_with_one_thread(&format!(
        r#"upstreams:
  up: {{ endpoints: [ "{}" ] }}
  shadow: {{ endpoints: [ "{}" ], breaker: {{ failures: 2, open_for: 1s, statuses: [ 503 ] }} }}
routes:
  - {{ prefix: /copied, upstream: up, auth: none, mirror: {{ upstream: shadow, timeout: 100ms }} }}
  - {{ prefix: /own, upstream: shadow, auth: none }}"#,
        origin.url(),
        shared.url(),
    ));
    let mut client = gateway.connect();
    for _ in 0..7 {
        assert_eq!(client.call("GET", "/copied", &[], b"").status(), 200);
    }
    wait_copies(&gateway, "failed", 7.0);
    assert_eq!(client.call("GET", "/own", &[], b"").status(), 200, "the breaker is closed");

    // Requests open it. Then copies are dropped, and take no trial from requests.
    for _ in 0..2 {
        assert_eq!(client.call("GET", "/own/bad", &[], b"").status(), 503);
    }
    let open = format!(
        "tollgate_upstream_breaker_open{{endpoint=\"{}\",upstream=\"shadow\"}}",
        shared.url()
    );
    wait_for("an open breaker", || (gateway.metric(&open) == Some(1.0)).then_some(()));
    let seen = shared.requests().len();
    assert_eq!(client.call("GET", "/copied/x", &[], b"").status(), 200);
    wait_copies(&gateway, "dropped", 1.0);
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(client.call("GET", "/copied/x", &[], b"").status(), 200);
    wait_copies(&gateway, "dropped", 2.0);
    assert_eq!(shared.requests().len(), seen);
    assert_eq!(client.call("GET", "/own", &[], b"").status(), 200, "a request is on trial");
    assert_eq!(client.call("GET", "/copied/x", &[], b"").status(), 200);
    wait_copies(&gateway, "sent", 1.0);
}

/// A copy that waits for a body takes no room, and is counted when the body never ends.
#[test]
fn a_request_that_breaks_off_is_a_dropped_copy() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let rules = "methods: [ GET, POST ], max_in_flight: 1";
    let gateway = Gateway::start_with_one_thread(&config(&origin, &shadow.url(), rules));
    let bearer = bearer("alice");
    let fields = [("Authorization", &*bearer), ("Content-Length", "10")];
    let mut uploads: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut uploads {
        client.send(request("POST", "/copied/upload", &fields, b""));
        client.send("part");
    }
    wait_for("the uploads", || (origin.requests_for("/upload").len() == 3).then_some(()));
    assert_eq!(call(&mut gateway.connect(), "GET", "/copied", "x", b"").status(), 200);
    wait_copies(&gateway, "sent", 1.0);
    drop(uploads);
    wait_copies(&gateway, "dropped", 3.0);
}

#[test]
fn the_answer_to_a_copy_reaches_nobody() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    shadow.reply("/x", "HTTP/1.1 500 Oh\r\nX-Shadow: yes\r\nContent-Length: 6\r\n\r\nshadow");
    shadow.reply("/garbage", "what?\r\n\r\n");
    let gateway = Gateway::start_with_one_thread(&config(&origin, &shadow.url(), "percent: 100"));
    let mut client = gateway.connect();
    for nth in 1..=3 {
        let answer = call(&mut client, "GET", "/copied/x", "x", b"");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "GET /x HTTP/1.1"));
        assert_eq!(answer.header("x-shadow"), None);
        wait_copies(&gateway, "sent", f64::from(nth));
    }
    assert_eq!(call(&mut client, "GET", "/copied/garbage", "x", b"").status(), 200);
    wait_copies(&gateway, "failed", 1.0);
}

#[test]
fn a_request_that_is_tried_again_is_copied_once() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let failed = std::sync::atomic::AtomicBool::new(false);
    // The first request for this path gets no answer.
    origin.on("/broken", move |request, stream| {
        if !failed.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Ok(false);
        }
        support::origin::echo(request, stream)
    });
    let yaml = config(&origin, &shadow.url(), "methods: [ GET, PUT ]");
    let gateway = Gateway::start_with_one_thread(&yaml);
    let answer = call(&mut gateway.connect(), "PUT", "/copied/broken", "broken", b"once");
    assert_eq!(answer.text(), "once");
    wait_copies(&gateway, "sent", 1.0);
    assert_eq!(shadow.one("/broken").text(), "once");

    // Half of the requests go to an endpoint first at which nothing listens.
    let both = format!("{}\", \"http://{NOBODY}", origin.url());
    let gateway = Gateway::start_with_one_thread(&yaml.replace(&origin.url(), &both));
    let mut client = gateway.connect();
    for nth in 0..4 {
        let answer = call(&mut client, "PUT", &format!("/copied/{nth}"), "x", b"once");
        assert_eq!(answer.text(), "once");
    }
    wait_copies(&gateway, "sent", 4.0);
    for nth in 0..4 {
        assert_eq!(shadow.one(&format!("/{nth}")).text(), "once");
    }
}

#[test]
fn copies_go_to_servers_of_http2_and_over_tls() {
    let (origin, plain, authority) = (H2Origin::start(), H2Origin::start(), Authority::new());
    let secure = H2Origin::start_tls(&authority, "shadow.test", &["h2", "http/1.1"], None);
    let gateway = Gateway::start_with_one_thread(&format!(
        r#"upstreams:
  up: {{ endpoints: [ "{}" ] }}
  plain: {{ endpoints: [ "{}" ] }}
  secure: {{ endpoints: [ "{}" ], tls: {{ ca: "{}", server_name: shadow.test }} }}
routes:
  - {{ prefix: /plain, upstream: up, auth: none, mirror: {{ upstream: plain, methods: [ GET, POST ] }} }}
  - {{ prefix: /secure, upstream: up, auth: none, mirror: {{ upstream: secure }} }}"#,
        origin.url("h2c"),
        plain.url("h2c"),
        secure.url("https"),
        authority.file().display(),
    ));
    let mut client = gateway.connect();
    for method in ["GET", "POST"] {
        let body = if method == "POST" { &b"body"[..] } else { b"" };
        let answer = client.call(method, "/plain/x", &[], body);
        assert_eq!(answer.text(), format!("HTTP/2 {method} gateway.test /plain/x {}", body.len()));
    }
    assert_eq!(client.call("GET", "/secure/x", &[], b"").status(), 200);
    for (upstream, number) in [("plain", 2.0), ("secure", 1.0)] {
        let series =
            format!("tollgate_mirrored_requests_total{{outcome=\"sent\",upstream=\"{upstream}\"}}");
        wait_for(&series, || (gateway.metric(&series) == Some(number)).then_some(()));
    }
    assert_eq!(plain.requests(), ["HTTP/2 GET /plain/x", "HTTP/2 POST /plain/x"]);
    assert_eq!(secure.requests(), ["GET /secure/x HTTP/1.1"]);
}
