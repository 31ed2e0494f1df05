//! WebSockets and streams of events end to end: real clients and servers, and an upstream that sends at once.
//! It must not know how a tunnel is made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use support::*;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::{Message as WsMessage, http};
use tokio_tungstenite::{accept_hdr_async, client_async};

fn config(url: &str, more: &str) -> String {
    format!(
        "upstreams: {{ up: {{ endpoints: [ \"{url}\" ], timeouts: {{ read: 500ms }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]
{more}"
    )
}

#[test]
fn a_tunnel_whose_upstream_sends_at_once_is_whole() {
    const HEAD: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Origin::start();
    // The answer and the first bytes of the tunnel in one segment.
    origin.on("/ws", |_, stream| {
        stream.write_all(&[HEAD, b"first"].concat())?;
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(false),
                read => stream.write_all(&bytes[..read])?,
            }
        }
    });
    let gateway = Gateway::start(&config(&origin.url(), ""));
    let address = gateway.address;
    // Several at the same time, so that the threads are busy.
    let clients: Vec<_> = (0..8)
        .map(|client| {
            thread::spawn(move || {
                for nth in 0..100 {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
                    let head = request("GET", "/ws", &fields, b"");
                    let since = Instant::now();
                    stream.write_all(&head).unwrap();
                    let mut answer = Vec::new();
                    let mut bytes = [0; 4096];
                    while !answer.ends_with(b"first") {
                        let read = stream.read(&mut bytes).unwrap();
                        assert!(
                            read > 0,
                            "client {client}, tunnel {nth}: {:?}",
                            String::from_utf8_lossy(&answer)
                        );
                        answer.extend_from_slice(&bytes[..read]);
                    }
                    assert!(answer.starts_with(b"HTTP/1.1 101 "));
                    stream.write_all(b"echo").unwrap();
                    let mut echo = [0; 4];
                    stream.read_exact(&mut echo).unwrap();
                    assert_eq!(&echo, b"echo", "client {client}, tunnel {nth}");
                    assert!(since.elapsed() < Duration::from_secs(5));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_client_that_does_not_wait_for_the_upgrade_is_refused() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin.url(), ""));
    let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let mut client = gateway.connect();
    // RFC 6455 section 4.1: the upstream might take the bytes for another request.
    client.send([&request("GET", "/ws", &fields, b"")[..], b"early"].concat());
    assert_eq!(client.read().status(), 400);
}

/// A WebSocket server that echoes messages, answers pings, and closes as it is asked.
async fn echo(listener: tokio::net::TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            #[allow(clippy::result_large_err)]
            let choose = |request: &Request, mut response: Response| {
                if let Some(asked) = request.headers().get("sec-websocket-protocol") {
                    let chosen = asked.to_str().unwrap().split(", ").last().unwrap();
                    response
                        .headers_mut()
                        .insert("sec-websocket-protocol", chosen.parse().unwrap());
                }
                Ok(response)
            };
            let Ok(mut socket) = accept_hdr_async(socket, choose).await else { return };
            socket.send(WsMessage::text("welcome")).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    WsMessage::Text(text) if text.as_str() == "close" => {
                        let frame =
                            CloseFrame { code: CloseCode::Library(4001), reason: "asked".into() };
                        let _ = socket.close(Some(frame)).await;
                    }
                    WsMessage::Text(_) | WsMessage::Binary(_) => {
                        let _ = socket.send(message).await;
                    }
                    _ => {}
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_kind_pass() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(echo(listener));
    let config = config(&url, "timeouts: { read: 500ms, tunnel: 3s }");
    let gateway = tokio::task::spawn_blocking(move || Gateway::start(&config)).await.unwrap();
    let mut request = format!("ws://{}/chat", gateway.address).into_client_request().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", http::HeaderValue::from_static("v1, v2"));
    let socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let (mut socket, answer) = client_async(request, socket).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v2");
    assert_eq!(socket.next().await.unwrap().unwrap(), WsMessage::text("welcome"));

    let large: String = "x".repeat(1 << 20);
    for message in [
        WsMessage::text("text"),
        WsMessage::text("ünïcödé"),
        WsMessage::text(""),
        WsMessage::binary(vec![0, 1, 2, 255]),
        WsMessage::binary(vec![7; 300_000]),
        WsMessage::text(large),
    ] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    // A message in pieces.
    for (opcode, last, piece) in [
        (Data::Text, false, "one "),
        (Data::Continue, false, "two "),
        (Data::Continue, true, "three"),
    ] {
        let header =
            FrameHeader { is_final: last, opcode: OpCode::Data(opcode), ..FrameHeader::default() };
        let frame = Frame::from_payload(header, piece.as_bytes().to_vec().into());
        socket.send(WsMessage::Frame(frame)).await.unwrap();
    }
    assert_eq!(socket.next().await.unwrap().unwrap(), WsMessage::text("one two three"));
    socket.send(WsMessage::Ping(b"ping".to_vec().into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), WsMessage::Pong(b"ping".to_vec().into()));
    // Longer than `timeouts.read` of either side.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    socket.send(WsMessage::text("still there")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), WsMessage::text("still there"));
    socket.send(WsMessage::text("close")).await.unwrap();
    let WsMessage::Close(Some(frame)) = socket.next().await.unwrap().unwrap() else { panic!() };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4001, "asked"));
    drop(socket);
    let lines = || {
        let lines = gateway.log();
        lines.iter().filter(|line| line["path"] == "/chat" && line["status"] == 101).count()
    };
    wait_for("the tunnel's line", || (lines() == 1).then_some(()));
}

#[test]
fn events_pass_at_once_and_may_be_rare() {
    let origin = Origin::start();
    origin.on("/events", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")?;
        thread::sleep(Duration::from_millis(1_200));
        stream.write_all(b"9\r\ndata: 2\n\n\r\n")?;
        stream.read(&mut [0]).map(|_| false)
    });
    let gateway = Gateway::start(&config(&origin.url(), "timeouts: { tunnel: 2s }"));
    let mut client = gateway.connect();
    let since = Instant::now();
    client.send(request("GET", "/events", &[("Accept", "text/event-stream")], b""));
    assert_eq!(client.head().unwrap().unwrap().status(), 200);
    let mut next = |wanted: &str| {
        let mut text = String::new();
        while !text.contains(wanted) {
            let mut bytes = [0; 1024];
            let read = client.stream().read(&mut bytes).unwrap();
            if read == 0 {
                return false;
            }
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        true
    };
    assert!(next("data: 1"));
    assert!(since.elapsed() < Duration::from_millis(800), "{:?}", since.elapsed());
    assert!(next("data: 2"), "the upstream's read timeout is 500 ms");
    let since = Instant::now();
    assert!(!next("data: 3"), "silence has a bound");
    assert!((1_500..5_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
}

/// A frame (RFC 6455 section 5.2): its first byte, and its payload, masked as a client's or plain as a server's.
fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(bit | length as u8),
        length @ 126..=65_535 => {
            bytes.push(bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if masked {
        let mask = [0x12, 0x34, 0x56, 0x78];
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Frames as Autobahn's cases have them, by their numbers there, and what they are.
fn autobahn(masked: bool) -> Vec<(String, Vec<u8>)> {
    let (text, binary, more, close, ping, pong) = (0x81, 0x82, 0x80, 0x88, 0x89, 0x8a);
    let frame = |first, payload: &[u8]| frame(first, payload, masked);
    let mut cases = Vec::new();
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
        cases.push((format!("1.1: text of {size}"), frame(text, &vec![b'*'; size])));
        cases.push((format!("1.2: binary of {size}"), frame(binary, &vec![0xfe; size])));
    }
    let closing = |code: u16, reason: &str| [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    cases.extend([
        ("2.1: ping".into(), frame(ping, b"")),
        ("2.4: ping with 125 bytes".into(), frame(ping, &[0xfe; 125])),
        ("2.5: ping too long".into(), frame(ping, &[0xfe; 126])),
        ("2.7: pong unasked".into(), frame(pong, b"unsolicited")),
        ("2.10: ten pings".into(), frame(ping, b"ping").repeat(10)),
        ("3.1: reserved bits".into(), [frame(0xc1, b"rsv1"), frame(0xf2, b"all")].concat()),
        (
            "4.1: reserved opcodes".into(),
            (3..8).flat_map(|code| frame(0x80 | code, b"x")).collect(),
        ),
        (
            "4.2: reserved controls".into(),
            (11..16).flat_map(|code| frame(0x80 | code, b"x")).collect(),
        ),
        ("5.1: a ping in pieces".into(), [frame(0x09, b"pi"), frame(more, b"ng")].concat()),
        (
            "5.6: a ping between pieces".into(),
            [frame(0x01, b"one"), frame(ping, b"ping"), frame(0x00, b""), frame(more, b"two")]
                .concat(),
        ),
        ("5.9: a piece of nothing".into(), frame(more, b"continues nothing")),
        ("5.18: two beginnings".into(), [frame(0x01, b"a"), frame(0x01, b"b")].concat()),
        (
            "6.1: three empty pieces".into(),
            [frame(0x01, b""), frame(0x00, b""), frame(more, b"")].concat(),
        ),
        ("6.3: no UTF-8".into(), frame(text, b"\xce\xba\xe1\xbd\xed\xa0\x80edited")),
        ("7.3: close".into(), frame(close, b"")),
        ("7.3: close with one byte".into(), frame(close, b"x")),
        ("7.3: close with a reason".into(), frame(close, &closing(1000, "Hello World!"))),
        ("7.3: a reason too long".into(), frame(close, &closing(1000, &"*".repeat(124)))),
        ("7.5: a reason that is no UTF-8".into(), frame(close, b"\x03\xe8\xce\xba\xed\xa0\x80")),
    ]);
    for code in
        [0, 999, 1000, 1001, 1004, 1005, 1006, 1011, 1016, 1100, 2999, 3000, 4999, 5000, 65_535]
    {
        cases.push((format!("7.7, 7.9: code {code}"), frame(close, &closing(code, ""))));
    }
    // What is no frame at all passes, too: the gateway does not read tunnels.
    cases.push(("no frame".into(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\xff\x7f\xff".to_vec()));
    cases
}

/// An origin that answers an upgrade for /ws with `first` in the same segment, then echoes, and ends when it is told.
fn echoing(first: &'static [u8]) -> Origin {
    const HEAD: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let origin = Origin::start();
    origin.on("/ws", move |_, stream| {
        stream.write_all(&[HEAD, first].concat())?;
        let mut bytes = vec![0; 64 << 10];
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok(false),
                read => stream.write_all(&bytes[..read])?,
            }
            if bytes.starts_with(END) {
                return Ok(false);
            }
        }
    });
    origin
}

/// The close frame with which a test ends a tunnel.
const END: &[u8] = b"\x88\x09\x03\xe8the end";

fn upgrade(stream: &mut (impl Read + Write)) {
    let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    stream.write_all(&request("GET", "/ws", &fields, b"")).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
}

/// Sends `bytes` in pieces of `size`, and reads each before the next goes out.
fn echoes(stream: &mut (impl Read + Write), case: &str, bytes: &[u8], size: usize) {
    let mut back = vec![0; size];
    for (nth, piece) in bytes.chunks(size).enumerate() {
        stream.write_all(piece).unwrap();
        stream.flush().unwrap();
        let back = &mut back[..piece.len()];
        stream.read_exact(back).unwrap_or_else(|e| panic!("{case}, piece {nth} of {size}: {e}"));
        assert!(back == piece, "{case}, piece {nth} of {size}: other bytes came back");
    }
}

/// Every case in one tunnel, in large and small pieces.
fn frames_pass(stream: &mut (impl Read + Write)) {
    upgrade(stream);
    let mut first = [0; 7];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"\x81\x05first", "what came with the answer");
    for (case, bytes) in autobahn(true).into_iter().chain(autobahn(false)) {
        echoes(stream, &case, &bytes, 60_000);
        if bytes.len() < 200 {
            echoes(stream, &case, &bytes, 1);
        }
    }
    for size in [1 << 20, 16 << 20] {
        let payload: Vec<u8> = (0..size).map(|nth: u32| (nth % 251) as u8).collect();
        echoes(stream, "9: a large message", &frame(0x82, &payload, true), 60_000);
    }
    stream.write_all(END).unwrap();
    stream.flush().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, END, "the upstream's close, and the end of the connection");
}

#[test]
fn frames_of_every_kind_pass_unchanged() {
    let origin = echoing(b"\x81\x05first");
    let authority = support::tls::Authority::new("tests");
    let dir = tempfile::TempDir::new().unwrap();
    let files = authority.issue(&["a.test"]).write(dir.path(), "a").yaml();
    let gateway = Gateway::start(&config(
        &origin.url(),
        &format!(
            "listeners: [ {{ address: \"127.0.0.1:0\" }}, {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {files} ] }} }} ]"
        ),
    ));
    let [plain, tls] = support::tls::listeners(&gateway).try_into().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| frames_pass(Client::connect(plain).stream().get_mut()));
        scope.spawn(|| frames_pass(authority.client().connect(tls, "a.test").stream()));
    });
}

#[test]
fn the_end_of_a_tunnel_comes_from_either_side() {
    let origin = echoing(b"");
    let gateway = Gateway::start(&config(&origin.url(), ""));
    let lines = |number: usize| {
        wait_for("the lines of the tunnels", || {
            let log = gateway.log();
            let ended = log.iter().filter(|line| line["path"] == "/ws" && line["status"] == 101);
            (ended.count() == number).then_some(())
        });
    };
    // The client closes, once the upstream has said that it does.
    let mut client = gateway.connect();
    upgrade(client.stream().get_mut());
    client.send(END);
    let mut answer = [0; END.len()];
    client.stream().read_exact(&mut answer).unwrap();
    assert_eq!(answer, END);
    drop(client);
    lines(1);
    // The client leaves without a word.
    let mut client = gateway.connect();
    upgrade(client.stream().get_mut());
    drop(client);
    lines(2);
    // The upstream leaves.
    let mut client = gateway.connect();
    upgrade(client.stream().get_mut());
    client.send(END);
    let mut rest = Vec::new();
    client.stream().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, END);
    lines(3);
}
