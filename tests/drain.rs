//! What WebSockets and streams of events meet when the gateway drains: their clients learn at once that they must go on
//! elsewhere. It must not know how the gateway counts its requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/h2_origin.rs"]
mod h2_origin;
mod support;

use std::io::{BufRead as _, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use h2_origin::H2Origin;
use support::http2::H2Client;
use support::tls::Authority;
use support::*;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::{accept_async, client_async};

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const UPGRADE: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xE9];

/// Requests under way may take long, so that nothing but the farewell ends them in the time of a test.
fn config(url: &str) -> String {
    format!(
        "server: {{ threads: 2, grace_period_seconds: 1, graceful_shutdown_timeout_seconds: 60 }}
listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
upstreams: {{ up: {{ endpoints: [ \"{url}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]"
    )
}

fn line(gateway: &Gateway, path: &str) -> (u64, String) {
    let line = gateway.wait_log(path, |line| line["path"] == path && line["status"].is_u64());
    (line["status"].as_u64().unwrap(), line["reason"].as_str().unwrap_or_default().to_owned())
}

/// Opens a tunnel to `path`.
fn open(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.connect();
    client.send(request("GET", path, &UPGRADE, b""));
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    client
}

/// What comes until the connection ends, which it must do without a reset.
fn rest(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.stream().read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_told_that_the_gateway_goes_away() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = accept_async(socket).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() {
                        let _ = socket.send(message).await;
                    }
                }
            });
        }
    });
    let mut gateway =
        tokio::task::spawn_blocking(move || Gateway::start(&config(&url))).await.unwrap();
    let socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let address = format!("ws://{}/chat", gateway.address);
    let (mut socket, _) = client_async(address, socket).await.unwrap();
    let mut echo = async |text: &str| {
        socket.send(WsMessage::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), WsMessage::text(text));
    };
    echo("before").await;
    let since = Instant::now();
    gateway.signal("TERM");
    tokio::time::sleep(Duration::from_millis(500)).await;
    echo("in the grace period").await;
    let close = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    let WsMessage::Close(Some(frame)) = close.unwrap().unwrap() else { panic!() };
    assert_eq!(u16::from(frame.code), 1001);
    assert!((900..4_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    // The end is clean for the client: its own Close is written, and the stream ends without an error.
    assert!(socket.next().await.is_none());
    let exit = tokio::task::spawn_blocking(move || {
        let status = gateway.wait_exit();
        assert_eq!(line(&gateway, "/chat"), (101, "draining".to_owned()));
        status
    });
    assert!(exit.await.unwrap().success());
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn the_close_stands_between_two_frames() {
    let origin = Origin::start();
    // The tunnel sends what each case says, and the second part once the listeners have closed.
    let (first, second) = (b"\x82\x7E\x01\x2Chalf".to_vec(), vec![b'x'; 296]);
    let whole = [&first[..], &second].concat();
    let (go, wait) = mpsc::channel::<()>();
    let wait = parking_lot::Mutex::new(wait);
    let parts = (first.clone(), second.clone());
    origin.on("/half", move |_, stream| {
        stream.write_all(&[SWITCHING, &parts.0].concat())?;
        wait.lock().recv().unwrap();
        stream.write_all(&parts.1)?;
        stream.read(&mut [0]).map(|_| false)
    });
    // The upstream has said goodbye itself, and waits for its client.
    origin.on("/closed", |_, stream| {
        stream.write_all(&[SWITCHING, b"\x81\x02hi\x88\x02\x03\xE8"].concat())?;
        stream.read(&mut [0]).map(|_| false)
    });
    // An answer with another protocol, whose frames nobody knows.
    origin.on("/other", |_, stream| {
        let head = String::from_utf8_lossy(SWITCHING).replace("websocket", "other");
        stream.write_all(head.as_bytes())?;
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes).map(|()| false)
    });
    // Nothing has been sent.
    origin.on("/silent", |_, stream| {
        stream.write_all(SWITCHING)?;
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes)? > 0 {}
        Ok(false)
    });
    let mut gateway = Gateway::start(&config(&origin.url()));
    let [mut half, mut closed, mut other, mut silent] =
        ["/half", "/closed", "/other", "/silent"].map(|path| open(&gateway, path));
    // A client that sends all the time, and sees the frame nevertheless.
    let mut busy = open(&gateway, "/silent");
    let sender = busy.stream().get_ref().try_clone().unwrap();
    let sending = thread::spawn(move || while (&sender).write_all(&[7; 4096]).is_ok() {});
    gateway.signal("TERM");
    assert_eq!(rest(&mut silent), GOING_AWAY);
    assert_eq!(rest(&mut busy), GOING_AWAY);
    drop(busy);
    sending.join().unwrap();

    // The gateway waits for the end of a frame.
    let mut bytes = vec![0; first.len()];
    half.stream().read_exact(&mut bytes).unwrap();
    let socket = half.stream().get_ref().try_clone().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(half.stream().fill_buf().is_err(), "nothing comes in the middle of a frame");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    go.send(()).unwrap();
    bytes.extend(rest(&mut half));
    assert_eq!(bytes, [&whole[..], GOING_AWAY].concat());

    // Others end by themselves.
    let mut bytes = [0; 8];
    closed.stream().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\x81\x02hi\x88\x02\x03\xE8");
    closed.send(b"\x88\x80mask");
    assert_eq!(rest(&mut closed), b"");
    other.send(b"ping");
    assert_eq!(rest(&mut other), b"ping");
    assert!(gateway.wait_exit().success());
    assert_eq!(line(&gateway, "/half"), (101, "draining".to_owned()));
    assert_eq!(line(&gateway, "/other"), (101, String::new()));
}

#[test]
fn a_stream_of_events_ends_whole() {
    let origin = Origin::start();
    origin.on("/events", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")?;
        stream.read(&mut [0]).map(|_| false)
    });
    // Long answers that end by themselves. The second is a stream, but no browser would ask for it again.
    origin.on("/file", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")?;
        for _ in 0..40 {
            stream.write_all(b"x")?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(false)
    });
    origin.on("/completion", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..40 {
            stream.write_all(b"1\r\nx\r\n")?;
            thread::sleep(Duration::from_millis(100));
        }
        stream.write_all(b"0\r\n\r\n").map(|()| true)
    });
    let h2_origin = H2Origin::start();
    let yaml = config(&origin.url());
    let yaml = yaml.replace(
        "up: {",
        &format!("h2: {{ endpoints: [ \"{}\" ] }}, up: {{", h2_origin.url("h2c")),
    );
    let yaml = yaml.replace("routes: [", "routes: [ { prefix: /h2, upstream: h2, auth: none },");
    let mut gateway = Gateway::start(&yaml);
    let accept = [("Accept", "text/event-stream")];
    let mut over_h1 = gateway.connect();
    over_h1.send(request("GET", "/events", &accept, b""));
    let mut from_h2 = gateway.connect();
    from_h2.send(request("GET", "/h2/events", &accept, b""));
    let mut completion = gateway.connect();
    completion.send(request("POST", "/completion", &accept, b""));
    let mut file = gateway.connect();
    file.send(request("GET", "/file", &accept, b""));
    let mut over_h2 = H2Client::connect(gateway.address);
    let (answer, _) = over_h2.begin("GET", "/events", &accept, true);
    let (head, mut body) = over_h2.head(answer).unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(over_h2.next(&mut body).unwrap().unwrap(), "data: 1\n\n");
    let since = Instant::now();
    gateway.signal("TERM");
    // Its last chunk, and the end of the stream.
    for client in [&mut over_h1, &mut from_h2] {
        assert_eq!(client.read().text(), "data: 1\n\n");
        assert!(client.is_closed());
    }
    while let Some(part) = over_h2.next(&mut body) {
        assert_eq!(part.unwrap(), "", "the last frame holds nothing");
    }
    assert!((900..4_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    assert!(over_h2.end().is_ok());
    assert_eq!(file.read().text(), "x".repeat(40));
    assert_eq!(completion.read().text(), "x".repeat(40));
    assert!(gateway.wait_exit().success());
    assert_eq!(line(&gateway, "/events"), (200, "draining".to_owned()));
}

#[test]
fn a_websocket_over_tls_ends_without_a_doubt() {
    let (authority, dir) = (Authority::new("servers"), TempDir::new().unwrap());
    let files = authority.issue(&["a.test"]).write(dir.path(), "server");
    let origin = Origin::start();
    origin.on("/ws", |_, stream| {
        stream.write_all(SWITCHING)?;
        stream.read(&mut [0]).map(|_| false)
    });
    let plain = config(&origin.url());
    let tls =
        plain.replace("http2: true", &format!("tls: {{ certificates: [ {} ] }}", files.yaml()));
    let mut gateway = Gateway::spawn(&tls);
    gateway.find_addresses();
    let socket = TcpStream::connect(gateway.address).unwrap();
    let mut client = authority.client().shake_hands(socket, "a.test").unwrap();
    client.send(request("GET", "/ws", &UPGRADE, b""));
    gateway.signal("TERM");
    // An end without the alert of TLS would be an error.
    let bytes = client.read_to_end().unwrap();
    assert!(bytes.ends_with(GOING_AWAY), "{:?}", String::from_utf8_lossy(&bytes));
    drop(client);
    assert!(gateway.wait_exit().success());
}

#[test]
fn clients_go_on_at_the_successor() {
    let origin = Origin::start();
    origin.on("/ws", |_, stream| {
        stream.write_all(SWITCHING)?;
        let mut bytes = [0; 1024];
        while let read @ 1.. = stream.read(&mut bytes)? {
            stream.write_all(&bytes[..read])?;
        }
        Ok(false)
    });
    let yaml = config(&origin.url())
        .replace("graceful_shutdown", "upgrade_sock: SOCKET, graceful_shutdown");
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("upgrade.sock");
    let mut old = Gateway::start(&yaml.replace("SOCKET", &socket.display().to_string()));
    let mut client = open(&old, "/ws");
    client.send(b"\x81\x02hi");
    let mut bytes = [0; 4];
    client.stream().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\x81\x02hi");
    let new = old.successor();
    old.signal("QUIT");
    assert_eq!(rest(&mut client), GOING_AWAY);
    let mut again = open(&new, "/ws");
    again.send(b"\x81\x02hi");
    again.stream().read_exact(&mut bytes).unwrap();
    assert!(old.wait_exit().success());
    assert_eq!(&bytes, b"\x81\x02hi");
    new.wait_ready();
}
