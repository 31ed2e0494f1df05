//! HTTP/2 and TLS towards upstreams: which protocol is spoken, whose certificates are believed, and what a connection is
//! shared by. It must not know how connections are kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/h2_origin.rs"]
mod h2_origin;
mod support;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use h2_origin::{Authority, H2Origin};
use support::*;

/// A configuration without tokens with these upstreams, by their names and the rest of their mapping; each has a route.
fn config(upstreams: &[(&str, &str, String)]) -> String {
    let mut yaml = String::from("upstreams:\n");
    for (name, url, more) in upstreams {
        yaml.push_str(&format!("  {name}: {{ endpoints: [ \"{url}\" ], {more} }}\n"));
    }
    yaml.push_str("routes:\n");
    for (name, ..) in upstreams {
        yaml.push_str(&format!("  - {{ prefix: /{name}, upstream: {name}, auth: none }}\n"));
    }
    yaml
}

fn tls(authority: &Authority, more: &str) -> String {
    format!("tls: {{ ca: \"{}\"{more} }}", authority.file().display())
}

fn reason(gateway: &Gateway, target: &str) -> (u16, String) {
    let id = ("X-Request-ID", target);
    let status = gateway.call("GET", target, &[id], b"").status();
    let line =
        gateway.wait_log(target, |line| line["request_id"] == target && line["status"].is_u64());
    (status, line["reason"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn http2_without_tls_carries_many_requests_on_few_connections() {
    let origin = H2Origin::start();
    let gateway = Gateway::start(&config(&[("up", &origin.url("h2c"), "retries: 0".into())]));
    let answer = gateway.call("POST", "/up/x?q=1", &[("Host", "api.example")], b"body");
    assert_eq!(answer.text(), "HTTP/2 POST api.example /up/x 4");
    let began = Instant::now();
    thread::scope(|scope| {
        for nth in 0..20 {
            let gateway = &gateway;
            scope.spawn(move || {
                let text = gateway.get(&format!("/up/slow/{nth}")).text();
                assert_eq!(text, format!("HTTP/2 GET gateway.test /up/slow/{nth} 0"));
            });
        }
    });
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Each of the two threads has connections of its own, and several may begin at the same moment.
    assert!(origin.connections() <= 12, "{}", origin.connections());
}

#[test]
fn what_an_http2_server_did_not_process_is_repeated_whatever_the_method() {
    let origin = H2Origin::start();
    let gateway = Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ], retries: 1 }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        origin.url("h2c")
    ));
    // The server says that it did not process a refused request. Where it only goes away, a POST may have had its effect.
    for (method, kind, times) in
        [("GET", "refused", 2), ("POST", "refused", 2), ("GET", "goes", 2), ("POST", "goes", 1)]
    {
        let path = format!("/{kind}/{method}");
        let answer = gateway.call(method, &path, &[], b"");
        match times {
            1 => assert_eq!(answer.status(), 502),
            _ => assert_eq!(answer.text(), format!("HTTP/2 {method} gateway.test {path} 0")),
        }
        let taken = origin.requests();
        let taken = taken.iter().filter(|request| request.ends_with(&path)).count();
        assert_eq!(taken, times, "{method} {path}");
    }
}

#[test]
fn the_protocol_is_the_one_that_both_speak() {
    let authority = Authority::new();
    let both = H2Origin::start_tls(&authority, "127.0.0.1", &["h2", "http/1.1"], None);
    let old = H2Origin::start_tls(&authority, "127.0.0.1", &["http/1.1"], None);
    // Without ALPN a server speaks HTTP/1.1.
    let silent = H2Origin::start_tls(&authority, "127.0.0.1", &[], None);
    let with = |mode: &str| format!("{}, http2: {mode}, retries: 0", tls(&authority, ""));
    let gateway = Gateway::start(&config(&[
        ("default", &both.url("https"), tls(&authority, "")),
        ("auto", &old.url("https"), with("auto")),
        ("never", &both.url("https"), with("never")),
        ("always", &both.url("https"), with("always")),
        ("refused", &old.url("https"), with("always")),
        ("silent", &silent.url("https"), with("always")),
    ]));
    for nth in 0..2 {
        for (name, protocol) in [
            ("default", "HTTP/2 GET"),
            ("auto", "GET /auto"),
            ("never", "GET /never"),
            ("always", "HTTP/2 GET"),
        ] {
            let answer = gateway.get(&format!("/{name}"));
            assert!(answer.text().starts_with(protocol), "{name} {nth}: {answer:?}");
        }
        for (name, expected) in [("refused", "tls_failed"), ("silent", "malformed_answer")] {
            let target = format!("/{name}/{nth}");
            assert_eq!(reason(&gateway, &target), (502, expected.to_owned()), "{target}");
        }
    }
    assert!(silent.requests().is_empty(), "no request went out over HTTP/1.1");
}

#[test]
fn only_believed_certificates_are_accepted_and_no_connection_is_borrowed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let origin = H2Origin::start_tls(&authority, "127.0.0.1", &["h2", "http/1.1"], None);
    let named = H2Origin::start_tls(&authority, "users.internal", &["http/1.1"], None);
    let gateway = Gateway::start(&config(&[
        ("believed", &origin.url("https"), tls(&authority, "")),
        ("other", &origin.url("https"), format!("retries: 0, {}", tls(&other, ""))),
        ("system", &origin.url("https"), "retries: 0".into()),
        ("named", &named.url("https"), tls(&authority, ", server_name: users.internal")),
        ("unnamed", &named.url("https"), format!("retries: 0, {}", tls(&authority, ""))),
    ]));
    for nth in 0..3 {
        for name in ["believed", "named"] {
            assert_eq!(gateway.get(&format!("/{name}")).status(), 200, "{name} {nth}");
        }
        for name in ["other", "system", "unnamed"] {
            let expected = (502, "tls_failed".to_owned());
            assert_eq!(reason(&gateway, &format!("/{name}/{nth}")), expected);
        }
    }
    assert!(origin.requests().iter().all(|request| request.contains("/believed")));
}

#[test]
fn the_gateway_shows_its_certificate_and_a_reload_reads_the_files_again() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let origin = H2Origin::start_tls(&servers, "127.0.0.1", &["h2"], Some(&clients));
    let shown = |(certificate, key): &(std::path::PathBuf, std::path::PathBuf)| {
        let (certificate, key) = (certificate.display(), key.display());
        tls(&servers, &format!(", certificate: \"{certificate}\", private_key: \"{key}\""))
    };
    let files = strangers.certificate("gateway");
    let yaml = config(&[("up", &origin.url("https"), format!("retries: 0, {}", shown(&files)))]);
    let gateway = Gateway::start(&yaml);
    assert_eq!(gateway.get("/up").status(), 502, "the certificate is of another authority");
    let good = clients.certificate("gateway");
    for (from, to) in [(&good.0, &files.0), (&good.1, &files.1)] {
        std::fs::copy(from, to).unwrap();
    }
    gateway.reload(&yaml);
    wait_for("the certificate", || (gateway.get("/up").status() == 200).then_some(()));

    // A key that does not fit is refused as a whole, and the old certificate goes on.
    std::fs::copy(strangers.certificate("other").1, &files.1).unwrap();
    gateway.reload(&yaml);
    let path: &Path = &files.1;
    gateway.wait_log("the fault", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains(&format!("{} cannot be used with the certificate", path.display()))
    });
    assert_eq!(gateway.get("/up").status(), 200);
}

#[test]
fn a_request_whose_time_runs_out_leaves_the_connection_to_others() {
    let origin = H2Origin::start();
    let more = "retries: 0, breaker: { failures: none }, timeouts: { total: 300ms }";
    let gateway =
        Gateway::start_with_one_thread(&config(&[("up", &origin.url("h2c"), more.into())]));
    for nth in 0..3 {
        assert_eq!(gateway.get(&format!("/up/x/{nth}")).status(), 200);
        let late = reason(&gateway, &format!("/up/slow/{nth}"));
        assert_eq!(late, (504, "deadline".to_owned()));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn an_upgrade_leaves_other_requests_to_http2() {
    let authority = Authority::new();
    let origin = H2Origin::start_tls(&authority, "127.0.0.1", &["h2", "http/1.1"], None);
    let gateway = Gateway::start_with_one_thread(&config(&[(
        "up",
        &origin.url("https"),
        tls(&authority, ""),
    )]));
    for _ in 0..2 {
        let upgrade = [("Connection", "upgrade"), ("Upgrade", "websocket")];
        let answer = gateway.call("GET", "/up", &upgrade, b"");
        assert!(answer.text().starts_with("GET /up"), "{answer:?}");
        let answer = gateway.get("/up");
        assert!(answer.text().starts_with("HTTP/2 GET"), "{answer:?}");
    }
}

#[test]
fn clients_that_do_not_read_leave_the_connection_to_others() {
    let origin = H2Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&[(
        "up",
        &origin.url("h2c"),
        "timeouts: { read: 20s }".into(),
    )]));
    assert_eq!(gateway.get("/up/first").status(), 200);
    let stalled: Vec<_> = (0..24)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(request("GET", "/up/large", &[], b""));
            client
        })
        .collect();
    wait_for("the requests", || (origin.requests().len() == stalled.len() + 1).then_some(()));
    thread::sleep(Duration::from_secs(3));
    let began = Instant::now();
    assert_eq!(gateway.get("/up/x").status(), 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(origin.connections(), 1);
}

#[test]
fn an_endpoint_that_resets_streams_costs_no_client_its_answer() {
    let (resets, works) = (H2Origin::start(), Origin::start());
    let (url, other) = (resets.url("h2c"), works.url());
    let gateway = Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ \"{url}\", \"{other}\" ], breaker: {{ failures: 3 }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
    ));
    for _ in 0..12 {
        assert_eq!(gateway.get("/resets").status(), 200);
    }
    assert_eq!(resets.requests().len(), 3, "its breaker has opened");
}
