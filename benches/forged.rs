//! The harm of forged tokens to the holders of valid ones: 500 connections, each of its own address, send ES512 and RS256 tokens
//! with wrong signatures for 20 seconds. `cargo bench --bench forged`. Ends with an error where a valid token was refused, or
//! where the 99th percentile of known tokens is more than three times that of the idle gateway. Where the guard against
//! guesses is off, that ratio is only printed: the gateway then verifies as fast as it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use support::{Client, Gateway, Origin, Redis, SECRET, Signer, bearer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

const CONNECTIONS: usize = 500;
const KNOWN: usize = 100;
const LASTS: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(5);
/// How much slower known tokens may be in the flood.
const ALLOWED: f64 = 3.0;

fn main() {
    let mut missed = false;
    for threads in [1, 2] {
        for max_failures in ["100/minute", "none"] {
            missed |= run(threads, max_failures);
        }
    }
    assert!(!missed, "a bound was missed");
}

/// One gateway under one flood; whether a bound was missed.
fn run(threads: usize, max_failures: &str) -> bool {
    let (redis, origin) = (Redis::start(), Origin::start());
    let (curve, rsa) = (Signer::new("ES512"), Signer::new("RS256"));
    let pem = |signer: &Signer| signer.pem().replace('\n', "\\n");
    let yaml = format!(
        "redis: {{ url: \"{}\" }}
auth:
  jwt:
    keys:
      - {{ algorithm: HS256, secret: \"{SECRET}\" }}
      - {{ kid: es, algorithm: ES512, public_key: \"{}\" }}
      - {{ kid: rs, algorithm: RS256, public_key: \"{}\" }}
  max_failures: {max_failures}
log: {{ access: false }}
limits: {{ sync: exact, on_store_failure: deny, default: [ 1000000/minute ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        redis.url(),
        pem(&curve),
        pem(&rsa),
        origin.url(),
    );
    let gateway = match threads {
        1 => Gateway::start_with_one_thread(&yaml),
        _ => Gateway::start(&yaml),
    };
    let script = "for nth = 0, 19999 do redis.call('HSET', 'token:t-' .. nth, 'name', 'pro') end";
    redis.command(&["EVAL", script, "0"]);

    let unseen = AtomicU64::new(KNOWN as u64);
    let idle = users(&gateway, &unseen, IDLE);
    let (ends, forged) = (AtomicBool::new(false), AtomicU64::new(0));
    let flooded = thread::scope(|scope| {
        scope.spawn(|| flood(gateway.address, [&curve, &rsa], &ends, &forged));
        let flooded = users(&gateway, &unseen, LASTS);
        ends.store(true, Ordering::Relaxed);
        flooded
    });
    let ratio = flooded.p99.as_secs_f64() / idle.p99.as_secs_f64();
    println!(
        "{threads} threads, max_failures {max_failures}: {:.0} forged tokens/s; known tokens p99 {:.2?} (idle {:.2?}, {ratio:.1} x); unseen tokens {:?}, known {:?}",
        forged.load(Ordering::Relaxed) as f64 / LASTS.as_secs_f64(),
        flooded.p99,
        idle.p99,
        flooded.unseen,
        flooded.known,
    );
    let good = |statuses: &BTreeMap<u16, u64>| statuses.keys().all(|status| *status == 200);
    let is_slow = ratio > ALLOWED && max_failures != "none";
    is_slow || !good(&flooded.unseen) || !good(&flooded.known)
}

/// The answers that users with valid tokens got.
struct Seen {
    p99: Duration,
    /// Numbers of answers by status.
    known: BTreeMap<u16, u64>,
    unseen: BTreeMap<u16, u64>,
}

/// Asks for `lasts` with known tokens, and twenty times a second with a token that the gateway has not seen.
fn users(gateway: &Gateway, unseen: &AtomicU64, lasts: Duration) -> Seen {
    let until = Instant::now() + lasts;
    thread::scope(|scope| {
        let known = scope.spawn(|| {
            let credentials: Vec<String> =
                (0..KNOWN).map(|nth| bearer(&format!("t-{nth}"))).collect();
            let mut client = gateway.connect();
            for credential in &credentials {
                assert_eq!(ask(&mut client, credential), 200);
            }
            let (mut times, mut statuses) = (Vec::new(), BTreeMap::new());
            for credential in credentials.iter().cycle().take_while(|_| Instant::now() < until) {
                let started = Instant::now();
                *statuses.entry(ask(&mut client, credential)).or_insert(0) += 1;
                times.push(started.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            times.sort_unstable();
            (times[times.len() * 99 / 100], statuses)
        });
        let mut client = gateway.connect();
        let mut statuses = BTreeMap::new();
        while Instant::now() < until {
            let nth = unseen.fetch_add(1, Ordering::Relaxed);
            *statuses.entry(ask(&mut client, &bearer(&format!("t-{nth}")))).or_insert(0) += 1;
            thread::sleep(Duration::from_millis(50));
        }
        let (p99, known) = known.join().unwrap();
        Seen { p99, known, unseen: statuses }
    })
}

fn ask(client: &mut Client, credential: &str) -> u16 {
    client.call("GET", "/", &[("Authorization", credential)], b"").status()
}

/// Sends forged tokens until `ends`, and counts the answers in `forged`.
fn flood(gateway: SocketAddr, signers: [&Signer; 2], ends: &AtomicBool, forged: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let claims = json!({ "api_key": "t-1", "exp": support::token::now() + 3_600 });
    let samples = signers.map(|signer| {
        let token = signer.token(None, &claims);
        let (message, signature) = token.rsplit_once('.').unwrap();
        (message.to_owned(), signature.len() * 3 / 4)
    });
    let connection = async |nth: usize| {
        let (message, length) = &samples[nth % 2];
        let source =
            SocketAddr::from((Ipv4Addr::new(127, 1, (nth / 250) as u8, (nth % 250) as u8 + 1), 0));
        while !ends.load(Ordering::Relaxed) {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(source).unwrap();
            let Ok(mut stream) = socket.connect(gateway).await else { continue };
            let mut answer = [0; 2048];
            while !ends.load(Ordering::Relaxed) {
                let signature: Vec<u8> = (0..*length).map(|_| fastrand::u8(..)).collect();
                let signature = URL_SAFE_NO_PAD.encode(signature);
                let request = format!(
                    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {message}.{signature}\r\n\r\n"
                );
                if stream.write_all(request.as_bytes()).await.is_err() {
                    break;
                }
                match stream.read(&mut answer).await {
                    Ok(read) if read > 0 => {
                        assert!(!answer.starts_with(b"HTTP/1.1 2"), "a forged token passed");
                    }
                    _ => break,
                }
                forged.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    runtime.block_on(futures_util::future::join_all((0..CONNECTIONS).map(connection)));
}
