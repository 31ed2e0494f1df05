//! Clients of HTTP/2 that are slow: they do not take their answers, or do not finish what they begin to send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use support::http2::*;
use support::*;

/// Error codes (RFC 9113 section 7).
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Bytes of a large answer: more than the gateway reads of it while nobody takes any.
const LARGE: usize = 1_000_000;

fn config(origin: &str, more: &str) -> String {
    format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
upstreams: {{ up: {{ endpoints: [ \"{origin}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]
{more}"
    )
}

fn start(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.on("/large", |_, stream| {
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes())?;
        stream.write_all(&vec![b'x'; LARGE]).map(|()| true)
    });
    let gateway = Gateway::start(&config(&origin.url(), more));
    (origin, gateway)
}

fn request_frame(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &get(path, &[]))
}

/// Settings that let the gateway send so many bytes of each answer.
fn stream_window(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat())
}

fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// The streams of the first `number` requests of a connection.
fn streams(number: u32) -> impl Iterator<Item = u32> {
    (0..number).map(|nth| 2 * nth + 1)
}

fn protected(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("tollgate_http2_protection_total{{kind=\"{kind}\"}}")).unwrap_or(0.0)
}

/// Memory of the gateway, in KiB.
fn resident(gateway: &Gateway) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", gateway.pid())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

/// Its memory once it grows no more.
fn resident_at_rest(gateway: &Gateway) -> usize {
    let mut last = 0;
    wait_for("memory to be at rest", || {
        let now = resident(gateway);
        let is_at_rest = now.abs_diff(std::mem::replace(&mut last, now)) < 256;
        thread::sleep(Duration::from_millis(500));
        is_at_rest.then_some(now)
    })
}

#[test]
fn a_client_with_many_connections_has_few_requests_on_each() {
    let (_origin, gateway) = start("");
    let most = |raw: &mut RawH2| {
        let settings = raw.find(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).unwrap();
        let most = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
        u32::from_be_bytes(most[2..].try_into().unwrap())
    };
    let connect = || {
        let mut raw = RawH2::connect(gateway.address);
        let most = most(&mut raw);
        (raw, most)
    };
    // Each connection waits for the settings of the one before, whichever thread serves it.
    let mut open: Vec<_> = (0..40).map(|_| connect()).collect();
    let granted: Vec<_> = open.iter().map(|(_, most)| *most).collect();
    assert!(granted[..10].iter().all(|most| *most == 100), "{granted:?}");
    assert!(granted.is_sorted_by(|one, next| one >= next), "{granted:?}");
    assert_eq!(granted[39], 25, "{granted:?}");
    // A request over the number may be sent again.
    let last = &mut open[39].0;
    for stream in streams(60) {
        last.send(&request_frame(stream, "/large"));
    }
    assert_eq!(last.find(|frame| frame.kind == RST_STREAM).unwrap().code(), 7);
    drop(open);
    wait_for("the connections to end", || {
        (gateway.metric("tollgate_client_connections")? == 0.0).then_some(())
    });
    assert_eq!(most(&mut RawH2::connect(gateway.address)), 100);
}
