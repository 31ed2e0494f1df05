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
fn answers_that_nobody_takes_hold_little_memory_and_arrive_whole() {
    const ANSWERS: u32 = 100;
    let (_origin, gateway) = start("timeouts: { write: 60s }");
    let mut first = RawH2::connect(gateway.address);
    first.send(&request_frame(1, "/small"));
    assert_eq!(first.outcome(1), Some(Ok(200)));
    let before = resident(&gateway);
    let mut raw = RawH2::connect(gateway.address);
    for stream in streams(ANSWERS) {
        raw.send(&request_frame(stream, "/large"));
    }
    let each = (resident_at_rest(&gateway) - before) as f64 / f64::from(ANSWERS);
    // 600 KiB, if all of them were read on.
    assert!(each < 450.0, "{each:.0} KiB for each answer");

    let windows = [stream_window(2 * LARGE as u32), window_update(0, 1 << 30)].concat();
    raw.send(&windows);
    let (mut bytes, mut ends) = (0, 0);
    while ends < ANSWERS {
        let frame = raw.next().unwrap();
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
        if frame.kind == DATA {
            bytes += frame.payload.len();
            ends += u32::from(frame.flags & END_STREAM);
        }
    }
    assert_eq!(bytes, ANSWERS as usize * LARGE);
}

#[test]
fn answers_that_nobody_takes_end_in_time_and_spare_the_others() {
    const ANSWERS: u32 = 30;
    let (_origin, gateway) = start("timeouts: { write: 900ms }");
    let mut raw = RawH2::connect(gateway.address);
    raw.send(&stream_window(1_000));
    for stream in streams(ANSWERS) {
        raw.send(&request_frame(stream, "/large"));
    }
    let mut begun = 0;
    while begun < ANSWERS {
        let frame = raw.next().unwrap();
        begun += u32::from(frame.kind == DATA);
    }
    let since = Instant::now();
    let another = 2 * ANSWERS + 1;
    raw.send(&request_frame(another, "/small"));
    let (mut resets, mut is_answered) = (0, false);
    while resets < ANSWERS || !is_answered {
        let frame = raw.next().unwrap();
        if frame.kind == RST_STREAM {
            assert!(frame.stream != another && frame.code() == CANCEL, "{frame:?}");
            resets += 1;
        }
        is_answered |= frame.kind == DATA && frame.stream == another;
    }
    let lasted = since.elapsed().as_millis();
    assert!((700..4_000).contains(&lasted), "{lasted} ms");
    wait_for("each to be counted", || {
        (protected(&gateway, "window_stall") == f64::from(ANSWERS)).then_some(())
    });
    raw.send(&request_frame(2 * ANSWERS + 3, "/small"));
    assert_eq!(raw.outcome(2 * ANSWERS + 3), Some(Ok(200)), "the connection goes on");
}

#[test]
fn a_frame_must_be_whole_in_time() {
    let (_origin, gateway) = start("timeouts: { header: 400ms, idle: 30s }");
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]);
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    let head = frame(HEADERS, END_STREAM, 1, &get("/ok", &[]));
    let after = |bytes: &[u8]| [&begun[..], bytes].concat();
    let cases = [
        ("no settings", PREFACE.to_vec()),
        ("part of the settings", [PREFACE, &settings[..12]].concat()),
        ("part of a frame's header", after(&head[..5])),
        ("part of a head", after(&head[..20])),
        ("a head that goes on", after(&head)),
        ("part of a CONTINUATION", after(&[&head[..], &frame(9, 4, 1, b"xyz")[..11]].concat())),
        ("part of a frame of an unknown type", after(&frame(0xfe, 0, 0, &[0; 100])[..50])),
    ];
    let number = cases.len();
    for (what, bytes) in cases {
        let since = Instant::now();
        let mut raw = RawH2::silent(gateway.address);
        raw.send(&bytes);
        assert_eq!(raw.goaway(), Some(ENHANCE_YOUR_CALM), "{what}");
        let lasted = since.elapsed().as_millis();
        assert!((350..2_500).contains(&lasted), "{what}: {lasted} ms");
    }
    // Single bytes do not make the time longer.
    let since = Instant::now();
    let mut raw = RawH2::connect(gateway.address);
    let mut reader = RawH2 { stream: raw.stream.try_clone().unwrap() };
    let end = thread::spawn(move || reader.goaway());
    for byte in frame(HEADERS, 5, 1, &get(&"/long".repeat(100), &[])) {
        if end.is_finished() {
            break;
        }
        raw.send(&[byte]);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(end.join().unwrap(), Some(ENHANCE_YOUR_CALM));
    assert!(since.elapsed() < Duration::from_millis(2_500), "{:?}", since.elapsed());
    wait_for("each to be counted", || {
        (protected(&gateway, "slow_frame") == (number + 1) as f64).then_some(())
    });
}

#[test]
fn a_slow_frame_spares_requests_that_have_begun() {
    let (origin, gateway) = start("timeouts: { header: 300ms, idle: 30s }");
    let held = origin.hold("/held");
    let mut raw = RawH2::connect(gateway.address);
    raw.send(&request_frame(1, "/held"));
    origin.one("/held");
    let another = request_frame(3, "/another");
    raw.send(&another[..20]);
    thread::sleep(Duration::from_millis(900));
    raw.send(&another[20..]);
    assert_eq!(raw.outcome(3), Some(Ok(200)));
    held.open();
    assert_eq!(raw.outcome(1), Some(Ok(200)));

    // A part of a body has the deadline of the body.
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/post"),
        (":authority", "gateway.test"),
    ]);
    let body = frame(DATA, END_STREAM, 5, b"0123456789");
    raw.send(&[&frame(HEADERS, END_HEADERS, 5, &post)[..], &body[..12]].concat());
    thread::sleep(Duration::from_millis(900));
    raw.send(&body[12..]);
    assert_eq!(raw.outcome(5), Some(Ok(200)));
    assert_eq!(origin.one("/post").body, b"0123456789");
    assert_eq!(protected(&gateway, "slow_frame"), 0.0);
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
