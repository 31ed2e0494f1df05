//! Health checks: what they ask, what they find, and what becomes of the requests. It must not know how checks are timed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/h2_origin.rs"]
mod h2_origin;
mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2_origin::{Authority, H2Origin};
use support::*;

#[test]
fn server_process() {
    support::server::serve_if_asked();
}

/// A configuration without tokens and breakers whose upstream has these endpoints and further keys.
fn config(endpoints: &[&str], more: &str) -> String {
    upstream_config(endpoints, &format!("breaker: {{ failures: none }}, {more}"))
}

fn health(gateway: &Gateway, endpoint: &str) -> Option<f64> {
    gateway.metric(&format!("tollgate_upstream_healthy{{endpoint=\"{endpoint}\",upstream=\"up\"}}"))
}

fn wait_health(gateway: &Gateway, endpoint: &str, expected: f64) {
    wait_for(&format!("{endpoint} to be {expected}"), || {
        (health(gateway, endpoint) == Some(expected)).then_some(())
    });
}

fn lines(gateway: &Gateway, text: &str) -> usize {
    let says = |line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|message| message.contains(text))
    };
    gateway.log().iter().filter(|line| says(line)).count()
}

/// An origin whose answer to `/health` has the status that this holds.
fn checked_origin() -> (Origin, Arc<AtomicUsize>) {
    let (origin, status) = (Origin::start(), Arc::new(AtomicUsize::new(200)));
    let answered = Arc::clone(&status);
    origin.on("/health", move |_, stream| {
        let status = answered.load(Ordering::Relaxed);
        stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        Ok(true)
    });
    (origin, status)
}

const QUICK: &str = "health: { path: \"/health?deep=1\", interval: 100ms, timeout: 2s }";

#[test]
fn an_unhealthy_endpoint_gets_no_requests_until_it_is_healthy() {
    let ((one, status), (two, other_status)) = (checked_origin(), checked_origin());
    let gateway = Gateway::start(&config(&[&one.url(), &two.url()], QUICK));
    wait_for("a check", || one.requests_for("/health").pop());
    let check = one.requests_for("/health").remove(0);
    assert_eq!(check.line, "GET /health?deep=1 HTTP/1.1");
    assert_eq!(check.header("host"), Some(one.address.to_string()));
    assert_eq!(health(&gateway, &one.url()), Some(1.0));

    status.store(500, Ordering::Relaxed);
    wait_health(&gateway, &one.url(), 0.0);
    for _ in 0..6 {
        assert_eq!(gateway.get("/x").status(), 200);
    }
    let before = one.requests_for("/x").len();
    assert_eq!(before, 0, "it gets no requests");

    // Without any healthy endpoint there is no answer.
    other_status.store(404, Ordering::Relaxed);
    wait_health(&gateway, &two.url(), 0.0);
    let refused = gateway.call("GET", "/x", &[("X-Request-ID", "refused")], b"");
    assert_eq!((refused.status(), refused.code().as_str()), (503, "upstream_unavailable"));
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    let line = gateway
        .wait_log("its line", |line| line["request_id"] == "refused" && line["status"].is_u64());
    assert_eq!(line["reason"], "unhealthy");

    // What is known outlives a reload of other rules.
    gateway.reload(&config(&[&one.url(), &two.url()], &format!("{QUICK}, retries: 1")));
    wait_for("the reload", || {
        (gateway.metric("tollgate_config_generation") == Some(2.0)).then_some(())
    });
    assert_eq!(gateway.get("/x").status(), 503);

    status.store(204, Ordering::Relaxed);
    wait_health(&gateway, &one.url(), 1.0);
    assert_eq!(gateway.get("/x").status(), 200);
    assert_eq!(one.requests_for("/x").len(), 1);
    assert_eq!(lines(&gateway, "is unhealthy, and gets no requests: status 500"), 1);
    assert_eq!(lines(&gateway, "is healthy again, and gets requests"), 1);

    // Without checks nothing is unhealthy.
    gateway.reload(&config(&[&one.url(), &two.url()], "retries: 1"));
    wait_for("the reload", || {
        (gateway.metric("tollgate_config_generation") == Some(3.0)).then_some(())
    });
    assert_eq!(health(&gateway, &two.url()), None);
    for _ in 0..4 {
        assert_eq!(gateway.get("/y").status(), 200);
    }
    assert_eq!((one.requests_for("/y").len(), two.requests_for("/y").len()), (2, 2));
}

#[test]
fn a_connection_is_a_check_and_one_that_hangs_delays_no_other() {
    let (mut server, origin) = (ServerProcess::start(), Origin::start());
    let _never = origin.hold("/health");
    let url = server.url();
    let gateway = Gateway::start(&format!(
        "upstreams:
  up: {{ endpoints: [ \"{url}\" ], health: {{ interval: 100ms, timeout: 500ms }} }}
  slow: {{ endpoints: [ \"{}\" ], health: {{ path: /health, interval: 100ms, timeout: 1s, unhealthy_after: 1 }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }}, {{ prefix: /slow, upstream: slow, auth: none }} ]",
        origin.url()
    ));
    let began = Instant::now();
    gateway.wait_log("the deadline", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("upstream slow") && message.ends_with("no answer within 1s")
    });
    assert_eq!(gateway.get("/").status(), 200);
    server.kill();
    wait_health(&gateway, &url, 0.0);
    server.start_again();
    wait_health(&gateway, &url, 1.0);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // A check that hangs is not begun again before it ends.
    assert!(origin.connections() <= 2 + began.elapsed().as_secs() as usize);
}

#[test]
fn grpc_servers_are_asked_in_their_own_way_with_and_without_tls() {
    let authority = Authority::new();
    let tls = format!("tls: {{ ca: \"{}\" }}", authority.file().display());
    for (origin, scheme, more) in [
        (H2Origin::start(), "h2c", ""),
        (H2Origin::start_tls(&authority, "127.0.0.1", &["h2"], None), "https", &*tls),
    ] {
        let url = origin.url(scheme);
        let rules = "health: { grpc: a.B, interval: 100ms, timeout: 2s }";
        let more = [rules, more].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let gateway = Gateway::start(&config(&[&url], &more.join(", ")));
        wait_for("a check", || origin.requests().pop());
        assert_eq!(origin.requests()[0], "HTTP/2 POST /grpc.health.v1.Health/Check");
        assert_eq!(health(&gateway, &url), Some(1.0), "{scheme}");
        origin.serves(false);
        wait_health(&gateway, &url, 0.0);
        origin.serves(true);
        wait_health(&gateway, &url, 1.0);
        assert_eq!(gateway.get("/x").status(), 200, "{scheme}");
    }
}
