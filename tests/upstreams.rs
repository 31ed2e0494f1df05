//! Endpoints that fail: their breakers, other endpoints for the requests that failed, and what a reload keeps. It must not
//! know how an endpoint is chosen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::*;

#[test]
fn server_process() {
    support::server::serve_if_asked();
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
    let gateway = Gateway::start(&upstream_config(
        &[&url],
        "retries: 0, breaker: { failures: 3, open_for: 2s }",
    ));
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
    let line = gateway
        .wait_log("its line", |line| line["request_id"] == "refused" && line["status"].is_u64());
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
    let gateway = Gateway::start(&upstream_config(
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
    let gateway = Gateway::start(&upstream_config(
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
        let gateway = Gateway::start(&upstream_config(
            &[&url],
            &format!("breaker: {{ failures: 3, statuses: {statuses} }}"),
        ));
        for _ in 0..3 {
            assert_eq!(gateway.get("/broken").text(), "busy");
        }
        wait_for(statuses, || (is_open(&gateway, &url) == Some(f64::from(opens))).then_some(()));
        assert_eq!(gateway.get("/").status(), 200, "{statuses}: no other endpoint is left");
        wait_for(statuses, || (is_open(&gateway, &url) == Some(0.0)).then_some(()));
    }
}

#[test]
fn a_reload_keeps_what_is_known_about_endpoints_that_stay() {
    let origin = Origin::start();
    let (url, dead) = (origin.url(), format!("http://{NOBODY}"));
    let yaml = |endpoints: &[&str], retries: usize| {
        upstream_config(
            endpoints,
            &format!("retries: {retries}, breaker: {{ failures: 2, open_for: 1h }}"),
        )
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

#[test]
fn retries_stay_within_their_budget() {
    let origin = Origin::start();
    origin.on("/closes", |_, _| Ok(false));
    for (budget, allowed) in [("0%", 30), ("50%", 60), ("100%", 60)] {
        let gateway = Gateway::start(&upstream_config(
            &[&origin.url()],
            &format!("retries: 1, retry_budget: {budget}, breaker: {{ failures: none }}"),
        ));
        let before = origin.requests_for("/closes").len();
        for _ in 0..60 {
            assert_eq!(gateway.get("/closes").status(), 502);
        }
        let retries = origin.requests_for("/closes").len() - before - 60;
        assert_eq!(retries, allowed, "{budget}");
        let count = |name: &str| gateway.metric(&format!("{name}{{upstream=\"up\"}}")).unwrap();
        assert_eq!(count("tollgate_upstream_retries_total") as usize, retries);
        assert_eq!(count("tollgate_upstream_retries_refused_total") as usize, 60 - retries);
    }
}

/// Requests of several clients, one after the other on a kept connection, until `during` is over. Gives every answer that
/// was not the expected one, and the number of requests.
fn under_load(gateway: &Gateway, during: impl FnOnce()) -> (Vec<String>, usize) {
    const CLIENTS: usize = 4;
    let (ends, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = gateway.connect();
                while !ends.load(Ordering::Relaxed) {
                    requests.fetch_add(1, Ordering::Relaxed);
                    client.send(request("GET", "/load", &[], b""));
                    match client.try_read(false) {
                        Ok(answer) if answer.text() == "GET /load HTTP/1.1" => {}
                        answer => {
                            wrong.lock().push(format!("{answer:?}"));
                            client = gateway.connect();
                        }
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        during();
        ends.store(true, Ordering::Relaxed);
    });
    (wrong.into_inner(), requests.into_inner())
}

#[test]
fn no_client_sees_that_an_endpoint_dies_stands_still_or_is_replaced() {
    let mut servers: Vec<_> = (0..4).map(|_| ServerProcess::start()).collect();
    let urls: Vec<_> = servers.iter().map(ServerProcess::url).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let more = "timeouts: { connect: 500ms, read: 500ms }, breaker: { open_for: 1s }";
    let gateway = Gateway::start(&upstream_config(&urls, more));
    let works = |url: &str, expected: f64| {
        wait_for(url, || (is_open(&gateway, url) == Some(expected)).then_some(()));
    };
    let (wrong, requests) = under_load(&gateway, || {
        thread::sleep(Duration::from_millis(300));
        servers[0].kill();
        works(urls[0], 1.0);
        servers[0].start_again();
        works(urls[0], 0.0);
        servers[1].signal("STOP");
        works(urls[1], 1.0);
        servers[1].signal("CONT");
        works(urls[1], 0.0);
        for server in &mut servers {
            server.start_again();
            thread::sleep(Duration::from_millis(200));
        }
        // A reload in the middle harms nothing and forgets nothing.
        servers[2].kill();
        works(urls[2], 1.0);
        gateway.reload(&upstream_config(&urls, &format!("{more}, retries: 3")));
        wait_for("the reload", || {
            (gateway.metric("tollgate_config_generation") == Some(2.0)).then_some(())
        });
        assert_eq!(is_open(&gateway, urls[2]), Some(1.0));
        servers[2].start_again();
        works(urls[2], 0.0);
    });
    assert!(requests > 100, "{requests}");
    assert!(wrong.is_empty(), "{} of {requests}: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn no_client_sees_that_all_endpoints_are_replaced_one_after_the_other() {
    let mut servers: Vec<_> = (0..4).map(|_| ServerProcess::start()).collect();
    let urls: Vec<_> = servers.iter().map(ServerProcess::url).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    // All rules are the defaults: a breaker is open for 10 seconds.
    let gateway = Gateway::start(&upstream_config(&urls, ""));
    let (wrong, requests) = under_load(&gateway, || {
        for server in &mut servers {
            server.kill();
            thread::sleep(Duration::from_secs(1));
            server.start_again();
            thread::sleep(Duration::from_secs(1));
        }
    });
    assert!(requests > 100, "{requests}");
    assert!(wrong.is_empty(), "{} of {requests}: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(lines(&gateway, OPENED) >= 4, "their breakers were open");
    for url in urls {
        wait_for("its trial", || {
            gateway.get("/");
            (is_open(&gateway, url) == Some(0.0)).then_some(())
        });
    }
}

#[test]
fn no_client_sees_that_an_endpoint_moves_to_another_port() {
    let mut old = ServerProcess::start();
    let gateway = Gateway::start(&upstream_config(&[&old.url()], "retries: 0"));
    let (wrong, requests) = under_load(&gateway, || {
        for generation in 2..6 {
            thread::sleep(Duration::from_millis(200));
            let new = ServerProcess::start();
            gateway.reload(&upstream_config(&[&new.url()], "retries: 0"));
            wait_for("the reload", || {
                (gateway.metric("tollgate_config_generation") == Some(f64::from(generation)))
                    .then_some(())
            });
            // Requests that the old server has are answered meanwhile.
            thread::sleep(Duration::from_millis(300));
            old = new;
        }
    });
    assert!(requests > 100, "{requests}");
    assert!(wrong.is_empty(), "{} of {requests}: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn one_request_opens_no_breakers() {
    let origins = [Origin::start(), Origin::start(), Origin::start()];
    for origin in &origins {
        origin.on("/poison", |_, _| Ok(false));
        origin.reply("/garbage", "no HTTP at all\r\n\r\n");
    }
    let urls = origins.each_ref().map(Origin::url);
    let urls = urls.each_ref().map(String::as_str);
    let gateway = Gateway::start(&upstream_config(&urls, "breaker: { failures: 2, open_for: 1h }"));
    for path in ["/poison", "/garbage"] {
        for _ in 0..10 {
            assert_eq!(gateway.get(path).status(), 502);
        }
    }
    for url in urls {
        assert_eq!(is_open(&gateway, url), Some(0.0), "{url}");
    }
    // A request that may not be repeated counts, but closes no way to an endpoint that works.
    for _ in 0..10 {
        assert_eq!(gateway.call("POST", "/poison", &[], b"x").status(), 502);
    }
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn an_endpoint_that_answers_garbage_costs_no_client_its_answer() {
    let (broken, works) = (Origin::start(), Origin::start());
    broken.reply("/", "no HTTP at all\r\n\r\n");
    let url = broken.url();
    let gateway =
        Gateway::start(&upstream_config(&[&url, &works.url()], "breaker: { failures: 3 }"));
    for _ in 0..12 {
        assert_eq!(gateway.get("/").status(), 200);
    }
    assert_eq!(is_open(&gateway, &url), Some(1.0));
    assert_eq!(broken.requests().len(), 3);
}

#[test]
fn clients_that_stall_are_not_the_fault_of_an_endpoint() {
    let origin = Origin::start();
    // It gives a client up that does not read its answer.
    origin.on("/large", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
        let closing = stream.try_clone()?;
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(2));
            closing.shutdown(std::net::Shutdown::Both)
        });
        let _ = stream.write_all(&vec![b'x'; 100_000_000]);
        Ok(false)
    });
    let url = origin.url();
    let more = "retries: 0, timeouts: { read: 400ms }, breaker: { failures: 1, open_for: 1h }";
    let gateway = Gateway::start(&upstream_config(&[&url], more));
    for method in ["POST", "PUT"] {
        let mut client = gateway.connect();
        client.send(format!("{method} /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nxx"));
        assert_eq!(client.read().status(), 408);
    }
    assert_eq!(is_open(&gateway, &url), Some(0.0), "the uploads were not its fault");
    let mut client = gateway.connect();
    client.send(request("GET", "/large", &[], b""));
    thread::sleep(Duration::from_secs(4));
    // The rest of what was sent arrives, and then the end.
    assert!(client.try_read(false).is_err());
    wait_for("the end", || gateway.log().iter().any(|line| line["path"] == "/large").then_some(()));
    assert_eq!(is_open(&gateway, &url), Some(0.0), "the slow reader was not its fault");
}

#[test]
fn a_dead_address_of_a_name_opens_no_breaker() {
    // The name has an IPv6 address on most machines, at which nothing listens.
    let origin = Origin::start();
    let url = format!("http://localhost:{}", origin.address.port());
    let gateway = Gateway::start(&upstream_config(
        &[&url],
        "retries: 0, breaker: { failures: 1, open_for: 1h }",
    ));
    for _ in 0..6 {
        assert_eq!(gateway.get("/").status(), 200);
    }
    assert_eq!(is_open(&gateway, &url), Some(0.0));
}

#[test]
fn a_reload_to_rules_without_failures_closes_the_breaker() {
    let dead = format!("http://{NOBODY}");
    let gateway =
        Gateway::start(&upstream_config(&[&dead], "breaker: { failures: 1, open_for: 1h }"));
    gateway.get("/");
    assert_eq!(is_open(&gateway, &dead), Some(1.0));
    gateway.reload(&upstream_config(&[&dead], "breaker: { failures: none }"));
    wait_for("the reload", || (is_open(&gateway, &dead) == Some(0.0)).then_some(()));
}
