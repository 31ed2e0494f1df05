//! Compressed answers: which are, how, and that every other answer passes as it came.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/h2_origin.rs"]
mod h2_origin;
mod support;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use h2_origin::H2Origin;
use support::*;

fn gateway(origin: &Origin) -> Gateway {
    Gateway::start(&config(origin, "[ zstd, br, gzip ]"))
}

fn config(origin: &Origin, codings: &str) -> String {
    format!(
        r#"upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes:
  - {{ prefix: /, upstream: up, auth: none, compress: {codings} }}
  - {{ prefix: /plain, upstream: up, auth: none }}
  - {{ prefix: /kept, upstream: up, auth: none, compress: {codings}, headers: {{ response: {{ set: {{ Cache-Control: no-transform }} }} }} }}"#,
        origin.url(),
    )
}

/// Text that compresses well, and is unlike at every place.
fn text(size: usize) -> Vec<u8> {
    let mut text: Vec<u8> =
        (0..).flat_map(|n: u32| format!("line {n} of a text\n").into_bytes()).take(size).collect();
    text.truncate(size);
    text
}

/// An answer with these fields, and this body with its length.
fn answer(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn decoded(answer: &Message) -> Vec<u8> {
    let (body, mut plain) = (&*answer.body, Vec::new());
    match answer.header("content-encoding").as_deref() {
        Some("gzip") => flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap(),
        Some("br") => brotli::Decompressor::new(body, 4_096).read_to_end(&mut plain).unwrap(),
        Some("zstd") => {
            zstd::stream::read::Decoder::new(body).unwrap().read_to_end(&mut plain).unwrap()
        }
        other => panic!("{other:?}"),
    };
    plain
}

fn get(gateway: &Gateway, path: &str, accept: &str) -> Message {
    gateway.call("GET", path, &[("Accept-Encoding", accept)], b"")
}

#[test]
fn text_is_compressed_as_the_client_prefers() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    let mut client = gateway.connect();
    for (size, body) in [1_024, 70_000, 3_000_000].map(|size| (size, text(size))) {
        origin.reply("/text", answer("Content-Type: text/html\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\nVary: Cookie\r\n", &body));
        let chunks = [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nETag: W/\"a\"\r\nTransfer-Encoding: chunked\r\n\r\n",
            &*chunked(&body, 5_000),
        ]
        .concat();
        origin.reply("/chunked", chunks);
        for (accept, coding) in [
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, deflate, br", "br"),
            ("gzip", "gzip"),
            ("*;q=0.1, gzip;q=0.5", "gzip"),
        ] {
            for path in ["/text", "/chunked"] {
                let answer = client.call("GET", path, &[("Accept-Encoding", accept)], b"");
                assert_eq!(answer.status(), 200, "{path} {size} {accept}");
                assert_eq!(answer.all("content-encoding"), [coding], "{path} {size} {accept}");
                assert!(decoded(&answer) == body, "{path} {size} {accept}");
                assert!(answer.body.len() < size * 3 / 4, "{path} {size} {accept}");
                assert_eq!(answer.all("content-length"), [""; 0]);
                assert_eq!(answer.all("etag"), ["W/\"a\""]);
                assert_eq!(answer.header("accept-ranges"), None);
                let vary = answer.header("vary").unwrap();
                assert!(vary.ends_with("Accept-Encoding"), "{vary}");
            }
        }
        for accept in ["", "deflate", "identity", "gzip;q=0", "identity, gzip;q=0.5"] {
            let answer = client.call("GET", "/text", &[("Accept-Encoding", accept)], b"");
            assert!(answer.body == body, "{accept}");
            assert_eq!(answer.header("content-encoding"), None, "{accept}");
            assert_eq!(answer.all("etag"), ["\"a\""]);
            assert_eq!(answer.header("vary").as_deref(), Some("Cookie, Accept-Encoding"));
        }
    }
    assert_eq!(origin.connections(), 1, "connections are kept after such answers");
    let fine = [
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/plain\r\nContent-Length: 2000\r\n\r\n",
        &*text(2_000),
    ];
    origin.reply("/fine", fine.concat());
    let answer = get(&gateway, "/fine", "gzip");
    assert_eq!((&*answer.line, decoded(&answer) == text(2_000)), ("HTTP/1.1 200 Fine", true));
}

#[test]
fn everything_else_passes_as_it_came() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    let body = text(5_000);
    for (nth, (fields, varies)) in [
        ("Content-Type: image/png\r\n", false),
        ("Content-Type: application/octet-stream\r\n", false),
        ("Content-Type: application/grpc\r\n", false),
        ("Content-Type: application/grpc-web+json\r\n", false),
        ("", false),
        ("Content-Type: text/plain\r\nContent-Encoding: br\r\n", false),
        ("Content-Type: text/plain\r\nContent-Encoding: identity, br\r\n", false),
        ("Content-Type: text/plain\r\nCache-Control: public, No-Transform\r\n", false),
        ("Content-Type: text/plain\r\nContent-Digest: sha-256=:x:\r\n", false),
        ("Content-Type: text/plain\r\nContent-Range: bytes 0-4999/9000\r\n", false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/case-{nth}");
        origin.reply(&path, answer(fields, &body));
        let answer = get(&gateway, &path, "gzip");
        assert!(answer.body == body, "{fields}");
        assert_eq!(answer.all("content-length"), ["5000"], "{fields}");
        assert_eq!(answer.header("vary").is_some(), varies, "{fields}");
    }
    let small = text(1_023);
    origin.reply("/small", answer("Content-Type: text/plain\r\n", &small));
    assert!(get(&gateway, "/small", "gzip").body == small);
    for path in ["/plain/text", "/kept"] {
        origin.reply(path, answer("Content-Type: text/plain\r\n", &body));
        let answer = get(&gateway, path, "gzip");
        assert!(answer.body == body, "{path}");
        assert_eq!(answer.header("vary"), None, "{path}");
    }
    for status in ["206 Partial Content", "204 No Content", "304 Not Modified"] {
        let body = if status.starts_with("206") { "x".repeat(2_000) } else { String::new() };
        let length =
            if body.is_empty() { String::new() } else { "Content-Length: 2000\r\n".into() };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nETag: \"a\"\r\n{length}\r\n{body}"
        );
        origin.reply("/status", head);
        let answer = get(&gateway, "/status", "gzip");
        assert_eq!(answer.line, format!("HTTP/1.1 {status}"));
        assert_eq!(answer.text(), body);
        // A 304 stands for an answer that is compressed.
        let tag = if status.starts_with("304") { "W/\"a\"" } else { "\"a\"" };
        assert_eq!((answer.header("content-encoding"), answer.all("etag")), (None, vec![tag]));
        let varies = answer.header("vary").is_some();
        assert_eq!(varies, status.starts_with("304"), "{status}");
        let answer = get(&gateway, "/status", "identity");
        assert_eq!(answer.all("etag"), ["\"a\""], "{status}");
    }
    origin.reply("/unchanged", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n");
    let unchanged = get(&gateway, "/unchanged", "gzip");
    assert_eq!(unchanged.all("etag"), ["W/\"a\""], "a 304 need not repeat the type");
    assert_eq!(unchanged.header("vary").as_deref(), Some("Accept-Encoding"));
    origin.reply("/text", answer("Content-Type: text/plain\r\n", &body));
    let wish = [("Accept-Encoding", "gzip"), ("Cache-Control", "no-cache, no-transform")];
    assert!(gateway.call("GET", "/text", &wish, b"").body == body, "the client wants it as it is");
    origin.on("/head", |_, stream| {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"a\"\r\nContent-Length: 5000\r\n\r\n",
        )?;
        Ok(true)
    });
    let mut client = gateway.connect();
    for _ in 0..2 {
        // The fields of the answer to GET.
        let head = client.call("HEAD", "/head", &[("Accept-Encoding", "gzip")], b"");
        assert_eq!(head.all("content-length"), [""; 0]);
        assert_eq!(head.all("content-encoding"), ["gzip"]);
        assert_eq!(head.all("etag"), ["W/\"a\""]);
        assert_eq!(head.header("vary").as_deref(), Some("Accept-Encoding"));
        let head = client.call("HEAD", "/head", &[], b"");
        assert_eq!((head.all("content-length"), head.all("etag")), (vec!["5000"], vec!["\"a\""]));
    }
    origin.reply(
        "/named",
        answer("Content-Type: text/plain\r\nContent-Encoding: identity\r\n", &body),
    );
    let named = get(&gateway, "/named", "gzip");
    assert_eq!((named.all("content-encoding"), decoded(&named) == body), (vec!["gzip"], true));
    origin.reply("/old", answer("Content-Type: text/plain\r\n", &body));
    let mut old = gateway.connect();
    old.send("GET /old HTTP/1.0\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n");
    assert!(old.read().body == body, "HTTP/1.0 knows no chunks");
}

/// Answers that last hold memory. Beyond the bound of all of them, further answers are sent as they are.
#[test]
fn answers_that_last_cannot_take_all_memory() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    let goes_on = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&goes_on);
    origin.on("/lasting", move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ntick\n\r\n")?;
        while !gate.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stream.write_all(b"0\r\n\r\n")?;
        Ok(true)
    });
    let skipped = || gateway.metric("tollgate_compression_skipped_total").unwrap();
    let begun = |accept: &str| {
        let mut client = gateway.connect();
        client.send(request("GET", "/lasting", &[("Accept-Encoding", accept)], b""));
        let head = client.head().unwrap().unwrap();
        (head.header("content-encoding"), client)
    };
    let mut lasting = Vec::new();
    for nth in 0..128 {
        let (coding, client) = begun("br");
        assert_eq!(coding.as_deref(), Some("br"), "{nth}");
        lasting.push(client);
    }
    assert_eq!(skipped(), 0.0);
    for coding in ["br", "zstd", "gzip"] {
        assert_eq!(begun(coding).0, None);
    }
    assert_eq!(skipped(), 3.0);
    goes_on.store(true, Ordering::Relaxed);
    wait_for("memory for another", || begun("br").0);
}

#[test]
fn streams_are_not_held_back() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    for (path, kind) in [("/events", "text/event-stream"), ("/lines", "application/json")] {
        let (go_on, gate) = std::sync::mpsc::channel::<()>();
        let gate = parking_lot::Mutex::new(gate);
        let kind = kind.to_owned();
        origin.on(path, move |_, stream| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ntick\n\r\n");
            stream.write_all(head.as_bytes())?;
            let _ = gate.lock().recv();
            stream.write_all(b"5\r\ntock\n\r\n0\r\n\r\n")?;
            Ok(true)
        });
        let mut client = gateway.connect();
        client.send(request("GET", path, &[("Accept-Encoding", "gzip")], b""));
        let head = client.head().unwrap().unwrap();
        // The first part arrives while the upstream waits.
        let mut part = String::new();
        std::io::BufRead::read_line(client.stream(), &mut part).unwrap();
        let mut first = vec![0; usize::from_str_radix(part.trim(), 16).unwrap()];
        client.stream().read_exact(&mut first).unwrap();
        match head.header("content-encoding").as_deref() {
            Some("gzip") => {
                let mut tick = [0; 5];
                flate2::read::GzDecoder::new(&*first).read_exact(&mut tick).unwrap();
                assert_eq!((path, &tick), ("/lines", b"tick\n"));
            }
            _ => assert_eq!((path, &*first), ("/events", &b"tick\n"[..])),
        }
        go_on.send(()).unwrap();
    }
}

#[test]
fn an_upstream_that_breaks_off_does_not_look_whole() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    origin.on("/broken", |_, stream| {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9000\r\n\r\n",
        )?;
        stream.write_all(&text(5_000))?;
        Ok(false)
    });
    let mut client = gateway.connect();
    client.send(request("GET", "/broken", &[("Accept-Encoding", "gzip")], b""));
    assert!(client.try_read(false).is_err(), "the last chunk is missing");
}

#[test]
fn a_reload_changes_what_is_compressed() {
    let origin = Origin::start();
    let gateway = gateway(&origin);
    origin.reply("/text", answer("Content-Type: text/plain\r\n", &text(5_000)));
    let coding = || get(&gateway, "/text", "gzip, br").header("content-encoding");
    assert_eq!(coding().as_deref(), Some("br"));
    for (codings, expected) in [("[ gzip ]", Some("gzip")), ("[]", None)] {
        gateway.reload(&config(&origin, codings));
        wait_for(codings, || (coding().as_deref() == expected).then_some(()));
    }
}

#[test]
fn an_answer_over_http2_is_compressed_to_its_end() {
    let origin = H2Origin::start();
    let gateway = Gateway::start(&format!(
        r#"upstreams: {{ up: {{ endpoints: [ "{}" ] }} }}
routes:
  - prefix: /
    upstream: up
    auth: none
    compress: [ gzip, br, zstd ]
    headers: {{ response: {{ set: {{ Content-Type: text/plain }} }} }}"#,
        origin.url("h2c"),
    ));
    let mut client = gateway.connect();
    for coding in ["gzip", "br", "zstd"] {
        let answer = client.call("GET", "/x", &[("Accept-Encoding", coding)], b"");
        assert_eq!(answer.all("content-encoding"), [coding]);
        assert_eq!(decoded(&answer), b"HTTP/2 GET gateway.test /x 0");
    }
}
