//! WebSockets and long answers: how long they may be quiet, and that they end with their token. And clients that close
//! their side early. It must not know how a request is ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::token::{claims, now};
use support::*;

const UPGRADE: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "websocket")];

/// An origin with a tunnel that echoes at /ws, a quiet stream of unknown length at /events, a slow large file at /file,
/// and an upgrade that never comes at /mute.
fn origin() -> Origin {
    let origin = Origin::start();
    origin.on("/ws", |_, stream| {
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(false),
                read => stream.write_all(&bytes[..read])?,
            }
        }
    });
    origin.on("/events", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        // Silent until the gateway leaves.
        stream.read(&mut [0]).map(|_| false)
    });
    origin.on("/file", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
        for _ in 0..1_000 {
            stream.write_all(&[b'x'; 1_000])?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    });
    origin.on("/mute", |_, stream| stream.read(&mut [0]).map(|_| false));
    origin.on("/refuse", |_, stream| {
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf")?;
        stream.read(&mut [0]).map(|_| false)
    });
    origin.on("/slow", |_, stream| {
        thread::sleep(Duration::from_millis(500));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").map(|()| true)
    });
    origin
}

fn config(origin: &Origin, read: &str, more: &str) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{}\" ], timeouts: {{ read: {read} }} }} }}
routes: [ {{ prefix: /open, upstream: up, auth: none, strip_prefix: true }}, {{ prefix: /, upstream: up }} ]
{more}",
        origin.url()
    )
}

/// A request that has begun to be answered.
struct Long(Client);

impl Long {
    fn open(gateway: &Gateway, target: &str, id: &str, authorization: &str) -> Self {
        let mut client = gateway.connect();
        let fields =
            [&UPGRADE[..], &[("X-Request-ID", id), ("Authorization", authorization)]].concat();
        let fields = if target.ends_with("/ws") { &fields[..] } else { &fields[2..] };
        client.send(request("GET", target, fields, b""));
        let head = client.head().unwrap().unwrap();
        let expected = if target.ends_with("/ws") { 101 } else { 200 };
        assert_eq!(head.status(), expected, "{target}");
        Self(client)
    }

    /// Whether bytes come back.
    fn echoes(&mut self) -> bool {
        self.0.send(b"echo");
        let mut bytes = [0; 4];
        self.0.stream().read_exact(&mut bytes).is_ok() && bytes == *b"echo"
    }

    /// How long the connection lasts from now on.
    fn lasts(&mut self) -> Duration {
        let since = Instant::now();
        let mut bytes = [0; 16 * 1024];
        while matches!(self.0.stream().read(&mut bytes), Ok(1..)) {}
        since.elapsed()
    }
}

fn reason(gateway: &Gateway, id: &str) -> String {
    let line = gateway.wait_log(id, |line| line["request_id"] == id && line["status"].is_u64());
    line["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_long_answer_ends_when_its_token_expires() {
    let (redis, origin) = (Redis::start(), origin());
    let gateway =
        Gateway::start(&config(&origin, "30s", &format!("redis: {{ url: \"{}\" }}", redis.url())));
    redis.record("alice", &[("name", "x")]);
    for target in ["/ws", "/events", "/file"] {
        let brief = claims(json!({ "api_key": "alice", "exp": now() + 3 }));
        let mut long = Long::open(&gateway, target, target, &format!("Bearer {brief}"));
        let lasted = long.lasts();
        assert!((1..5).contains(&lasted.as_secs()), "{target}: {lasted:?}");
        assert_eq!(reason(&gateway, target), "token_expired", "{target}");
    }
}

#[test]
fn a_long_answer_ends_when_its_token_is_revoked() {
    let (redis, origin) = (Redis::start(), origin());
    let gateway =
        Gateway::start(&config(&origin, "30s", &format!("redis: {{ url: \"{}\" }}", redis.url())));
    let ways: [(&str, &[&str]); 3] = [
        ("deleted", &["DEL", "token:deleted"]),
        ("disabled", &["HSET", "token:disabled", "disabled", "true"]),
        ("unreadable", &["HSET", "token:unreadable", "disabled", "perhaps"]),
    ];
    for target in ["/ws", "/events", "/file"] {
        redis.record("other", &[("name", "x")]);
        let mut other = Long::open(&gateway, "/ws", &format!("other{target}"), &bearer("other"));
        for (api_key, way) in ways {
            redis.record(api_key, &[("name", "x"), ("disabled", "false")]);
            wait_for("the record", || (gateway.get_as(api_key, "/").status() == 200).then_some(()));
            let id = format!("{api_key}{target}");
            let mut long = Long::open(&gateway, target, &id, &bearer(api_key));
            // Long enough to be watched.
            thread::sleep(Duration::from_millis(1_300));
            if target == "/ws" {
                assert!(long.echoes(), "{id}");
            }
            redis.command(way);
            let lasted = long.lasts();
            // 100 ms and what a busy machine adds to that.
            assert!(lasted < Duration::from_millis(700), "{id}: {lasted:?}");
            assert_eq!(reason(&gateway, &id), "token_revoked", "{id}");
        }
        assert!(other.echoes(), "another token's tunnel stays");
    }
}

#[test]
fn an_upload_ends_with_its_token() {
    let (redis, origin) = (Redis::start(), origin());
    // Reads the head of a request and nothing more.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("max_body: 1GiB\nredis: {{ url: \"{}\" }}", redis.url());
    let gateway = Gateway::start(&format!(
        "{more}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }}, silent: {{ endpoints: [ \"http://{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }}, {{ prefix: /silent, upstream: silent }} ]",
        origin.url(),
        silent.local_addr().unwrap()
    ));
    redis.record("alice", &[("name", "x")]);
    let piece = vec![b'x'; 64 << 10];
    for (target, piece) in [("/upload", &piece[..1]), ("/silent", &piece)] {
        let brief = claims(json!({ "api_key": "alice", "exp": now() + 3 }));
        let mut client = TcpStream::connect(gateway.address).unwrap();
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: a\r\nX-Request-ID: {target}\r\nAuthorization: Bearer {brief}\r\nContent-Length: 1000000000\r\n\r\n"
        );
        client.write_all(head.as_bytes()).unwrap();
        let since = Instant::now();
        while client.write_all(piece).is_ok() {
            assert!(since.elapsed() < Duration::from_secs(8), "{target}: the upload goes on");
            thread::sleep(Duration::from_millis(if piece.len() == 1 { 50 } else { 0 }));
        }
        assert_eq!(reason(&gateway, target), "token_expired", "{target}");
    }
}

#[test]
fn a_tunnel_has_a_timeout_of_its_own() {
    let origin = origin();
    let gateway = Gateway::start(&config(&origin, "1s", "timeouts: { read: 1s, tunnel: 3s }"));
    let mut tunnel = Long::open(&gateway, "/open/ws", "idle", "none");
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(2_200));
        assert!(tunnel.echoes(), "quiet for less than its timeout");
    }
    let lasted = tunnel.lasts();
    assert!((2..5).contains(&lasted.as_secs()), "{lasted:?}");
    assert_eq!(reason(&gateway, "idle"), "tunnel_idle");

    // An upgrade that does not come is an upstream that does not answer, and so is the rest of a refusal.
    let upgrade = [&UPGRADE[..], &[("X-Request-ID", "mute")]].concat();
    let since = Instant::now();
    let answer = gateway.call("GET", "/open/mute", &upgrade, b"");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
    assert_eq!(reason(&gateway, "mute"), "read_timeout");
    let upgrade = [&UPGRADE[..], &[("X-Request-ID", "refuse")]].concat();
    let mut client = gateway.connect();
    client.send(request("GET", "/open/refuse", &upgrade, b""));
    assert!(client.try_read(false).is_err(), "an answer that stalls");
    assert_eq!(reason(&gateway, "refuse"), "read_timeout");
}

#[test]
fn a_route_says_how_long_its_tunnels_and_streams_may_be_quiet() {
    let origin = origin();
    origin.on("/stream", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        stream.read(&mut [0]).map(|_| false)
    });
    let yaml = |long: &str| {
        format!(
            "timeouts: {{ read: 500ms, tunnel: 2s }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ], timeouts: {{ read: 500ms, first_byte: 700ms }} }} }}
routes:
  - {{ prefix: /usual, upstream: up, auth: none, strip_prefix: true }}
  - {{ prefix: /short, upstream: up, auth: none, strip_prefix: true, timeouts: {{ idle: 700ms }} }}
  - {{ prefix: /long, upstream: up, auth: none, strip_prefix: true, timeouts: {{ idle: {long} }} }}",
            origin.url()
        )
    };
    let gateway = Gateway::start(&yaml("4s"));
    let open = |path: &str, id: &str| {
        let mut client = gateway.connect();
        let fields = [&UPGRADE[..], &[("X-Request-ID", id)]].concat();
        let fields = match path.ends_with("/ws") {
            true => &fields[..],
            false => &[("Accept", "text/event-stream"), ("X-Request-ID", id)],
        };
        client.send(request("GET", path, fields, b""));
        assert!([101, 200].contains(&client.head().unwrap().unwrap().status()), "{path}");
        Long(client)
    };
    let cases = [("/usual", 2_000), ("/short", 700), ("/long", 4_000)];
    let cases = cases.into_iter().flat_map(|(route, idle)| {
        ["/ws", "/stream"].map(|what| (format!("{route}{what}"), Duration::from_millis(idle)))
    });
    // All at the same time.
    thread::scope(|scope| {
        for (path, idle) in cases {
            let open = &open;
            scope.spawn(move || {
                let lasted = open(&path, &path).lasts();
                let most = idle + Duration::from_millis(1_500);
                assert!(
                    (idle - Duration::from_millis(100)..most).contains(&lasted),
                    "{path} {lasted:?}"
                );
            });
        }
    });
    for id in ["/usual/ws", "/short/ws", "/long/ws", "/usual/stream", "/short/stream"] {
        assert_eq!(reason(&gateway, id), "tunnel_idle");
    }
    // A reload holds for tunnels that begin after it.
    let mut before = open("/long/ws", "before");
    let generation = gateway.metric("tollgate_config_generation").unwrap();
    gateway.reload(&yaml("300ms"));
    wait_for("the reload", || {
        (gateway.metric("tollgate_config_generation")? > generation).then_some(())
    });
    let lasted = open("/long/ws", "after").lasts();
    assert!(lasted < Duration::from_secs(2), "{lasted:?}");
    assert!(before.echoes());
}

#[test]
fn a_client_that_closes_its_side_after_its_request_is_answered() {
    let origin = origin();
    let gateway = Gateway::start(&config(&origin, "30s", ""));
    for (target, body, answer) in [
        ("/open/slow", "", "slow"),
        ("/open/", "", "GET / HTTP/1.1"),
        ("/open/echo", "body", "body"),
    ] {
        let mut client = gateway.connect();
        client.send(request("POST", target, &[], body.as_bytes()));
        client.stream().get_mut().shutdown(Shutdown::Write).unwrap();
        let answer_text =
            if body.is_empty() { answer.replace("GET", "POST") } else { answer.into() };
        assert_eq!(client.read().text(), answer_text, "{target}");
        assert!(client.is_closed(), "{target}");
    }
    // Half a body is no request.
    let mut client = gateway.connect();
    client.send(
        b"POST /open/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nX-Request-ID: half\r\n\r\nhalf",
    );
    client.stream().get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(reason(&gateway, "half"), "client_gone");
    // A client that has left is noticed, although its upstream is silent.
    let mut client = gateway.connect();
    client.send(request("GET", "/open/slow", &[("X-Request-ID", "left")], b""));
    drop(client);
    let line =
        gateway.wait_log("left", |line| line["request_id"] == "left" && line["status"].is_u64());
    assert!(line["duration_ms"].as_f64().unwrap() < 5_000.0, "{line}");
}

/// Bytes that have arrived at the gateway's end of `client` and that it has not read (proc_net_tcp(5)).
fn unread(client: &TcpStream) -> u64 {
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1)?, 16).ok();
    let (here, there) = (client.local_addr().unwrap().port(), client.peer_addr().unwrap().port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queue = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = port(fields.get(1)?) == Some(there) && port(fields.get(2)?) == Some(here);
        is_it.then(|| u64::from_str_radix(fields[4].split(':').nth(1)?, 16).ok()).flatten()
    });
    queue.unwrap_or(0)
}

#[test]
fn a_client_that_leaves_while_its_upload_stalls_is_noticed() {
    // Reads the head of a request and nothing more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let streams: Vec<_> = listener.incoming().map_while(Result::ok).collect();
        drop(streams);
    });
    let gateway = Gateway::start(&format!(
        "timeouts: {{ read: 60s, write: 60s }}
max_body: 1GiB
upstreams: {{ up: {{ endpoints: [ \"{url}\" ], timeouts: {{ read: 60s, write: 60s }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
    ));
    let piece = vec![b'x'; 64 << 10];
    let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
    let (length, chunked) = ("Content-Length: 1000000000", "Transfer-Encoding: chunked");
    for (id, method, framing, piece, resets) in [
        ("closes", "POST", length, &piece, false),
        ("resets", "PUT", length, &piece, true),
        ("chunks", "POST", chunked, &chunk, false),
    ] {
        let mut client = TcpStream::connect(gateway.address).unwrap();
        let head =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nX-Request-ID: {id}\r\n{framing}\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        wait_longer_for(Duration::from_secs(30), "the upload to stall", || {
            client.write_all(piece).unwrap();
            thread::sleep(Duration::from_millis(30));
            (unread(&client) > 0).then(|| thread::sleep(Duration::from_millis(300)));
            (unread(&client) > 0).then_some(())
        });
        thread::sleep(Duration::from_millis(1_000));
        if resets {
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
        let since = Instant::now();
        drop(client);
        let line = gateway.wait_log(id, |line| line["request_id"] == id && line["status"].is_u64());
        assert!(since.elapsed() < Duration::from_secs(2), "{id}: {:?}", since.elapsed());
        assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()));
    }
    let failed = gateway.lines().into_iter().find(|line| line.contains("request failed"));
    assert_eq!(failed, None, "the upstream is not at fault");
}

#[test]
fn the_tunnel_of_a_rotated_key_ends_with_its_own_record() {
    // The SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let (redis, origin) = (Redis::start(), origin());
    let gateway =
        Gateway::start(&config(&origin, "30s", &format!("redis: {{ url: \"{}\" }}", redis.url())));
    // The token that it counts as has ended already.
    redis.record(ABC, &[("counts_as", "predecessor")]);
    let mut tunnel = Long::open(&gateway, "/ws", "rotated", "Bearer abc");
    thread::sleep(Duration::from_millis(2_500));
    assert!(tunnel.echoes());
    redis.command(&["DEL", &format!("token:{ABC}")]);
    let lasted = tunnel.lasts();
    assert!(lasted < Duration::from_millis(700), "{lasted:?}");
    assert_eq!(reason(&gateway, "rotated"), "token_revoked");
}

#[test]
fn a_tunnel_follows_the_present_expiry_of_its_record() {
    let (redis, origin) = (Redis::start(), origin());
    let gateway =
        Gateway::start(&config(&origin, "30s", &format!("redis: {{ url: \"{}\" }}", redis.url())));
    redis.record("longer", &[("expires_at", &(now() + 4).to_string())]);
    let mut tunnel = Long::open(&gateway, "/ws", "longer", &bearer("longer"));
    thread::sleep(Duration::from_millis(1_500));
    redis.command(&["HSET", "token:longer", "expires_at", &(now() + 100).to_string()]);
    thread::sleep(Duration::from_millis(4_000));
    assert!(tunnel.echoes(), "its record lives on");
    redis.command(&["HSET", "token:longer", "expires_at", &(now() + 2).to_string()]);
    let lasted = tunnel.lasts();
    assert!(lasted < Duration::from_millis(2_700), "{lasted:?}");
    assert_eq!(reason(&gateway, "longer"), "token_expired");
}
