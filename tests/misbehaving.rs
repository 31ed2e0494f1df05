//! Upstreams that break the rules of HTTP: what the client gets, what the log says, and that the next request is served
//! as if nothing had happened. It must not know how an answer is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use support::http2::H2Client;
use support::*;

/// What an upstream does when it has sent its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Closes,
    Resets,
    Hangs,
    Keeps,
}

/// What the client is to get, and the reason in the log.
#[derive(Debug)]
enum Gets {
    /// The gateway's own answer.
    Refusal(u16, &'static str),
    /// The beginning of an answer that does not look whole.
    Cut(&'static str),
    /// This body.
    Body(&'static str),
}

use Gets::{Body, Cut, Refusal};
use Then::{Closes, Hangs, Keeps, Resets};

const OK: &str = "HTTP/1.1 200 OK\r\n";

fn cases() -> Vec<(&'static str, String, Then, Gets)> {
    let ok = |rest: &str| format!("{OK}{rest}");
    let many: String = (0..2_000).map(|nth| format!("X-{nth}: y\r\n")).collect();
    let malformed = || Refusal(502, "malformed_answer");
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    vec![
        // No answer.
        ("nothing", String::new(), Closes, Refusal(502, "closed")),
        ("nothing, reset", String::new(), Resets, Refusal(502, "read_failed")),
        ("nothing, hangs", String::new(), Hangs, Refusal(504, "read_timeout")),
        ("half a header", ok("Content-"), Closes, Refusal(502, "closed")),
        ("half a header, reset", ok("Content-"), Resets, Refusal(502, "read_failed")),
        ("half a header, hangs", ok("Content-"), Hangs, Refusal(504, "read_timeout")),
        (
            "informational only",
            "HTTP/1.1 103 Early Hints\r\n\r\n".into(),
            Closes,
            Refusal(502, "closed"),
        ),
        // No HTTP/1.1.
        ("garbage", "no HTTP\r\n\r\n".into(), Closes, malformed()),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n".into(), Closes, malformed()),
        ("frames of HTTP/2", "\0\0\0\u{4}\0\0\0\0\0".into(), Hangs, malformed()),
        ("a page without a header", "<html>\r\n\r\nevil</html>".into(), Closes, malformed()),
        ("no status", "HTTP/1.1 OK\r\n\r\n".into(), Keeps, malformed()),
        ("a short status", "HTTP/1.1 20 OK\r\n\r\n".into(), Keeps, malformed()),
        ("a long status", "HTTP/1.1 2000 OK\r\n\r\n".into(), Keeps, malformed()),
        ("another version", "HTTP/2.0 200 OK\r\n\r\n".into(), Keeps, malformed()),
        (
            "an upgrade unasked",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nevil"
                .into(),
            Keeps,
            malformed(),
        ),
        // Fields.
        ("no colon", ok("evil\r\nContent-Length: 0\r\n\r\n"), Keeps, malformed()),
        ("a NUL in a value", ok("X-A: a\0b\r\nContent-Length: 0\r\n\r\n"), Keeps, malformed()),
        ("too many fields", ok(&format!("{many}Content-Length: 0\r\n\r\n")), Keeps, malformed()),
        (
            "a field too long",
            ok(&format!("X-A: {}\r\nContent-Length: 0\r\n\r\n", "y".repeat(2 << 20))),
            Keeps,
            malformed(),
        ),
        // Lengths.
        (
            "two lengths",
            ok("Content-Length: 4\r\nContent-Length: 5\r\n\r\nevil!"),
            Keeps,
            malformed(),
        ),
        ("a list of lengths", ok("Content-Length: 4, 5\r\n\r\nevil!"), Keeps, malformed()),
        ("a negative length", ok("Content-Length: -1\r\n\r\nevil"), Keeps, malformed()),
        ("a signed length", ok("Content-Length: +4\r\n\r\nevil"), Keeps, malformed()),
        (
            "an endless length",
            ok("Content-Length: 99999999999999999999999\r\n\r\nevil"),
            Keeps,
            malformed(),
        ),
        ("another coding", ok("Transfer-Encoding: gzip\r\n\r\nevil"), Closes, malformed()),
        (
            "an unknown coding",
            ok("Transfer-Encoding: xchunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n"),
            Keeps,
            malformed(),
        ),
        // Bodies.
        ("a short body", ok("Content-Length: 9\r\n\r\npart"), Closes, Cut("closed")),
        ("a short body, reset", ok("Content-Length: 9\r\n\r\npart"), Resets, Cut("read_failed")),
        ("a short body, hangs", ok("Content-Length: 9\r\n\r\npart"), Hangs, Cut("read_timeout")),
        (
            "no last chunk",
            ok("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"),
            Closes,
            Cut("closed"),
        ),
        (
            "no last chunk, hangs",
            ok("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"),
            Hangs,
            Cut("read_timeout"),
        ),
        ("half a chunk", ok("Transfer-Encoding: chunked\r\n\r\n9\r\npart"), Closes, Cut("closed")),
        (
            "no size",
            ok("Transfer-Encoding: chunked\r\n\r\nzz\r\nevil\r\n0\r\n\r\n"),
            Keeps,
            Cut("malformed_answer"),
        ),
        (
            "an endless chunk",
            ok("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\npart"),
            Keeps,
            Cut("malformed_answer"),
        ),
        // Answers to nobody.
        (
            "more than its length",
            ok(&format!("Content-Length: 4\r\n\r\nbody{evil}")),
            Keeps,
            Body("body"),
        ),
        (
            "more than its chunks",
            ok(&format!("Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n{evil}")),
            Keeps,
            Body("body"),
        ),
        ("204 with a body", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}"), Keeps, Body("")),
        (
            "204 with a length",
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil".into(),
            Keeps,
            Body(""),
        ),
        (
            "304 with a body",
            format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n{evil}"),
            Keeps,
            Body(""),
        ),
        ("until the close", ok("\r\nbody"), Closes, Body("body")),
        (
            "a large one, early",
            ok("Content-Length: 4\r\nConnection: close\r\n\r\nbody"),
            Closes,
            Body("body"),
        ),
        // What may be forgiven.
        (
            "lines that end with LF",
            "HTTP/1.1 200 OK\nContent-Length: 4\n\nbody".into(),
            Keeps,
            Body("body"),
        ),
        // Without the space it passes (RFC 9112 section 5.1).
        ("a space in a name", ok("Content-Length : 4\r\n\r\nbody"), Keeps, Body("body")),
        ("no phrase", "HTTP/1.1 200\r\nContent-Length: 4\r\n\r\nbody".into(), Keeps, Body("body")),
        (
            "HTTP/1.0",
            "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody".into(),
            Closes,
            Body("body"),
        ),
        (
            "an unknown status",
            "HTTP/1.1 599 What\r\nContent-Length: 4\r\n\r\nbody".into(),
            Keeps,
            Body("body"),
        ),
    ]
}

/// An origin with a path for each case, and a gateway before it.
fn world() -> (Origin, Gateway) {
    let origin = Origin::start();
    for (nth, (_, bytes, then, _)) in cases().into_iter().enumerate() {
        origin.on(&format!("/{nth}"), move |_, stream| {
            stream.write_all(bytes.as_bytes())?;
            match then {
                Closes => return Ok(false),
                Keeps => return Ok(true),
                Hangs => drop(stream.read(&mut [0])),
                Resets => {
                    // The bytes arrive before the reset takes them away.
                    thread::sleep(Duration::from_millis(30));
                    rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
                    // Both handles are closed, and the kernel resets the connection.
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
            }
            Ok(false)
        });
    }
    let gateway = Gateway::start(&format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]\n{}",
        upstream_config(
            &[&origin.url()],
            "retries: 0, timeouts: { read: 400ms }, breaker: { failures: none }"
        )
    ));
    (origin, gateway)
}

#[test]
fn a_broken_answer_harms_no_other_request() {
    let (_origin, gateway) = world();
    let wrong = parking_lot::Mutex::new(Vec::new());
    let check = |name: &str, id: &str, gets: &Gets, answer: Result<Message, String>| {
        let found = match (gets, &answer) {
            (Refusal(status, _), Ok(answer)) => {
                answer.status() == *status && answer.json()["status"] == *status
            }
            (Cut(_), Err(_)) => true,
            (Body(body), Ok(answer)) => {
                let is_clean = |(name, _): &(String, String)| !name.contains(' ');
                answer.complete && answer.text() == *body && answer.headers.iter().all(is_clean)
            }
            _ => false,
        };
        let since = Instant::now();
        let line = loop {
            let log = gateway.log();
            let line = log.into_iter().find(|l| l["request_id"] == id && l["status"].is_u64());
            match line {
                Some(line) => break line,
                None if since.elapsed() > Duration::from_secs(3) => break serde_json::Value::Null,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let reason = line["reason"].as_str().unwrap_or_default();
        let expected = match gets {
            Refusal(_, reason) | Cut(reason) => *reason,
            Body(_) => "",
        };
        if !found || reason != expected {
            let shown = answer.map(|answer| (answer.line.clone(), answer.text()));
            let told = format!("{name} ({id}): wanted {gets:?}, got {shown:?}, logged {reason:?}");
            wrong.lock().push(told);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = gateway.connect();
            for (nth, (name, _, _, gets)) in cases().into_iter().enumerate() {
                let id = format!("one-{nth}");
                client.send(request("GET", &format!("/{nth}"), &[("X-Request-ID", &id)], b""));
                let mut answer = client.try_read(false);
                while answer.as_ref().is_ok_and(|answer| answer.status() < 200) {
                    answer = client.try_read(false);
                }
                let answer = answer.map_err(|e| e.to_string());
                let ended = answer.is_err();
                check(name, &id, &gets, answer);
                if ended {
                    client = gateway.connect();
                }
                let next = client.call("GET", "/next", &[], b"").text();
                if next != "GET /next HTTP/1.1" {
                    wrong.lock().push(format!("after {name}: {next}"));
                }
            }
        });
        scope.spawn(|| {
            let mut client = H2Client::connect(gateway.address);
            for (nth, (name, _, _, gets)) in cases().into_iter().enumerate() {
                let id = format!("two-{nth}");
                let answer = client.call("GET", &format!("/{nth}"), &[("X-Request-ID", &id)], b"");
                check(name, &id, &gets, answer.map_err(|e| e.to_string()));
                let next = client.call("GET", "/next", &[], b"").unwrap().text();
                if next != "GET /next HTTP/1.1" {
                    wrong.lock().push(format!("after {name}, HTTP/2: {next}"));
                }
            }
        });
    });
    let mut wrong = wrong.into_inner();
    wrong.sort();
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
    let panicked = gateway.lines().into_iter().find(|line| line.contains("panic"));
    assert_eq!(panicked, None);
}

#[test]
fn an_answer_to_nobody_is_nobodys() {
    let origin = Origin::start();
    let evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    // The second answer comes when the connection waits for its next request.
    origin.on("/twice", move |request, stream| {
        origin::echo(request, stream)?;
        thread::sleep(Duration::from_millis(50));
        stream.write_all(evil).map(|()| true)
    });
    origin.on("/head", move |_, stream| stream.write_all(evil).map(|()| true));
    let gateway = Gateway::start_with_one_thread(&upstream_config(&[&origin.url()], "retries: 0"));
    let mut client = gateway.connect();
    for nth in 0..5 {
        assert_eq!(client.call("GET", "/twice", &[], b"").text(), "GET /twice HTTP/1.1");
        thread::sleep(Duration::from_millis(100));
        for method in ["POST", "GET"] {
            let next = client.call(method, &format!("/{nth}"), &[], b"").text();
            assert_eq!(next, format!("{method} /{nth} HTTP/1.1"));
        }
        let head = client.call("HEAD", "/head", &[], b"");
        assert_eq!((head.status(), head.body.len()), (200, 0));
        let next = client.call("POST", "/after", &[], b"").text();
        assert_eq!(next, "POST /after HTTP/1.1", "after an answer to HEAD with a body");
    }
}

/// An upstream that does this with each of its connections.
fn upstream(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), std::sync::Arc::clone(&serve));
            thread::spawn(move || serve(stream));
        }
    });
    url
}

/// Reads a header, byte by byte so that nothing of the body is taken.
fn read_header(stream: &mut TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
}

#[test]
fn upstreams_that_do_not_read_or_do_not_finish_are_given_up_on() {
    let closes = upstream(drop);
    let never = TcpListener::bind("127.0.0.1:0").unwrap();
    let never = (format!("http://{}", never.local_addr().unwrap()), never);
    // A header that never ends, of which a byte comes now and then.
    let trickles = upstream(|mut stream| {
        read_header(&mut stream);
        for byte in OK.bytes().chain("X-A: ".bytes()).chain(std::iter::repeat(b'y')) {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    // Refuses an upload before it has come, and does not read it.
    let early = upstream(|mut stream| {
        read_header(&mut stream);
        let _ = stream.write_all(
            b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmuch",
        );
        thread::sleep(Duration::from_millis(500));
    });
    let mut yaml = String::from(
        "listeners: [ { address: \"127.0.0.1:0\", http2: true } ]\nmax_body: 1GiB\nupstreams:\n",
    );
    for (name, url) in
        [("closes", &closes), ("never", &never.0), ("trickles", &trickles), ("early", &early)]
    {
        yaml += &format!(
            "  {name}: {{ endpoints: [ \"{url}\" ], retries: 0, timeouts: {{ read: 500ms, write: 500ms, first_byte: 700ms, total: 3s }} }}\n"
        );
    }
    yaml += "routes:\n";
    for name in ["closes", "never", "trickles", "early"] {
        yaml += &format!("  - {{ prefix: /{name}, upstream: {name}, auth: none }}\n");
    }
    let gateway = Gateway::start(&yaml);
    let large = vec![b'x'; 16 << 20];
    for (path, method, body, status, reason) in [
        ("/closes", "GET", &b""[..], 502, ""),
        ("/closes/upload", "POST", &large, 502, ""),
        ("/never", "GET", b"", 504, "first_byte_timeout"),
        ("/never/upload", "POST", &large, 504, "write_timeout"),
        ("/trickles", "GET", b"", 504, "first_byte_timeout"),
        ("/early/upload", "POST", &large, 413, ""),
    ] {
        for protocol in [1, 2] {
            let id = format!("{path}-{protocol}");
            let fields = [("X-Request-ID", id.as_str())];
            let since = Instant::now();
            let answer = match protocol {
                1 => {
                    // An answer may come before the end of the upload.
                    let mut client = gateway.connect();
                    let mut writing = client.stream().get_ref().try_clone().unwrap();
                    let bytes = request(method, path, &fields, body);
                    let sending = thread::spawn(move || drop(writing.write_all(&bytes)));
                    let answer = client.try_read(false).map_err(|e| e.to_string());
                    drop(client);
                    sending.join().unwrap();
                    answer
                }
                _ => H2Client::connect(gateway.address)
                    .call(method, path, &fields, body)
                    .map_err(|e| e.to_string()),
            };
            assert!(since.elapsed() < Duration::from_secs(5), "{id}: {:?}", since.elapsed());
            let answer = answer.unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(answer.status(), status, "{id}: {}", answer.text());
            let line =
                gateway.wait_log(&id, |l| l["request_id"] == id.as_str() && l["status"].is_u64());
            if !reason.is_empty() {
                assert_eq!(line["reason"], reason, "{line}");
            }
        }
    }
}
