//! Endpoints that fail: their breakers, other endpoints for the requests that failed, and what a reload keeps. It must not
//! know how an endpoint is chosen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::*;

#[test]
fn server_process() {
    support::server::serve_if_asked();
}

/// A configuration without tokens whose upstream has these endpoints and further keys.
fn config(endpoints: &[&str], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "upstreams: {{ up: {{ endpoints: [ {} ], {more} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        endpoints.join(", ")
    )
}

fn is_open(gateway: &Gateway, endpoint: &str) -> Option<f64> {
    gateway.metric(&format!(
        "tollgate_upstream_breaker_open{{endpoint=\"{endpoint}\",upstream=\"up\"}}"
    ))
}

/// How many log lines say this.
fn lines(gateway: &Gateway, text: &str) -> usize {
    let says = |line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|message| message.contains(text))
    };
    gateway.log().iter().filter(|line| says(line)).count()
}

const OPENED: &str = "times in a row, and gets no requests for";
const CLOSED: &str = "works again, and gets requests";

#[test]
fn a_breaker_opens_after_failures_in_a_row_and_one_request_tries_the_endpoint() {
    let mut server = ServerProcess::start();
    let url = server.url();
    let gateway =
        Gateway::start(&config(&[&url], "retries: 0, breaker: { failures: 3, open_for: 2s }"));
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!(is_open(&gateway, &url), Some(0.0));
    server.kill();
    // The first may go to a kept connection, whose end says nothing.
    let statuses: Vec<_> = (0..5).map(|_| gateway.get("/").status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 3, "{statuses:?}");
    let refused = gateway.call("GET", "/", &[("X-Request-ID", "refused")], b"");
    assert_eq!((refused.status(), refused.code().as_str()), (503, "upstream_unavailable"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    let line = gateway.wait_log("its line", |line| line["request_id"] == "refused");
    assert_eq!(line["reason"], "breaker_open", "{line}");
    assert_eq!(is_open(&gateway, &url), Some(1.0));

    // The request on trial fails, and the endpoint is left alone again.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(gateway.get("/").status(), 503);
    server.start_again();
    wait_for("the endpoint to be tried", || (gateway.get("/").status() == 200).then_some(()));
    assert_eq!(is_open(&gateway, &url), Some(0.0));
    assert_eq!((lines(&gateway, OPENED), lines(&gateway, CLOSED)), (1, 1));
}

#[test]
fn a_client_that_leaves_gives_the_trial_back_and_opens_nothing() {
    let origin = Origin::start();
    let fails = std::sync::Arc::new(AtomicBool::new(true));
    let failing = std::sync::Arc::clone(&fails);
    origin.on("/flaky", move |request, stream| match failing.load(Ordering::Relaxed) {
        true => Ok(false),
        false => origin::echo(request, stream),
    });
    let gate = origin.hold("/held");
    let url = origin.url();
    let gateway = Gateway::start(&config(
        &[&url],
        "retries: 0, timeouts: { read: 10s }, breaker: { failures: 2, open_for: 500ms }",
    ));
    let leave = |nth: usize| {
        let mut client = gateway.connect();
        client.send(request("GET", "/held", &[], b""));
        wait_for("the request", || (origin.requests_for("/held").len() == nth).then_some(()));
        drop(client);
    };
    for nth in 1..=4 {
        leave(nth);
    }
    assert_eq!(is_open(&gateway, &url), Some(0.0), "nothing failed");
    while is_open(&gateway, &url) == Some(0.0) {
        assert_eq!(gateway.get("/flaky").status(), 502);
    }
    thread::sleep(Duration::from_millis(600));
    leave(5);
    // The request on trial has left; another gets its place at once.
    fails.store(false, Ordering::Relaxed);
    wait_for("another trial", || (gateway.get("/flaky").status() == 200).then_some(()));
    assert_eq!(is_open(&gateway, &url), Some(0.0));
    drop(gate);
}

#[test]
fn the_header_of_a_long_answer_ends_the_trial() {
    let origin = Origin::start();
    origin.on("/closes", |_, _| Ok(false));
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = parking_lot::Mutex::new(gate);
    origin.on("/long", move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlon")?;
        let _ = gate.lock().recv();
        stream.write_all(b"ger").map(|()| true)
    });
    let gateway = Gateway::start(&config(
        &[&origin.url()],
        "retries: 0, breaker: { failures: 1, open_for: 200ms }",
    ));
    assert_eq!(gateway.get("/closes").status(), 502);
    thread::sleep(Duration::from_millis(250));
    let mut client = gateway.connect();
    client.send(request("GET", "/long", &[], b""));
    let head = client.head().unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(gateway.get("/").status(), 200, "the answer has not ended, and the endpoint works");
    open.send(()).unwrap();
}

#[test]
fn statuses_are_failures_only_where_the_rules_say_so() {
    let origin = Origin::start();
    origin.reply("/broken", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
    let url = origin.url();
    for (statuses, opens) in [("[]", false), ("[ 502, 500-501 ]", false), ("[ 500-599 ]", true)] {
        let gateway = Gateway::start(&config(
            &[&url],
            &format!("breaker: {{ failures: 3, statuses: {statuses} }}"),
        ));
        for _ in 0..3 {
            assert_eq!(gateway.get("/broken").text(), "busy");
        }
        wait_for(statuses, || (is_open(&gateway, &url) == Some(f64::from(opens))).then_some(()));
        assert_eq!(gateway.get("/").status(), if opens { 503 } else { 200 }, "{statuses}");
    }
}

#[test]
fn a_reload_keeps_what_is_known_about_endpoints_that_stay() {
    let origin = Origin::start();
    let (url, dead) = (origin.url(), format!("http://{NOBODY}"));
    let yaml = |endpoints: &[&str], retries: usize| {
        config(endpoints, &format!("retries: {retries}, breaker: {{ failures: 2, open_for: 1h }}"))
    };
    let gateway = Gateway::start(&yaml(&[&dead, &url], 1));
    while is_open(&gateway, &dead) == Some(0.0) {
        assert_eq!(gateway.get("/").status(), 200);
    }
    // Other rules change, and then the endpoint goes and comes back.
    for (nth, (endpoints, retries, state)) in [
        (vec![&*dead, &*url], 0, Some(1.0)),
        (vec![&*url], 0, None),
        (vec![&*url, &*dead], 0, Some(0.0)),
    ]
    .into_iter()
    .enumerate()
    {
        gateway.reload(&yaml(&endpoints, retries));
        let generation = Some(2.0 + nth as f64);
        wait_for("the reload", || {
            (gateway.metric("tollgate_config_generation") == generation).then_some(())
        });
        assert_eq!(is_open(&gateway, &dead), state, "{nth}");
        if nth < 2 {
            let statuses: Vec<_> = (0..6).map(|_| gateway.get("/").status()).collect();
            assert_eq!(statuses, [200; 6], "{nth}: it gets no requests");
        }
    }
}
