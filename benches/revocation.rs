//! How long a revoked token is still served: three gateways on one Redis, 100,000 tokens in use, load running.
//! `cargo bench --bench revocation`. Ends with an error where the 99th percentile is 100 ms or more, or where a token that was
//! refused everywhere is served again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Gateway, Origin, Redis, SECRET, bearer};

const TOKENS: usize = 100_000;
/// How many tokens are revoked, one after another, while the other tokens are in use.
const REVOKED: usize = 1_000;
/// How many tokens are revoked at the moment in which every connection to Redis is cut.
const CUT: usize = 100;
const ALLOWED: Duration = Duration::from_millis(100);

fn main() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let yaml = format!(
        "redis: {{ url: \"{}\", timeout: 1s }}
auth:
  jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ] }}
  cache: {{ ttl: 1h, entries: 200000, max_stale: 1h }}
  max_failures: none
log: {{ access: false }}
limits: {{ default: [ 1000000/day ] }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        redis.url(),
        origin.url(),
    );
    let gateways: Vec<Gateway> = (0..3).map(|_| Gateway::start(&yaml)).collect();
    store_records(&redis);
    let credentials: Arc<Vec<String>> =
        Arc::new((0..TOKENS).map(|nth| bearer(&format!("token-{nth}"))).collect());

    let started = Instant::now();
    thread::scope(|scope| {
        for gateway in &gateways {
            let credentials = &credentials;
            scope.spawn(move || {
                let mut client = gateway.connect();
                for credential in credentials.iter() {
                    assert_eq!(ask(&mut client, credential), 200);
                }
            });
        }
    });
    println!("{TOKENS} tokens known to 3 gateways after {:.0?}", started.elapsed());

    let (ends, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for gateway in &gateways {
            let (credentials, ends, served) = (&credentials, &ends, &served);
            scope.spawn(move || {
                let mut client = gateway.connect();
                while !ends.load(Ordering::Relaxed) {
                    let nth = fastrand::usize(REVOKED + CUT..TOKENS);
                    assert_eq!(ask(&mut client, &credentials[nth]), 200, "not revoked");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut resp = Resp::connect(redis.port());
        let mut clients: Vec<Client> = gateways.iter().map(Gateway::connect).collect();
        let (before, started) = (served.load(Ordering::Relaxed), Instant::now());
        let mut revoke = |nth: usize, cut: bool| {
            let from = Instant::now();
            if cut {
                resp.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            }
            resp.command(&["DEL", &format!("token:token-{nth}")]);
            for client in &mut clients {
                while ask(client, &credentials[nth]) != 401 {
                    assert!(from.elapsed() < Duration::from_secs(30), "never refused");
                }
            }
            from.elapsed()
        };
        let plain = (0..REVOKED).map(|nth| revoke(nth, false)).collect();
        let cut = (REVOKED..REVOKED + CUT).map(|nth| revoke(nth, true)).collect();
        let rate =
            (served.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
        println!("load meanwhile: {rate:.0} requests/s of {} other tokens", TOKENS - REVOKED - CUT);
        let worst = print("DEL to refused everywhere", plain);
        print("the same, with every connection cut at that moment", cut);
        for (nth, credential) in credentials[..REVOKED + CUT].iter().enumerate() {
            for client in &mut clients {
                assert_eq!(ask(client, credential), 401, "token-{nth} is served again");
            }
        }
        println!("none of {} revoked tokens is served again", REVOKED + CUT);
        ends.store(true, Ordering::Relaxed);
        assert!(worst < ALLOWED, "the 99th percentile is {worst:?}");
    });
}

fn ask(client: &mut Client, credential: &str) -> u16 {
    client.call("GET", "/", &[("Authorization", credential)], b"").status()
}

/// Prints the distribution; the 99th percentile.
fn print(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{what}, {} tokens: median {:.1?}, 99th percentile {:.1?}, most {:.1?}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    at(0.99)
}

fn store_records(redis: &Redis) {
    let script = "for nth = ARGV[1], ARGV[2] do redis.call('HSET', 'token:token-' .. nth, 'plan', 'pro') end";
    for start in (0..TOKENS).step_by(10_000) {
        let (from, to) = (start.to_string(), (start + 9_999).to_string());
        redis.command(&["EVAL", script, "0", &from, &to]);
    }
}

/// A connection to Redis of this bench's own: starting a program for each command would take longer than the command.
struct Resp(BufReader<TcpStream>);

impl Resp {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn command(&mut self, words: &[&str]) {
        let words: String =
            words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        let count = words.matches('$').count();
        self.0.get_mut().write_all(format!("*{count}\r\n{words}").as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        assert!(answer.starts_with(':'), "{answer}");
    }
}
