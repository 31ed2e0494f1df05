//! How long a reload takes to be in effect: `cargo bench --bench reload`. A thousand reloads of a configuration with 10,000
//! routes, while clients ask some hundred times a second over HTTP/1.1 and HTTP/2, and tunnels echo. Ends with an error where a request fails, a
//! tunnel ends, or the slowest reload takes 100 ms or more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Gateway, Message, Origin, auth, bearer, request};

const ROUTES: usize = 10_000;
const RELOADS: usize = 1_000;
/// Tunnels that stay open from the first reload to the last.
const TUNNELS: usize = 8;
const ALLOWED: Duration = Duration::from_millis(100);

fn main() {
    let reloads = std::env::var("RELOADS").map_or(RELOADS, |text| text.parse().unwrap());
    let origin = Origin::start();
    origin.on("/tunnel", echo);
    let gateway = Gateway::start(&configuration(&origin, 0));
    let (ends, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let echoed = AtomicU64::new(0);
    let url = format!("http://{}/api/service7/x", gateway.address);
    let authorization = format!("authorization: {}", bearer("alice"));
    let mut http2 = Command::new("h2load");
    http2.args(["-c2", "-m4", "-n100000000", "--rps=100", "-H", &authorization, &url]);
    let mut http2 = http2.stdout(Stdio::piped()).spawn().unwrap();

    let mut took: Vec<Duration> = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut client, alice) = (gateway.connect(), bearer("alice"));
                while !ends.load(Ordering::Relaxed) {
                    let path = format!("/api/service{}/x", fastrand::usize(..ROUTES));
                    assert_eq!(ask(&mut client, &path, &alice).0, 200, "{path}");
                    served.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        for _ in 0..TUNNELS {
            scope.spawn(|| {
                let mut tunnel = open(&gateway);
                while !ends.load(Ordering::Relaxed) {
                    let (sent, mut back) = (fastrand::u64(..).to_be_bytes(), [0; 8]);
                    tunnel.send(sent).stream().read_exact(&mut back).expect("a tunnel has ended");
                    assert_eq!(back, sent);
                    echoed.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let (mut client, alice) = (gateway.connect(), bearer("alice"));
        let took = (1..=reloads).map(|generation| {
            let yaml = configuration(&origin, generation);
            gateway.reload(&yaml);
            let started = Instant::now();
            let expected = Some(generation.to_string());
            while ask(&mut client, "/generation", &alice) != (200, expected.clone()) {
                assert!(started.elapsed() < Duration::from_secs(20), "reload {generation}");
                thread::sleep(Duration::from_millis(1));
            }
            started.elapsed()
        });
        let took = took.collect();
        ends.store(true, Ordering::Relaxed);
        took
    });
    assert!(http2.try_wait().unwrap().is_none(), "a request over HTTP/2 failed");
    http2.kill().unwrap();
    http2.wait().unwrap();

    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
    println!(
        "{reloads} reloads of {ROUTES} routes: median {:.1?}, p99 {:.1?}, most {:.1?}; {} requests over HTTP/1.1, none failed; {} echoes through {TUNNELS} tunnels, none ended",
        at(50),
        at(99),
        at(100),
        served.load(Ordering::Relaxed),
        echoed.load(Ordering::Relaxed)
    );
    assert!(at(100) < ALLOWED, "a reload took {:?}", at(100));
}

/// `/generation` tells the number of the reload.
fn configuration(origin: &Origin, generation: usize) -> String {
    let mut yaml = format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
log: {{ level: info, access: false }}
auth: {}
limits: {{ default: [] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes:
  - {{ prefix: /tunnel, upstream: up }}
  - {{ prefix: /generation, upstream: up, headers: {{ response: {{ set: {{ X-Generation: \"{generation}\" }} }} }} }}\n",
        auth("[ { api_key: alice } ]"),
        origin.url()
    );
    for route in 0..ROUTES {
        writeln!(yaml, "  - {{ prefix: /api/service{route}, upstream: up, methods: [ GET ] }}")
            .unwrap();
    }
    yaml
}

/// The status of an answer, and the generation that it tells.
fn ask(client: &mut Client, path: &str, credential: &str) -> (u16, Option<String>) {
    let answer = client.call("GET", path, &[("Authorization", credential)], b"");
    (answer.status(), answer.header("x-generation"))
}

/// The origin's end of a tunnel.
fn echo(_: &Message, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )?;
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(false),
            read => stream.write_all(&bytes[..read])?,
        }
    }
}

/// The client's end of a tunnel.
fn open(gateway: &Gateway) -> Client {
    let mut client = gateway.connect();
    let alice = bearer("alice");
    let fields =
        [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Authorization", alice.as_str())];
    client.send(request("GET", "/tunnel", &fields, b""));
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    client
}
