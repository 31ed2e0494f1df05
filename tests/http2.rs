//! HTTP/2 towards clients by prior knowledge: requests, refusals, deadlines and ends as clients and operators meet them.
//! It must not know frames.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use serde_json::json;
use support::http2::{H2Client, PREFACE, RawH2, SETTINGS, frame};
use support::token::{claims, now};
use support::*;

const LISTENERS: &str = "listeners: [ { address: \"127.0.0.1:0\", http2: true } ]";

fn config(origin: &Origin, more: &str) -> String {
    format!(
        "{LISTENERS}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /open, upstream: up, auth: none }}, {{ prefix: /get, upstream: up, auth: none, methods: [ GET ] }}, {{ prefix: /, upstream: up }} ]
{more}",
        origin.url()
    )
}

fn client(gateway: &Gateway) -> H2Client {
    H2Client::connect(gateway.address)
}

#[test]
fn a_request_is_served_as_one_of_http1() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    let mut client = client(&gateway);
    let fields = [
        ("Cookie", "a=1"),
        ("Cookie", "b=2"),
        ("X-Case", "get"),
        ("TE", "trailers"),
        ("X-Token-ID", "forged"),
    ];
    let answer = client.call("GET", "/open/a%62c?q=%7e", &fields, b"").unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text(), "GET /open/abc?q=%7e HTTP/1.1");
    assert!(answer.header("x-request-id").is_some());
    assert!(answer.header("date").is_some());
    for field in ["connection", "transfer-encoding", "keep-alive"] {
        assert_eq!(answer.header(field), None, "{field}");
    }
    let seen = origin.case("get").unwrap();
    assert_eq!(seen.all("host"), ["gateway.test"]);
    assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.all("x-forwarded-host"), ["gateway.test"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.header("x-token-id"), None);
    assert_eq!(seen.header("te"), None);
    assert_eq!(seen.header("transfer-encoding"), None);

    let line = gateway.wait_log("a line", |line| line["path"] == "/open/abc");
    assert_eq!((&line["status"], &line["host"]), (&200.into(), &"gateway.test".into()));

    // An answer without a body, and one to HEAD.
    origin.reply("/open/empty", "HTTP/1.1 204 No Content\r\n\r\n");
    let answer = client.call("GET", "/open/empty", &[], b"").unwrap();
    assert_eq!((answer.status(), answer.body.len(), answer.complete), (204, 0, true));
    let answer = client.call("HEAD", "/open/head", &[], b"").unwrap();
    assert_eq!((answer.status(), answer.body.len(), answer.complete), (200, 0, true));
    assert!(answer.header("content-length").is_some());
}

#[test]
fn bodies_pass_both_ways() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    let mut client = client(&gateway);
    for size in [1, 1_000, 65_536, 100_000, 5_000_000] {
        let body: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
        let length = size.to_string();
        for fields in [&[][..], &[("Content-Length", &*length)]] {
            let answer = client.call("POST", "/open/echo", fields, &body).unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.body == body, "{size} bytes, {fields:?}");
        }
    }
    // A chunked answer.
    origin.reply(
        "/open/chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    );
    let answer = client.call("GET", "/open/chunks", &[], b"").unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("hello!", true));
    assert_eq!(answer.header("transfer-encoding"), None);
}

#[test]
fn an_empty_last_part_ends_a_body_once() {
    let origin = Origin::start();
    let gateway = Gateway::start_with_one_thread(&config(&origin, ""));
    let mut client = client(&gateway);
    for nth in 0..20 {
        let path = format!("/open/{nth}");
        let (answer, mut body) = client.begin("POST", &path, &[], false);
        if nth % 2 == 0 {
            client.send(&mut body, b"part", false).unwrap();
            client.send(&mut body, b"", false).unwrap();
        }
        thread::sleep(Duration::from_millis(2));
        client.send(&mut body, b"", true).unwrap();
        assert_eq!(client.receive(answer).unwrap().status(), 200);
        let expected: &[u8] = if nth % 2 == 0 { b"part" } else { b"" };
        assert_eq!(origin.one(&path).body, expected);
    }
    assert_eq!(origin.connections(), 1, "a second end would have spoiled the connection");
}

#[test]
fn many_requests_share_a_connection() {
    let origin = Origin::start();
    let gate = origin.hold("/open/held");
    let gateway = Gateway::start(&config(&origin, ""));
    let mut client = client(&gateway);
    let held: Vec<_> = (0..50).map(|_| client.begin("GET", "/open/held", &[], true)).collect();
    for nth in 0..200 {
        let path = format!("/open/{nth}");
        let answer = client.call("GET", &path, &[], b"").unwrap();
        assert_eq!(answer.text(), format!("GET {path} HTTP/1.1"));
    }
    drop(gate);
    for (answer, _) in held {
        assert_eq!(client.receive(answer).unwrap().text(), "held");
    }
    assert_eq!(gateway.metric("tollgate_client_connections"), Some(1.0));
}

#[test]
fn refusals_are_answers_on_their_streams() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, "max_body: 1KiB"));
    let mut client = client(&gateway);
    let large = vec![b'x'; 200_000];
    for (method, path, fields, body, status, code) in [
        ("GET", "/private", &[][..], &b""[..], 401, "missing_token"),
        ("HEAD", "/private", &[], b"", 401, ""),
        ("GET", "/private", &[("Authorization", "Bearer x")], b"", 401, "invalid_token"),
        ("POST", "/get", &[], b"", 405, "method_not_allowed"),
        ("POST", "/open", &[("Content-Length", "200000")], &large[..], 413, "body_too_large"),
        ("POST", "/open", &[], &large[..], 413, "body_too_large"),
        ("POST", "/private", &[], &large[..], 401, "missing_token"),
        ("GET", "/open/%zz", &[], b"", 400, "bad_request"),
        ("GET", "/open", &[("Host", "other")], b"", 400, "bad_request"),
        (
            "GET",
            "/open",
            &[("Content-Length", "0"), ("Content-Length", "0")],
            b"",
            400,
            "bad_request",
        ),
    ] {
        let answer = client.call(method, path, fields, body).unwrap();
        assert_eq!(answer.status(), status, "{method} {path} {fields:?}");
        assert_eq!(answer.header("content-type").unwrap(), "application/problem+json");
        assert!(answer.complete);
        if method != "HEAD" {
            assert_eq!(answer.code(), code, "{method} {path} {fields:?}");
        }
    }
    assert_eq!(
        client.call("GET", "/open", &[], b"").unwrap().status(),
        200,
        "the connection goes on"
    );
    assert_eq!(client.call("GET", "/health", &[], b"").unwrap().text(), "{\"status\":\"alive\"}\n");
    assert_eq!(gateway.metric("tollgate_rejections_total{code=\"missing_token\"}"), Some(3.0));
    assert_eq!(gateway.metric("tollgate_rejections_total{code=\"bad_request\"}"), Some(3.0));
    assert_eq!(
        gateway.metric("tollgate_requests_total{method=\"POST\",route=\"/open\",status=\"413\"}"),
        Some(2.0)
    );
}

#[test]
fn an_upstream_that_fails_is_told_on_its_stream() {
    let origin = Origin::start();
    origin.on("/open/dead", |_, _| Ok(false));
    origin.on("/open/half", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").map(|()| false)
    });
    let gateway = Gateway::start(&config(&origin, ""));
    let mut client = client(&gateway);
    let answer = client.call("POST", "/open/dead", &[], b"x").unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_unreachable"));
    let error = client.call("GET", "/open/half", &[], b"").unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
    assert_eq!(client.call("GET", "/open", &[], b"").unwrap().status(), 200);
    let line =
        gateway.wait_log("a line", |line| line["path"] == "/open/half" && line["status"].is_u64());
    assert_eq!(line["reason"], "closed");
}

#[test]
fn each_listener_and_each_client_has_its_protocol() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    // HTTP/1.1 on the same listener, in any pieces, also with bytes that begin like the preface.
    assert_eq!(gateway.get("/open/x").status(), 200);
    let mut client = gateway.connect();
    for byte in request("GET", "/open/pieces", &[], b"") {
        client.send([byte]);
    }
    assert_eq!(client.read().status(), 200);
    let mut client = gateway.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert_eq!(client.read().status(), 400);
    // The preface in pieces.
    let mut raw = RawH2::silent(gateway.address);
    for byte in PREFACE {
        raw.send(&[*byte]);
    }
    raw.send(&frame(SETTINGS, 0, 0, b""));
    assert!(raw.find(|frame| frame.kind == SETTINGS).is_some());

    // The rule is live.
    let off = config(&origin, "").replace("http2: true", "http2: false");
    gateway.reload(&off);
    gateway.wait_log("a reload", |line| {
        line["message"].as_str().is_some_and(|m| m.contains("reload"))
    });
    wait_for("HTTP/2 to be off", || {
        let mut client = gateway.connect();
        client.send(PREFACE);
        (client.try_read(false).ok()?.status() == 400).then_some(())
    });
}

#[test]
fn a_client_has_only_so_much_time() {
    let origin = Origin::start();
    origin.on("/open/large", |_, stream| {
        let body = vec![b'x'; 4_000_000];
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")?;
        stream.write_all(&body).map(|()| true)
    });
    let timeouts = "timeouts: { header: 500ms, read: 600ms, write: 700ms, idle: 800ms }";
    let gateway = Gateway::start(&config(&origin, timeouts));
    let between = |since: Instant, low: u64, high: u64| {
        let lasted = since.elapsed().as_millis();
        assert!((u128::from(low)..u128::from(high)).contains(&lasted), "{lasted} ms");
    };

    // Nothing, half a preface, and no settings.
    for (sent, low) in [(&b""[..], 750), (&PREFACE[..10], 450), (PREFACE, 450)] {
        let since = Instant::now();
        let mut raw = RawH2::silent(gateway.address);
        raw.send(sent);
        while raw.next().is_some() {}
        between(since, low, 3_000);
    }
    // No request.
    let since = Instant::now();
    let mut raw = RawH2::connect(gateway.address);
    assert_eq!(raw.goaway(), Some(0), "the client may come back");
    between(since, 750, 3_000);

    // A body that stops.
    let mut client = client(&gateway);
    let (answer, mut body) = client.begin("POST", "/open/slow", &[], false);
    client.send(&mut body, b"begin", false).unwrap();
    let since = Instant::now();
    let answer = client.receive(answer).unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (408, "request_timeout"));
    between(since, 500, 3_000);

    // An answer that is not taken.
    let mut client = H2Client::connect_with(gateway.address, |builder| {
        builder.initial_window_size(1_000);
    });
    let (answer, _) = client.begin("GET", "/open/large", &[], true);
    let (head, mut body) = client.head(answer).unwrap();
    assert_eq!(head.status(), 200);
    let since = Instant::now();
    let end = client.block_on(async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(end.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    between(since, 600, 3_000);
    assert_eq!(gateway.metric("tollgate_http2_protection_total{kind=\"window_stall\"}"), Some(1.0));
    // The others on the connection are served.
    assert_eq!(client.call("GET", "/open/x", &[], b"").unwrap().status(), 200);
}

#[test]
fn a_slow_client_gets_its_whole_answer() {
    let origin = Origin::start();
    let body = vec![b'x'; 60_000];
    let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", &body[..]].concat();
    origin.reply("/open/large", answer);
    let timeouts = "timeouts: { write: 900ms, idle: 600ms }";
    let gateway = Gateway::start(&config(&origin, timeouts));
    let windows = |builder: &mut h2::client::Builder| {
        builder.initial_window_size(8_000);
    };
    let line =
        |id: &str| gateway.wait_log(id, |line| line["request_id"] == id && line["status"].is_u64());

    let mut slow = H2Client::connect_with(gateway.address, windows);
    let (answer, _) = slow.begin("GET", "/open/large", &[("X-Request-ID", "slow")], true);
    let (_, mut body) = slow.head(answer).unwrap();
    let (mut read, mut parts) = (0, 0);
    while let Some(data) = slow.next(&mut body) {
        read += data.unwrap().len();
        parts += 1;
        // The client pauses for less than it may, and in all for longer than an idle connection lasts.
        if parts % 2 == 0 {
            thread::sleep(Duration::from_millis(400));
        }
    }
    assert_eq!(read, 60_000);
    let slow_line = line("slow");
    assert_eq!(slow_line["reason"], serde_json::Value::Null, "{slow_line}");
    assert!(slow_line["duration_ms"].as_f64().unwrap() > 900.0, "{slow_line}");
    assert!(slow.end().is_ok(), "an idle connection ends in peace");

    // A client that takes nothing of the last bytes.
    origin.reply("/open/small", "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world");
    let mut stalled = H2Client::connect_with(gateway.address, |builder| {
        builder.initial_window_size(4);
    });
    let (answer, _) = stalled.begin("GET", "/open/small", &[("X-Request-ID", "stalled")], true);
    let (_, mut body) = stalled.head(answer).unwrap();
    let end = stalled.block_on(async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(end.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    assert_eq!(line("stalled")["reason"], "client_gone");
    assert_eq!(gateway.metric("tollgate_http2_protection_total{kind=\"window_stall\"}"), Some(1.0));
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    let origin = Origin::start();
    origin.on("/open/wait", |_, stream| stream.read(&mut [0]).map(|_| false));
    let gateway = Gateway::start(&config(&origin, ""));
    for leaves_connection in [false, true] {
        let mut client = client(&gateway);
        let path = "/open/wait";
        let id = format!("leaves-{leaves_connection}");
        let (answer, mut body) = client.begin("GET", path, &[("X-Request-ID", &id)], true);
        wait_for("the origin", || {
            let arrived = origin
                .requests_for(path)
                .iter()
                .any(|r| r.header("x-request-id").as_deref() == Some(&id));
            arrived.then_some(())
        });
        let since = Instant::now();
        match leaves_connection {
            true => drop((client, answer, body)),
            false => {
                body.send_reset(Reason::CANCEL);
                drop(answer);
            }
        }
        let line =
            gateway.wait_log("a line", |line| line["request_id"] == *id && line["status"].is_u64());
        assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()));
        assert!(since.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_client_that_leaves_a_stalled_upload_ends_it() {
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = origin.local_addr().unwrap();
    let gateway = Gateway::start(&format!(
        "{LISTENERS}\nmax_body: 1GiB\nupstreams: {{ up: {{ endpoints: [ \"http://{address}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up, auth: none }} ]"
    ));
    let mut client = client(&gateway);
    let (answer, mut body) =
        client.begin("POST", "/stalled", &[("X-Request-ID", "stalled")], false);
    let (mut upstream, _) = origin.accept().unwrap();
    // The origin reads nothing; the gateway's buffers fill.
    let part = Bytes::from(vec![b'x'; 1 << 20]);
    client.block_on(async {
        for _ in 0..64 {
            body.reserve_capacity(part.len());
            let room = tokio::time::timeout(
                Duration::from_millis(1_500),
                std::future::poll_fn(|cx| body.poll_capacity(cx)),
            )
            .await;
            let Ok(Some(Ok(room))) = room else { break };
            body.send_data(part.slice(..room.min(part.len())), false).unwrap();
        }
    });
    let since = Instant::now();
    body.send_reset(Reason::CANCEL);
    drop(answer);
    let line = gateway
        .wait_log("a line", |line| line["request_id"] == "stalled" && line["status"].is_u64());
    assert_eq!(line["reason"], "client_gone");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sink = vec![0; 1 << 20];
    while matches!(upstream.read(&mut sink), Ok(1..)) {}
}

#[test]
fn a_long_answer_ends_with_its_token() {
    let origin = Origin::start();
    origin.on("/events", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        stream.read(&mut [0]).map(|_| false)
    });
    let redis = Redis::start();
    let gateway =
        Gateway::start(&config(&origin, &format!("redis: {{ url: \"{}\" }}", redis.url())));
    redis.record("alice", &[("name", "x")]);
    let mut client = client(&gateway);
    let brief = format!("Bearer {}", claims(json!({ "api_key": "alice", "exp": now() + 3 })));
    let (answer, _) = client.begin(
        "GET",
        "/events",
        &[("Authorization", &brief), ("X-Request-ID", "brief")],
        true,
    );
    let (head, mut body) = client.head(answer).unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(client.next(&mut body).unwrap().unwrap(), "hello");
    let error = client.next(&mut body).unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let line =
        gateway.wait_log("a line", |line| line["request_id"] == "brief" && line["status"].is_u64());
    assert_eq!(line["reason"], "token_expired");
    assert_eq!(client.call("GET", "/open", &[], b"").unwrap().status(), 200);
}

#[test]
fn an_upload_ends_with_its_token() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway =
        Gateway::start(&config(&origin, &format!("redis: {{ url: \"{}\" }}", redis.url())));
    redis.record("alice", &[("name", "x")]);
    let mut client = client(&gateway);
    let brief = format!("Bearer {}", claims(json!({ "api_key": "alice", "exp": now() + 3 })));
    let fields = [("Authorization", &*brief), ("X-Request-ID", "upload")];
    let (_answer, mut body) = client.begin("POST", "/upload", &fields, false);
    let since = Instant::now();
    while client.send(&mut body, b"x", false).is_ok() {
        assert!(since.elapsed() < Duration::from_secs(8), "the upload goes on");
        thread::sleep(Duration::from_millis(100));
    }
    let line = gateway
        .wait_log("a line", |line| line["request_id"] == "upload" && line["status"].is_u64());
    assert_eq!(line["reason"], "token_expired");
    assert_eq!(client.call("GET", "/open", &[], b"").unwrap().status(), 200);
}

#[test]
fn requests_under_way_are_served_to_their_end_when_the_gateway_stops() {
    let origin = Origin::start();
    let gate = origin.hold("/open/held");
    let mut gateway = Gateway::start(&config(&origin, ""));
    let mut busy = client(&gateway);
    let (answer, _) = busy.begin("GET", "/open/held", &[], true);
    origin.one("/open/held");
    let idle = client(&gateway);
    gateway.signal("TERM");
    assert!(idle.end().is_ok(), "it is told to go");
    wait_for("the busy connection to be told", || busy.is_closing().then_some(()));
    gate.open();
    let answer = busy.receive(answer).unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "held"));
    assert!(busy.end().is_ok());
    assert!(gateway.wait_exit().success());
}

#[test]
fn leave_to_send_a_body_is_given() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    let mut client = client(&gateway);
    let (mut answer, mut body) =
        client.begin("POST", "/open", &[("Expect", "100-continue")], false);
    let leave = client.block_on(std::future::poll_fn(|cx| answer.poll_informational(cx)));
    assert_eq!(leave.unwrap().unwrap().status(), 100);
    client.send(&mut body, b"body", true).unwrap();
    assert_eq!(client.receive(answer).unwrap().text(), "body");
    assert_eq!(origin.one("/open").header("expect"), None);
}

#[test]
fn a_client_that_closes_its_side_still_gets_its_answer() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, ""));
    let mut raw = RawH2::connect(gateway.address);
    raw.send(&frame(support::http2::HEADERS, 5, 1, &support::http2::get("/open", &[])));
    assert_eq!(raw.outcome(1), Some(Ok(200)));
    raw.stream.shutdown(Shutdown::Write).unwrap();
    while raw.next().is_some() {}
}
