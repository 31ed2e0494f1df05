//! Certificates that are replaced again and again under load: no connection notices, and new ones get the new certificate.
//! It must not know how the gateway learns of new files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use support::http2::H2Client;
use support::tls::{Authority, listeners};
use support::*;
use tempfile::TempDir;

const ROTATIONS: usize = 200;

/// How soon a new handshake must see a new certificate.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn two_hundred_certificates_harm_no_connection() {
    let (origin, authority, dir) =
        (Origin::start(), Authority::new("tests"), TempDir::new().unwrap());
    let files = authority.issue(&["a.test"]).write(dir.path(), "a");
    let yaml = format!(
        "listeners: [ {{ address: \"127.0.0.1:0\" }}, {{ address: \"127.0.0.1:0\", tls: {{ certificates: [ {} ] }} }} ]
log: {{ level: info, access: false }}\n{}",
        files.yaml(),
        upstream_config(&[&origin.url()], "")
    );
    let gateway = Gateway::start(&yaml);
    let address = listeners(&gateway)[1];
    // A client keeps the certificate of a session, so these begin none.
    let anew = authority.client().with(|config| config.resumption = Resumption::disabled());
    let (ends, slowest) = (AtomicBool::new(false), parking_lot::Mutex::new(Duration::ZERO));
    let [kept, streams, handshakes] = [(); 3].map(|()| AtomicUsize::new(0));
    let going = || !ends.load(Ordering::Relaxed);
    thread::scope(|scope| {
        // Each asserts on its own connection, which must last to the end.
        scope.spawn(|| {
            let mut connection = anew.connect(address, "a.test");
            while going() {
                assert_eq!(connection.get("/kept").text(), "GET /kept HTTP/1.1");
                kept.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut connection = H2Client::connect_tls(&anew, address, "a.test");
            while going() {
                let answer = connection.call("POST", "/stream", &[], b"body").unwrap();
                assert_eq!(answer.text(), "body");
                streams.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while going() {
                let mut connection = anew.connect(address, "a.test");
                assert_eq!(connection.get("/new").status(), 200);
                handshakes.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The load ends when a rotation fails.
        let end = Ended(&ends);
        for nth in 0..ROTATIONS {
            let next = authority.issue(&["a.test"]);
            next.replace(&files);
            // The gateway is told of most, and finds some.
            if nth % 50 != 49 {
                gateway.signal("HUP");
            }
            let since = Instant::now();
            while anew.connect(address, "a.test").certificate() != next.der() {
                assert!(since.elapsed() < SOON + Duration::from_secs(5), "rotation {nth}");
                thread::sleep(Duration::from_millis(2));
            }
            let mut slowest = slowest.lock();
            *slowest = slowest.max(since.elapsed());
        }
        drop(end);
    });
    let slowest = slowest.into_inner();
    println!("{ROTATIONS} rotations, each in effect after {slowest:.0?} or less");
    assert!(slowest < SOON, "a certificate came after {slowest:?}");
    for (what, number) in [("kept", kept), ("streams", streams), ("handshakes", handshakes)] {
        let number = number.into_inner();
        assert!(number > ROTATIONS, "{what}: only {number}");
    }
    for outcome in ["failed", "closed", "timeout"] {
        let series = format!("tollgate_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(gateway.metric(&series).unwrap_or(0.0), 0.0, "{outcome}");
    }
}

/// Ends the load when dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
