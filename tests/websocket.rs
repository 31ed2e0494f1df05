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
