//! Listeners behind balancers: the PROXY protocol, from trusted proxies and from others, with TLS and without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use support::tls::{Authority, listeners};
use support::*;
use tempfile::TempDir;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A gateway whose second listener expects headers, with more `keys` of that listener and more `sections`.
fn start(origin: &Origin, keys: &str, sections: &str) -> (Gateway, SocketAddr) {
    let gateway = Gateway::start(&format!(
        "listeners:
  - {{ address: \"127.0.0.1:0\" }}
  - {{ address: \"127.0.0.1:0\", proxy_protocol: true{keys} }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]
{sections}",
        origin.url(),
    ));
    let address = listeners(&gateway)[1];
    (gateway, address)
}

fn version_2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [V2, &[0x20 | command, family], &length, payload].concat()
}

const TRUSTED: &str = "trusted_proxies: [ 127.0.0.1/32 ]";

#[test]
fn the_address_in_the_header_is_the_clients_everywhere() {
    let origin = Origin::start();
    let (gateway, address) = start(&origin, "", TRUSTED);
    let ipv4 = [192, 0, 2, 9, 10, 0, 0, 1, 1, 2, 0, 80];
    let with_values = [&ipv4[..], &[4, 0, 2, 7, 7], &[0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
    let ipv6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[5], &[0; 16], &[1, 2, 0, 80]].concat();
    for (case, header, expected) in [
        ("v1", b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n".to_vec(), "192.0.2.7"),
        ("v1-6", b"PROXY TCP6 2001:db8::4 ::1 5000 80\r\n".to_vec(), "2001:db8::4"),
        ("v1-unknown", b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ("v2", version_2(1, 0x11, &ipv4), "192.0.2.9"),
        ("v2-values", version_2(1, 0x11, &with_values), "192.0.2.9"),
        ("v2-6", version_2(1, 0x21, &ipv6), "2001:db8::5"),
        ("v2-local", version_2(0, 0, &[]), "127.0.0.1"),
    ] {
        for piece in [1, 1_000] {
            let mut client = Client::connect(address);
            for bytes in header.chunks(piece) {
                client.send(bytes);
                thread::sleep(Duration::from_millis(if piece == 1 { 1 } else { 0 }));
            }
            let id = format!("{case}-{piece}");
            // A client behind the proxy may not say where it came from.
            let fields = [("X-Forwarded-For", "6.6.6.6"), ("X-Request-ID", &*id), ("X-Case", &*id)];
            for _ in 0..2 {
                assert_eq!(client.call("GET", "/", &fields, b"").status(), 200, "{id}");
            }
            let line = gateway.wait_log(&id, |line| line["request_id"] == id.as_str());
            let seen = origin.case(&id).unwrap().header("x-forwarded-for").unwrap();
            match expected {
                // The proxy itself is believed.
                "127.0.0.1" => assert_eq!(seen, "6.6.6.6, 127.0.0.1", "{id}"),
                expected => {
                    assert_eq!(seen, expected, "{id}");
                    assert_eq!(line["client_ip"], expected, "{id}");
                }
            }
        }
    }
    // Another listener takes no header.
    let mut plain = gateway.connect();
    plain.send("PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n");
    plain.send(request("GET", "/", &[], b""));
    assert_eq!(plain.read().status(), 400);
    assert_eq!(gateway.metric("tollgate_proxy_headers_total{outcome=\"ok\"}"), Some(14.0));
}

#[test]
fn the_header_comes_before_tls() {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let files = authority.issue(&["a.test"]).write(dir.path(), "a");
    let keys = format!(", tls: {{ certificates: [ {} ] }}", files.yaml());
    let (_gateway, address) = start(&origin, &keys, TRUSTED);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 443\r\n").unwrap();
    let mut client = authority.client().shake_hands(stream, "a.test").unwrap();
    assert_eq!(client.get("/tls").status(), 200);
    let request = origin.one("/tls");
    assert_eq!(request.header("x-forwarded-for").unwrap(), "192.0.2.7");
    assert_eq!(request.header("x-forwarded-proto").unwrap(), "https");
    assert!(authority.client().try_connect(address, "a.test").is_err(), "without a header");
}

#[test]
fn a_header_is_believed_from_trusted_proxies_alone() {
    let origin = Origin::start();
    let (gateway, address) = start(&origin, "", "trusted_proxies: [ 10.0.0.0/8 ]");
    for sent in ["PROXY TCP4 10.0.0.7 10.0.0.1 5000 80\r\n", "PROXY UNKNOWN\r\n", ""] {
        let mut client = Client::connect(address);
        client.send([sent.as_bytes(), &request("GET", "/", &[], b"")].concat());
        assert!(client.is_closed(), "{sent:?}");
    }
    assert!(origin.requests_for("/").is_empty());
    assert_eq!(gateway.metric("tollgate_proxy_headers_total{outcome=\"untrusted\"}"), Some(3.0));
    gateway.wait_log("the refusals", |line| {
        line["message"].as_str().unwrap().contains("not in trusted_proxies")
    });
}

#[test]
fn a_hostile_header_closes_the_connection() {
    let origin = Origin::start();
    let (gateway, address) =
        start(&origin, "", &format!("{TRUSTED}\ntimeouts: {{ header: 300ms }}"));
    let ask = request("GET", "/hostile", &[], b"");
    for header in [
        b"".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5000\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\n".to_vec(),
        b"PROXY TCP4 192.0.2.777 10.0.0.1 5000 80\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7\r\n10.0.0.1 5000 80\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat(),
        version_2(1, 0x11, &[1, 2, 3]),
        version_2(1, 0x12, &[0; 12]),
        version_2(1, 0x31, &[0; 216]),
        version_2(7, 0x11, &[0; 12]),
        version_2(1, 0x11, &[0; 60_000]),
        [V2, &[0x31, 0x11, 0, 12], &[0; 12]].concat(),
    ] {
        let mut client = Client::connect(address);
        client.send([&header[..], &ask].concat());
        assert!(client.is_closed(), "{header:?}");
    }
    // Headers that end early, never begin, or come too slowly.
    for header in [
        b"PROXY TCP4 192.0".to_vec(),
        V2.to_vec(),
        version_2(1, 0x11, &[0; 5])[..15].to_vec(),
        vec![],
    ] {
        let started = Instant::now();
        let mut client = Client::connect(address);
        client.send(&header);
        assert!(client.is_closed(), "{header:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{header:?}");
    }
    let mut slow = TcpStream::connect(address).unwrap();
    let started = Instant::now();
    for byte in b"PROXY TCP4 192.0.2.7 10.0.0.1 5000 80\r\n".iter().cycle() {
        if slow.write_all(&[*byte]).is_err() || started.elapsed() > Duration::from_secs(5) {
            break;
        }
        thread::sleep(Duration::from_millis(40));
    }
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(origin.requests_for("/hostile").is_empty());
    assert!(gateway.metric("tollgate_proxy_headers_total{outcome=\"malformed\"}").unwrap() >= 12.0);
    assert!(gateway.metric("tollgate_proxy_headers_total{outcome=\"timeout\"}").unwrap() >= 4.0);
    let log = gateway.log();
    let loud = log.iter().filter(|line| line["level"] == "error" || line["level"] == "warn");
    let about = |line: &&serde_json::Value| line["message"].to_string().contains("refused");
    let loud: Vec<_> = loud.filter(about).collect();
    assert!(loud.is_empty(), "{loud:?}");
}

#[test]
fn the_bound_for_a_client_counts_the_client_and_not_the_proxy() {
    let origin = Origin::start();
    let sections = format!("{TRUSTED}\nmax_connections_per_client: 2");
    let (_gateway, address) = start(&origin, "", &sections);
    let open = |client: &str| {
        let mut connection = Client::connect(address);
        connection.send(format!("PROXY TCP4 {client} 10.0.0.1 5000 80\r\n"));
        connection.send(request("GET", "/", &[], b""));
        let answered = connection.try_read(false).is_ok();
        (connection, answered)
    };
    let first: Vec<_> = (0..2).map(|_| open("192.0.2.1")).collect();
    assert!(first.iter().all(|(_, answered)| *answered));
    assert!(!open("192.0.2.1").1, "a third connection");
    let others: Vec<_> = (2..12).map(|n| open(&format!("192.0.2.{n}"))).collect();
    assert!(others.iter().all(|(_, answered)| *answered));
    drop(first);
    wait_for("a place", || open("192.0.2.1").1.then_some(()));
}

#[test]
fn haproxy_can_send_both_versions() {
    let origin = Origin::start();
    let (_gateway, address) = start(&origin, "", TRUSTED);
    let dir = TempDir::new().unwrap();
    for version in ["send-proxy", "send-proxy-v2"] {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = dir.path().join(version);
        std::fs::write(
            &file,
            format!(
                "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
                 listen a\n  bind {port}\n  server s {address} {version}\n"
            ),
        )
        .unwrap();
        let haproxy = std::process::Command::new("haproxy").arg("-f").arg(&file).spawn();
        let mut haproxy = haproxy.unwrap();
        let answer = wait_for("an answer through HAProxy", || {
            let mut client = Client::try_connect(port).ok()?;
            client.send(request("GET", "/haproxy", &[("X-Case", version)], b""));
            client.try_read(false).ok()
        });
        haproxy.kill().unwrap();
        haproxy.wait().unwrap();
        assert_eq!(answer.status(), 200, "{version}");
        let seen = origin.case(version).unwrap();
        assert_eq!(seen.header("x-forwarded-for").unwrap(), "127.0.0.1", "{version}");
    }
}
