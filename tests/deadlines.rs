//! Deadlines over several steps of a request: the first byte of an answer, and all of a request. It must not know which
//! part of the gateway keeps the time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::http2::H2Client;
use support::*;

/// A configuration without tokens whose upstream has these endpoints and timeouts.
fn config(endpoints: &[&str], timeouts: &str, route: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "upstreams: {{ up: {{ endpoints: [ {} ], breaker: {{ failures: none }}, timeouts: {{ {timeouts} }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none{route} }} ]",
        endpoints.join(", ")
    )
}

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Asks several times. Every answer must be 504 with this reason and not come before `due`, and the promptest within 50 ms.
fn assert_late(gateway: &Gateway, what: &str, due: Duration, reason: &str) {
    let mut promptest = Duration::MAX;
    for nth in 0..5 {
        let id = format!("{what}-{nth}");
        let mut client = gateway.connect();
        let began = Instant::now();
        let answer = client.call("GET", "/silent", &[("X-Request-ID", &id)], b"");
        let took = began.elapsed();
        assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"), "{id}");
        assert!(took >= due, "{id}: {took:?}");
        promptest = promptest.min(took);
        let line =
            gateway.wait_log(&id, |line| line["request_id"] == *id && line["status"].is_u64());
        assert_eq!(line["reason"], reason, "{line}");
    }
    assert!(promptest <= due + millis(50), "{what}: {promptest:?}");
}

/// Answers a byte at a time, for two seconds.
fn drip(_: &Message, stream: &mut TcpStream) -> io::Result<bool> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
    for _ in 0..100 {
        stream.write_all(b"x")?;
        std::thread::sleep(millis(20));
    }
    Ok(false)
}

#[test]
fn the_answer_to_a_request_whose_time_runs_out_is_504_and_prompt() {
    let (one, two) = (Origin::start(), Origin::start());
    let _never = (one.hold("/silent"), two.hold("/silent"));
    for (what, timeouts, route, due, reason) in [
        ("total", "total: 300ms", "", 300, "deadline"),
        ("attempts", "total: 500ms, first_byte: 200ms", "", 400, "first_byte_timeout"),
        ("both", "total: 300ms, first_byte: 200ms", "", 300, "deadline"),
        ("route", "total: 10s", ", timeouts: { total: 200ms }", 200, "deadline"),
        ("wider", "total: 200ms", ", timeouts: { total: 10s }", 200, "deadline"),
        ("long", "total: 1200ms", "", 1200, "deadline"),
        ("first", "first_byte: 150ms", "", 300, "first_byte_timeout"),
        ("narrowed", "read: 5s", ", timeouts: { first_byte: 150ms }", 300, "first_byte_timeout"),
    ] {
        let gateway = Gateway::start(&config(&[&one.url(), &two.url()], timeouts, route));
        assert_late(&gateway, what, millis(due), reason);
    }
}

#[test]
fn a_connection_that_is_not_made_takes_no_longer_than_the_request_may() {
    // Nobody accepts, and the queue is full.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = full.local_addr().unwrap();
    let waiting = std::thread::spawn(move || {
        let connect = || std::net::TcpStream::connect_timeout(&address, millis(300));
        (0..4_200).map_while(|_| connect().ok()).collect::<Vec<_>>()
    });
    let _waiting = waiting.join().unwrap();
    let gateway =
        Gateway::start(&config(&[&format!("http://{address}")], "connect: 5s, total: 300ms", ""));
    assert_late(&gateway, "connect", millis(300), "connect_timeout");
}

#[test]
fn another_endpoint_answers_when_the_first_does_not_begin_in_time() {
    let (silent, steady) = (Origin::start(), Origin::start());
    let _never = silent.hold("/");
    let gateway = Gateway::start(&config(&[&silent.url(), &steady.url()], "first_byte: 200ms", ""));
    let mut client = gateway.connect();
    for nth in 0..6 {
        let answer = client.call("PUT", "/", &[], b"body");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"), "{nth}");
    }
    assert!(!silent.requests().is_empty(), "the silent endpoint was asked");
    // What is not idempotent is not repeated.
    let statuses: Vec<_> = (0..2).map(|_| gateway.call("POST", "/", &[], b"x").status()).collect();
    assert!(statuses.contains(&504) && statuses.contains(&200), "{statuses:?}");
}

#[test]
fn an_answer_that_has_begun_is_cut_in_time() {
    let origin = Origin::start();
    origin.on("/drips", drip);
    // The answer waits for a client that does not read.
    origin.on("/large", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
        let _ = stream.write_all(&vec![b'x'; 100_000_000]);
        Ok(false)
    });
    let gateway = Gateway::start(&config(&[&origin.url()], "total: 400ms", ""));
    for target in ["/drips", "/large"] {
        let began = Instant::now();
        let mut client = gateway.connect();
        client.send(request("GET", target, &[("X-Request-ID", target)], b""));
        let line = gateway
            .wait_log(target, |line| line["request_id"] == target && line["status"].is_u64());
        let took = began.elapsed();
        assert_eq!((&line["status"], &line["reason"]), (&200.into(), &"deadline".into()), "{line}");
        assert!((millis(400)..millis(1_500)).contains(&took), "{target}: {took:?}");
        assert!(client.try_read(false).is_err(), "the answer is cut");
    }
}

#[test]
fn a_slow_upload_is_not_the_fault_of_the_endpoint() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&[&origin.url()], "first_byte: 300ms", ""));
    let mut client = gateway.connect();
    client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    for _ in 0..6 {
        std::thread::sleep(millis(150));
        client.send("x");
    }
    assert_eq!(client.read().text(), "xxxxxx");
    // The time of a breaker's endpoint is not the client's.
    let yaml =
        config(&[&origin.url()], "total: 400ms", "").replace("failures: none", "failures: 1");
    let gateway = Gateway::start(&yaml);
    let mut client = gateway.connect();
    client.send("POST /slower HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nxx");
    assert_eq!(client.read().status(), 504);
    assert_eq!(gateway.get("/").status(), 200);
    // An endpoint that has the request and does not answer is at fault.
    let _never = origin.hold("/silent");
    let is_open = || {
        let state = format!(
            "tollgate_upstream_breaker_open{{endpoint=\"{}\",upstream=\"up\"}}",
            origin.url()
        );
        gateway.metric(&state)
    };
    assert_eq!(is_open(), Some(0.0));
    assert_eq!(gateway.get("/silent").status(), 504);
    assert_eq!(is_open(), Some(1.0));
}

#[test]
fn an_answer_may_begin_later_than_it_may_pause() {
    let origin = Origin::start();
    origin.on("/late", |_, stream| {
        std::thread::sleep(millis(700));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").map(|()| true)
    });
    origin.on("/pauses", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla")?;
        std::thread::sleep(millis(1_500));
        stream.write_all(b"te").map(|()| true)
    });
    let gateway = Gateway::start(&config(&[&origin.url()], "read: 300ms, first_byte: 5s", ""));
    assert_eq!(gateway.get("/late").text(), "late");
    let mut client = gateway.connect();
    client.send(request("GET", "/pauses", &[("X-Request-ID", "pauses")], b""));
    assert!(client.try_read(false).is_err());
    let line = gateway
        .wait_log("pauses", |line| line["request_id"] == "pauses" && line["status"].is_u64());
    assert_eq!(line["reason"], "read_timeout", "{line}");
}

#[test]
fn a_tunnel_lasts_longer_than_a_request_may() {
    let origin = Origin::start();
    origin.on("/tunnel", |_, stream| {
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes).map(|()| false)
    });
    let gateway = Gateway::start(&config(&[&origin.url()], "total: 300ms, first_byte: 200ms", ""));
    let mut client = gateway.connect();
    client.send(request(
        "GET",
        "/tunnel",
        &[("Connection", "upgrade"), ("Upgrade", "websocket")],
        b"",
    ));
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    std::thread::sleep(millis(1_500));
    client.send("ping");
    let mut bytes = [0; 4];
    client.stream().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
}

#[test]
fn deadlines_hold_for_clients_of_http2_too() {
    let (silent, steady) = (Origin::start(), Origin::start());
    let _never = (silent.hold("/"), silent.hold("/silent"), steady.hold("/silent"));
    for origin in [&silent, &steady] {
        origin.on("/drips", drip);
    }
    let rules = config(&[&silent.url(), &steady.url()], "first_byte: 200ms, total: 600ms", "");
    let listener = "listeners: [ { address: \"127.0.0.1:0\", http2: true } ]";
    let gateway = Gateway::start(&format!("{listener}\n{rules}"));
    let mut client = H2Client::connect(gateway.address);
    for nth in 0..4 {
        let answer = client.call("PUT", "/", &[], b"body").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"), "{nth}");
    }
    assert!(!silent.requests().is_empty(), "the silent endpoint was asked");
    let mut promptest = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let answer = client.call("GET", "/silent", &[], b"").unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
        promptest = promptest.min(began.elapsed());
    }
    assert!((millis(400)..millis(450)).contains(&promptest), "{promptest:?}");
    assert!(client.call("GET", "/drips", &[], b"").is_err(), "the answer is cut");
    assert_eq!(client.call("PUT", "/other", &[], b"on").unwrap().text(), "on");
}

#[test]
fn an_informational_answer_is_no_answer() {
    let origin = Origin::start();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = parking_lot::Mutex::new(gate);
    origin.on("/silent", move |_, stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        let _ = gate.lock().recv();
        Ok(false)
    });
    let gateway = Gateway::start(&config(&[&origin.url()], "total: 300ms", ""));
    let mut client = gateway.connect();
    client.send(request("GET", "/silent", &[], b""));
    assert_eq!(client.head().unwrap().unwrap().status(), 103);
    let answer = client.read();
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    // The gateway's own 100 is none either.
    let mut client = gateway.connect();
    client.send(
        "POST /silent HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
    );
    assert_eq!(client.head().unwrap().unwrap().status(), 100);
    client.send("x");
    let mut answer = client.read();
    if answer.status() == 103 {
        answer = client.read();
    }
    assert_eq!(answer.status(), 504);
    drop(open);
}
