//! HTTP/2 frame by frame: malformed frames and heads, tricks with pseudo-fields, and floods (RFC 9113). Whatever a client
//! sends, the origin sees nothing of it, and the gateway serves the others.
//!
//! | RFC 9113 | tests |
//! | --- | --- |
//! | 3.4, 5.2, 6.9 preface, windows | `tests/http2_slow.rs`, `tests/http2.rs`, `windows_shrink_and_grow` |
//! | 4.1, 4.2, 6 frames | `malformed_frames_end_the_connection`, `harmless_oddities_are_served` |
//! | 4.3, RFC 7541 header compression | `broken_compression_ends_the_connection` |
//! | 5.1, 5.3 states of streams | `frames_that_do_not_fit_the_state_of_their_stream_are_errors`, `requests_beyond_the_bound_…` |
//! | 8.1 bodies, trailers | `bodies_that_contradict_…`, `nothing_of_the_trailers_of_a_request_passes` |
//! | 8.2, 8.3 fields | `malformed_heads_reach_no_origin`, `a_fragment_of_the_path_…` |
//! | 10.5 denial of service | `floods_end_the_connection_and_count`, `requests_that_outlive_their_streams_…` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write;

use support::http2::*;
use support::token::bearer;
use support::*;

/// Error codes (RFC 9113 section 7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Fields of a head, in their order.
type Fields<'a> = Vec<(&'a str, &'a str)>;

/// How the gateway ends a stream.
type Outcome = Option<Result<u16, u32>>;

struct Setting {
    origin: Origin,
    gateway: Gateway,
}

impl Setting {
    fn new() -> Self {
        let origin = Origin::start();
        let gateway = Gateway::start(&format!(
            "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
            origin.url()
        ));
        Self { origin, gateway }
    }

    fn connect(&self) -> RawH2 {
        RawH2::connect(self.gateway.address)
    }

    fn protected(&self, kind: &str) -> f64 {
        let series = format!("tollgate_http2_protection_total{{kind=\"{kind}\"}}");
        self.gateway.metric(&series).unwrap_or(0.0)
    }

    /// The connection ended in this way, and one protection of this kind was counted.
    fn counts(&self, kind: &str, end: Option<u32>) {
        assert_eq!(end, Some(ENHANCE_YOUR_CALM), "{kind}");
        wait_for(kind, || (self.protected(kind) == 1.0).then_some(()));
    }

    /// The origin has seen nothing of an attack, and others are served.
    fn is_well(&self, what: &str) {
        self.is_well_but_for(&[], what);
    }

    /// The same, where the origin may have seen requests for these `targets`, too.
    fn is_well_but_for(&self, targets: &[&str], what: &str) {
        let mut other = self.connect();
        other.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/ok", &[])));
        assert_eq!(other.outcome(1), Some(Ok(200)), "after {what}");
        let seen = self.origin.requests();
        let strange: Vec<_> =
            seen.iter().filter(|r| r.target() != "/ok" && !targets.contains(&r.target())).collect();
        assert!(strange.is_empty(), "{what}: the origin saw {strange:?}");
    }
}

/// A whole request, in several frames where it is large.
fn request_frame(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16_000).peekable();
    let mut bytes = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { END_STREAM | end } else { end };
        bytes.extend(frame(kind, flags, stream, piece));
        kind = CONTINUATION;
    }
    bytes
}

#[test]
fn malformed_heads_reach_no_origin() {
    let setting = Setting::new();
    let (method, scheme) = ((":method", "GET"), (":scheme", "http"));
    let (path, authority) = ((":path", "/bad"), (":authority", "gateway.test"));
    let long = format!("/{}", "x".repeat(17_000));
    let many = vec![("x", "y"); 200];
    let reset = Some(Err(PROTOCOL_ERROR));
    let refused = Some(Ok(400));
    let cases: Vec<(&str, Fields, Outcome)> = vec![
        ("no method", vec![scheme, path, authority], reset),
        ("no scheme", vec![method, path, authority], reset),
        ("no path", vec![method, scheme, authority], reset),
        ("no authority", vec![method, scheme, path], refused),
        ("empty path", vec![method, scheme, (":path", ""), authority], reset),
        ("empty authority", vec![method, scheme, path, (":authority", "")], reset),
        ("two methods", vec![method, method, scheme, path, authority], reset),
        ("two paths", vec![method, scheme, path, path, authority], reset),
        ("two schemes", vec![method, scheme, scheme, path, authority], reset),
        ("two authorities", vec![method, scheme, path, authority, authority], reset),
        ("a status", vec![method, scheme, path, authority, (":status", "200")], reset),
        ("an unknown pseudo-field", vec![method, scheme, path, authority, (":x", "y")], reset),
        ("a late pseudo-field", vec![method, scheme, authority, ("x", "y"), path], reset),
        ("a protocol", vec![method, scheme, path, authority, (":protocol", "websocket")], reset),
        (
            "extended CONNECT",
            vec![(":method", "CONNECT"), scheme, path, authority, (":protocol", "websocket")],
            reset,
        ),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "gateway.test:80")], refused),
        ("a method that is no token", vec![(":method", "G T"), scheme, path, authority], reset),
        ("a long method", vec![(":method", &long[1..40]), scheme, path, authority], refused),
        ("another scheme", vec![method, (":scheme", "ftp"), path, authority], refused),
        ("a scheme that is none", vec![method, (":scheme", "h p"), path, authority], reset),
        ("the path *", vec![method, scheme, (":path", "*"), authority], refused),
        ("OPTIONS *", vec![(":method", "OPTIONS"), scheme, (":path", "*"), authority], refused),
        ("a query alone", vec![method, scheme, (":path", "?x"), authority], refused),
        ("two paths, one late", vec![method, scheme, path, authority, ("x", "y"), path], reset),
        ("a late authority", vec![method, scheme, path, ("x", "y"), authority], reset),
        ("a late method", vec![scheme, path, authority, ("x", "y"), method], reset),
        ("an empty scheme", vec![method, (":scheme", ""), path, authority], refused),
        ("an empty method", vec![(":method", ""), scheme, path, authority], reset),
        (
            "capital letters of a pseudo-field",
            vec![method, scheme, (":Path", "/bad"), authority],
            reset,
        ),
        (
            "a user and a password",
            vec![method, scheme, path, (":authority", "u:p@gateway.test")],
            refused,
        ),
        (
            "an authority with a path",
            vec![method, scheme, path, (":authority", "gateway.test/x")],
            reset,
        ),
        (
            "an authority with a query",
            vec![method, scheme, path, (":authority", "gateway.test?x")],
            reset,
        ),
        (
            "an authority with a space",
            vec![method, scheme, path, (":authority", "gateway test")],
            reset,
        ),
        ("two authorities in one", vec![method, scheme, path, (":authority", "a,b")], refused),
        ("Host with a user", vec![method, scheme, path, ("host", "u@gateway.test")], refused),
        (
            "Host of another port",
            vec![method, scheme, path, authority, ("host", "gateway.test:81")],
            refused,
        ),
        ("CONNECT with a path", vec![(":method", "CONNECT"), scheme, path, authority], reset),
        ("CONNECT without an authority", vec![(":method", "CONNECT")], refused),
        ("a protocol alone", vec![method, scheme, path, authority, (":protocol", "")], reset),
        ("TE with more", vec![method, scheme, path, authority, ("te", "trailers, gzip")], reset),
        (
            "HTTP2-Settings with Upgrade",
            vec![
                method,
                scheme,
                path,
                authority,
                ("http2-settings", "AAMAAABk"),
                ("upgrade", "h2c"),
            ],
            reset,
        ),
        (
            "a length in two values",
            vec![method, scheme, path, authority, ("content-length", "0, 0")],
            reset,
        ),
        ("an empty length", vec![method, scheme, path, authority, ("content-length", "")], refused),
        (
            "a length in hexadecimal digits",
            vec![method, scheme, path, authority, ("content-length", "0x0")],
            reset,
        ),
        ("no slash", vec![method, scheme, (":path", "bad"), authority], reset),
        (
            "a URL as path",
            vec![method, scheme, (":path", "http://gateway.test/bad"), authority],
            reset,
        ),
        (
            "another URL as path",
            vec![method, scheme, (":path", "http://other/bad"), authority],
            reset,
        ),
        ("a backslash", vec![method, scheme, (":path", "/a\\b"), authority], refused),
        ("a raw letter", vec![method, scheme, (":path", "/\u{e9}"), authority], refused),
        ("a quote", vec![method, scheme, (":path", "/a\"b"), authority], refused),
        ("a space in the path", vec![method, scheme, (":path", "/a b"), authority], reset),
        ("a line in the path", vec![method, scheme, (":path", "/a\r\nX: y"), authority], reset),
        ("a NUL in the path", vec![method, scheme, (":path", "/a\0"), authority], reset),
        ("a line in the query", vec![method, scheme, (":path", "/?a\nb"), authority], reset),
        ("dots", vec![method, scheme, (":path", "/a/../b"), authority], refused),
        ("encoded dots", vec![method, scheme, (":path", "/a/%2e%2e/b"), authority], refused),
        ("an encoded slash", vec![method, scheme, (":path", "/a%2fb"), authority], refused),
        ("a long path", vec![method, scheme, (":path", &long), authority], Some(Ok(431))),
        ("a user", vec![method, scheme, path, (":authority", "u@gateway.test")], refused),
        (
            "a host of labels that are empty",
            vec![method, scheme, path, (":authority", "a..b")],
            refused,
        ),
        ("a bad port", vec![method, scheme, path, (":authority", "a:99999")], refused),
        ("an escaped host", vec![method, scheme, path, (":authority", "a%2eb")], reset),
        ("another Host", vec![method, scheme, path, authority, ("host", "other")], refused),
        ("two Hosts", vec![method, scheme, path, ("host", "a"), ("host", "a")], refused),
        ("a bad Host", vec![method, scheme, path, ("host", "a/b")], refused),
        ("capital letters", vec![method, scheme, path, authority, ("X-A", "y")], reset),
        ("an empty name", vec![method, scheme, path, authority, ("", "y")], reset),
        ("a colon in a name", vec![method, scheme, path, authority, ("x:a", "y")], reset),
        ("a space in a name", vec![method, scheme, path, authority, ("x a", "y")], reset),
        ("a quote in a name", vec![method, scheme, path, authority, ("x\"a", "y")], refused),
        ("a line in a name", vec![method, scheme, path, authority, ("x\r\na", "y")], reset),
        ("a line in a value", vec![method, scheme, path, authority, ("x", "a\r\nb: c")], reset),
        ("a NUL in a value", vec![method, scheme, path, authority, ("x", "a\0b")], reset),
        ("a value after a space", vec![method, scheme, path, authority, ("x", " y")], reset),
        ("a value before a space", vec![method, scheme, path, authority, ("x", "y ")], reset),
        ("a value after a tab", vec![method, scheme, path, authority, ("x", "\ty")], reset),
        ("Connection", vec![method, scheme, path, authority, ("connection", "close")], reset),
        ("Keep-Alive", vec![method, scheme, path, authority, ("keep-alive", "1")], reset),
        (
            "Proxy-Connection",
            vec![method, scheme, path, authority, ("proxy-connection", "x")],
            reset,
        ),
        ("Upgrade", vec![method, scheme, path, authority, ("upgrade", "websocket")], reset),
        (
            "Transfer-Encoding",
            vec![method, scheme, path, authority, ("transfer-encoding", "chunked")],
            reset,
        ),
        ("TE", vec![method, scheme, path, authority, ("te", "gzip")], reset),
        (
            "two lengths",
            vec![method, scheme, path, authority, ("content-length", "1"), ("content-length", "2")],
            reset,
        ),
        (
            "a length of an absent body",
            vec![method, scheme, path, authority, ("content-length", "1")],
            reset,
        ),
        ("a signed length", vec![method, scheme, path, authority, ("content-length", "+0")], reset),
        (
            "the same length twice",
            vec![method, scheme, path, authority, ("content-length", "0"), ("content-length", "0")],
            refused,
        ),
        ("many fields", [&[method, scheme, path, authority][..], &many].concat(), Some(Ok(431))),
    ];
    let mut wrong = Vec::new();
    for (what, fields, expected) in cases {
        let mut raw = setting.connect();
        raw.send(&request_frame(1, &block(&fields)));
        let outcome = raw.outcome(1);
        if expected == reset && outcome.is_none() {
            // h2 takes names and values that are none for a broken block, which ends the connection.
            continue;
        }
        if outcome != expected {
            wrong.push(format!("{what}: {outcome:?} instead of {expected:?}"));
        }
        // The connection goes on.
        raw.send(&frame(PING, 0, 0, b"12345678"));
        assert!(raw.find(|f| f.kind == PING && f.flags == ACK).is_some(), "{what}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    setting.is_well("malformed heads");
}

#[test]
fn bodies_that_contradict_their_length_reach_no_origin_whole() {
    let setting = Setting::new();
    let post = |length: &str| {
        block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/ok"),
            (":authority", "gateway.test"),
            ("content-length", length),
        ])
    };
    for (length, body) in [("3", &b"four"[..]), ("5", b"four"), ("0", b"x"), ("4000", b"four")] {
        let mut raw = setting.connect();
        raw.send(&frame(HEADERS, END_HEADERS, 1, &post(length)));
        raw.send(&frame(DATA, END_STREAM, 1, body));
        assert_eq!(raw.outcome(1), Some(Err(PROTOCOL_ERROR)), "{length} for {body:?}");
    }
    setting.is_well("bodies of another length");
    let whole = |request: &Message| {
        request.complete
            && request.method() == "POST"
            && request.header("content-length").as_deref() != Some("0")
    };
    assert!(!setting.origin.requests().iter().any(whole));
}

/// Trailers of a request are dropped (RFC 9110 section 6.5), whatever they hold.
#[test]
fn nothing_of_the_trailers_of_a_request_passes() {
    let setting = Setting::new();
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/ok"),
        (":authority", "gateway.test"),
    ]);
    let begun = |raw: &mut RawH2| {
        raw.send(&frame(HEADERS, END_HEADERS, 1, &post));
        raw.send(&frame(DATA, 0, 1, b"body"));
    };
    let reset = Some(Err(PROTOCOL_ERROR));
    let cases: Vec<(&str, Fields, u8, Outcome)> = vec![
        ("a field", vec![("x-evil", "y")], END_STREAM, Some(Ok(200))),
        ("a path", vec![(":path", "/evil")], END_STREAM, Some(Ok(200))),
        ("a status", vec![(":status", "200"), ("x-evil", "y")], END_STREAM, Some(Ok(200))),
        ("framing", vec![("content-length", "9"), ("x-evil", "y")], END_STREAM, Some(Ok(200))),
        ("an identity", vec![("x-token-id", "evil"), ("host", "evil")], END_STREAM, Some(Ok(200))),
        ("an unknown pseudo-field", vec![(":evil", "y")], END_STREAM, reset),
        ("a late pseudo-field", vec![("x-evil", "y"), (":path", "/evil")], END_STREAM, reset),
        ("capital letters", vec![("X-Evil", "y")], END_STREAM, reset),
        ("Connection", vec![("connection", "x-evil")], END_STREAM, reset),
        ("Transfer-Encoding", vec![("transfer-encoding", "chunked")], END_STREAM, reset),
        ("no end of the stream", vec![("x-evil", "y")], 0, reset),
    ];
    for (what, fields, flags, expected) in cases {
        let mut raw = setting.connect();
        begun(&mut raw);
        raw.send(&frame(HEADERS, END_HEADERS | flags, 1, &block(&fields)));
        let outcome = raw.outcome(1);
        // h2 takes names that are none for a broken block, which ends the connection.
        assert!(
            outcome == expected || (expected == reset && outcome.is_none()),
            "{what}: {outcome:?}"
        );
    }
    setting.is_well("trailers");
    for request in setting.origin.requests() {
        let seen = format!("{request:?}");
        assert!(!seen.contains("evil"), "{seen}");
        assert!(
            !request.complete || request.method() == "GET" || request.body == b"body",
            "{seen}"
        );
    }
}

/// h2 drops what follows a `#`, before anybody can decide by it.
#[test]
fn a_fragment_of_the_path_is_no_part_of_the_request() {
    let setting = Setting::new();
    for path in ["/ok#/../bad", "/ok#?x=/bad", "/ok#"] {
        let mut raw = setting.connect();
        raw.send(&request_frame(1, &get(path, &[])));
        assert_eq!(raw.outcome(1), Some(Ok(200)), "{path}");
    }
    setting.is_well("fragments");
}

#[test]
fn malformed_frames_end_the_connection() {
    let setting = Setting::new();
    let headers = |stream, flags| frame(HEADERS, flags, stream, &get("/bad", &[]));
    let begun = frame(HEADERS, END_HEADERS, 1, &get("/ok", &[]));
    let cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("DATA before HEADERS", frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        ("HEADERS on stream 0", headers(0, 5), PROTOCOL_ERROR),
        ("HEADERS on an even stream", headers(2, 5), PROTOCOL_ERROR),
        (
            "a stream id that goes back",
            [request_frame(5, &get("/ok", &[])), headers(3, 5)].concat(),
            PROTOCOL_ERROR,
        ),
        ("padding over the frame", frame(HEADERS, 0xd, 1, &[200, 0]), PROTOCOL_ERROR),
        ("padding over DATA", [&begun[..], &frame(DATA, 8, 1, &[9, 1])].concat(), PROTOCOL_ERROR),
        ("a header block that is cut", frame(HEADERS, 5, 1, &[0, 5, b'a']), PROTOCOL_ERROR),
        ("an index without an entry", frame(HEADERS, 5, 1, &[0xff, 0xff, 0x7f]), PROTOCOL_ERROR),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), PROTOCOL_ERROR),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 7, &[0; 4]), PROTOCOL_ERROR),
        ("RST_STREAM of another size", frame(RST_STREAM, 0, 1, &[0; 3]), PROTOCOL_ERROR),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
        ("SETTINGS of another size", frame(SETTINGS, 0, 0, &[0; 5]), PROTOCOL_ERROR),
        ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0; 6]), PROTOCOL_ERROR),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), PROTOCOL_ERROR),
        (
            "a window over its bound",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            PROTOCOL_ERROR,
        ),
        (
            "a frame size below its bound",
            frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
            PROTOCOL_ERROR,
        ),
        ("a push", frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("PING of another size", frame(PING, 0, 0, &[0; 7]), PROTOCOL_ERROR),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("WINDOW_UPDATE of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("WINDOW_UPDATE of another size", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE of an idle stream",
            frame(WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1]),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE over the bound",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            FLOW_CONTROL_ERROR,
        ),
        ("CONTINUATION without HEADERS", frame(CONTINUATION, 4, 1, b""), PROTOCOL_ERROR),
        (
            "a frame within a head",
            [headers(1, 1), frame(PING, 0, 0, &[0; 8])].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "another stream's CONTINUATION",
            [headers(1, 1), frame(CONTINUATION, 4, 3, b"")].concat(),
            PROTOCOL_ERROR,
        ),
        ("DATA within a head", [headers(1, 1), frame(DATA, 0, 1, b"x")].concat(), PROTOCOL_ERROR),
        ("a frame over the largest size", frame(DATA, 0, 1, &[0; 16_385]), FRAME_SIZE_ERROR),
        ("HEADERS over the largest size", frame(HEADERS, 5, 1, &[0; 20_000]), FRAME_SIZE_ERROR),
    ];
    let before = setting.protected("protocol_error");
    let number = cases.len();
    for (what, bytes, code) in cases {
        let mut raw = setting.connect();
        raw.send(&bytes);
        let end = raw.goaway();
        assert!(
            end == Some(code)
                || (code == PROTOCOL_ERROR
                    && matches!(end, Some(FRAME_SIZE_ERROR | STREAM_CLOSED | FLOW_CONTROL_ERROR))),
            "{what}: {end:?}"
        );
        while raw.next().is_some() {}
    }
    wait_for("each to be counted", || {
        (setting.protected("protocol_error") - before == number as f64).then_some(())
    });
    setting.is_well("malformed frames");
}

#[test]
fn frames_that_do_not_fit_the_state_of_their_stream_are_errors() {
    let setting = Setting::new();
    let held = setting.origin.hold("/held");
    let whole = request_frame(1, &get("/held", &[]));
    let half = frame(HEADERS, END_HEADERS, 1, &get("/ok", &[]));
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    let data = frame(DATA, 0, 1, b"evil");
    let more = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/evil", &[]));
    let itself = [&[0, 0, 0, 1, 9][..], &get("/evil", &[])].concat();
    let cases = [
        // h2 says PROTOCOL_ERROR, where RFC 9113 section 5.1 says STREAM_CLOSED.
        ("DATA after the end", [&whole[..], &data].concat(), &[PROTOCOL_ERROR, STREAM_CLOSED][..]),
        ("HEADERS after the end", [&whole[..], &more].concat(), &[PROTOCOL_ERROR, STREAM_CLOSED]),
        (
            "CONTINUATION after the end",
            [&whole[..], &frame(CONTINUATION, END_HEADERS, 1, &get("/evil", &[]))].concat(),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        ),
        ("a stream that depends on itself", frame(HEADERS, 0x25, 1, &itself), &[PROTOCOL_ERROR]),
        (
            "PRIORITY on itself",
            [&half[..], &frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "a window over the bound",
            [&whole[..], &frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            &[FLOW_CONTROL_ERROR],
        ),
        (
            "a setting that takes a window over the bound",
            [
                &whole[..],
                &frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0, 0]),
                &frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
            ]
            .concat(),
            &[FLOW_CONTROL_ERROR],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, codes) in cases {
        let mut raw = setting.connect();
        raw.send(&bytes);
        let end = raw.find(|f| f.kind == GOAWAY || f.kind == RST_STREAM);
        let code = end.map(|frame| frame.code());
        if !code.is_some_and(|code| codes.contains(&code)) {
            wrong.push(format!("{what}: {code:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Frames that crossed a reset on their way are ignored, or end the connection.
    for (what, late) in [("DATA", data), ("HEADERS", more), ("RST_STREAM", reset.clone())] {
        let mut raw = setting.connect();
        raw.send(&[&half[..], &reset, &late, &frame(PING, 0, 0, b"12345678")].concat());
        let end = raw.find(|f| f.kind == GOAWAY || (f.kind == PING && f.flags == ACK)).unwrap();
        let is_error = |frame: &Frame| [PROTOCOL_ERROR, STREAM_CLOSED].contains(&frame.code());
        assert!(end.kind == PING || is_error(&end), "{what} after a reset: {end:?}");
    }
    held.open();
    drop(held);
    setting.is_well_but_for(&["/held"], "frames of streams that have ended");
    let bodies = setting.origin.requests().into_iter().filter(|request| !request.body.is_empty());
    assert_eq!(bodies.count(), 0, "no body belongs to these requests");
}

#[test]
fn windows_shrink_and_grow() {
    let setting = Setting::new();
    setting.origin.reply("/ok", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789");
    let mut raw = setting.connect();
    let window = |bytes: u8| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, bytes]);
    raw.send(&[window(3), request_frame(1, &get("/ok", &[]))].concat());
    let data = |raw: &mut RawH2| raw.find(|frame| frame.kind == DATA).unwrap().payload;
    assert_eq!(data(&mut raw), b"123");
    // The window is below zero now.
    raw.send(&window(1));
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]));
    raw.send(&frame(PING, 0, 0, b"12345678"));
    let next = raw.find(|frame| frame.kind == DATA || (frame.kind == PING && frame.flags == ACK));
    assert_eq!(next.unwrap().kind, PING, "nothing may be sent");
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]));
    assert_eq!(data(&mut raw), b"45");
    raw.send(&window(5));
    assert_eq!(data(&mut raw), b"6789");
    setting.is_well("windows");
}

#[test]
fn broken_compression_ends_the_connection() {
    let setting = Setting::new();
    let evil = get("/evil", &[]);
    let with = |bytes: &[u8]| [&evil[..], bytes].concat();
    for (what, fields) in [
        ("index 0", with(&[0x80])),
        ("an index over the table", with(&[0xc0])),
        ("a name over the table", with(&[0x7f, 0x20, 1, b'x'])),
        ("a number without an end", with(&[0xff; 12])),
        ("a table over its bound", [&[0x3f, 0xe2, 0x1f][..], &evil].concat()),
        ("a size of the table at the end", with(&[0x20])),
        ("a text that is cut", with(&[0, 1, b'x', 9, b'y'])),
        ("padding that is too long", with(&[0, 1, b'x', 0x82, 0x1f, 0xff])),
        ("padding of zeros", with(&[0, 1, b'x', 0x81, 0x18])),
        ("the code for the end", with(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])),
    ] {
        let mut raw = setting.connect();
        raw.send(&request_frame(1, &fields));
        let code = raw.goaway();
        assert!(matches!(code, Some(PROTOCOL_ERROR | COMPRESSION_ERROR)), "{what}: {code:?}");
    }
    setting.is_well("broken compression");
}

#[test]
fn harmless_oddities_are_served() {
    let setting = Setting::new();
    // A frame of an unknown type, an unknown setting, padding, priorities, a head in pieces.
    let mut raw = setting.connect();
    raw.send(&frame(0xfe, 0xff, 0, b"unknown"));
    raw.send(&frame(SETTINGS, 0, 0, &[0xff, 0, 0, 0, 0, 1]));
    raw.send(&frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]));
    let block = get("/ok", &[("x", "y")]);
    let padded = [&[3, 0, 0, 0, 0, 9][..], &block[..4], &[0; 3]].concat();
    raw.send(&frame(HEADERS, 0x29, 1, &padded));
    for byte in &block[4..block.len() - 1] {
        raw.send(&frame(CONTINUATION, 0, 1, &[*byte]));
        // h2 takes a few continuations for one head of this size; the rest goes in one frame.
        if *byte == b'h' {
            break;
        }
    }
    let at = 4 + block[4..].iter().position(|byte| *byte == b'h').unwrap() + 1;
    raw.send(&frame(CONTINUATION, END_HEADERS, 1, &block[at..]));
    let outcome = raw.outcome(1);
    assert!(matches!(outcome, Some(Ok(200))), "{outcome:?}");
    setting.is_well("oddities");
}

/// Sends `flood` until the gateway ends the connection, and tells with what code.
fn flooded(setting: &Setting, first: &[u8], mut flood: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let mut raw = setting.connect();
    raw.send(first);
    let mut reader = RawH2 { stream: raw.stream.try_clone().unwrap() };
    let end = std::thread::spawn(move || reader.goaway());
    for nth in 0..2_000 {
        if !raw.send(&flood(nth)) || end.is_finished() {
            break;
        }
    }
    end.join().unwrap()
}

#[test]
fn floods_end_the_connection_and_count() {
    let setting = Setting::new();
    let held = setting.origin.hold("/held");
    let begun = frame(HEADERS, END_HEADERS, 1, &get("/ok", &[]));
    let ten = |bytes: Vec<u8>| bytes.repeat(10);
    let ping = flooded(&setting, b"", |_| ten(frame(PING, 0, 0, &[0; 8])));
    setting.counts("ping", ping);

    let settings = flooded(&setting, b"", |_| ten(frame(SETTINGS, 0, 0, b"")));
    setting.counts("settings", settings);

    let priority = flooded(&setting, b"", |_| ten(frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])));
    setting.counts("priority", priority);

    let window = flooded(&setting, b"", |_| ten(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])));
    setting.counts("window_update", window);

    let other = flooded(&setting, b"", |_| ten(frame(0xbb, 0, 0, &[0; 100])));
    setting.counts("other_frames", other);

    let empty = flooded(&setting, &begun, |_| ten(frame(DATA, 0, 1, b"")));
    setting.counts("data_frames", empty);

    let continuation = flooded(&setting, &frame(HEADERS, 0, 1, &get("/bad", &[])), |_| {
        ten(frame(CONTINUATION, 0, 1, b""))
    });
    setting.counts("continuation", continuation);

    // A field that the table keeps, and then a hundred references to it.
    let value = "x".repeat(4_000);
    let mut fields = block(&[("x", &value)]);
    fields[0] = 0x40;
    fields.extend([0x80 | 62; 100]);
    let list = flooded(&setting, b"", |nth| {
        request_frame(2 * nth + 1, &[get("/bad", &[]), fields.clone()].concat())
    });
    setting.counts("header_list", list);

    // Streams that are reset at once: before they are accepted, or after.
    let rapid = flooded(&setting, b"", |nth| {
        let stream = 2 * nth + 1;
        [request_frame(stream, &get("/held", &[])), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    });
    setting.counts("rapid_reset", rapid);

    // Streams that the gateway must reset (MadeYouReset): windows over their bound, and bodies after their end.
    let forced = flooded(&setting, b"", |nth| {
        let stream = 2 * nth + 1;
        let over = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
        [request_frame(stream, &get("/held", &[])), over].concat()
    });
    setting.counts("forced_reset", forced);
    assert_eq!(setting.protected("protocol_error"), 0.0, "each flood has its own name");

    held.open();
    drop(held);
    let mut other = setting.connect();
    other.send(&request_frame(1, &get("/ok", &[])));
    assert_eq!(other.outcome(1), Some(Ok(200)));
    assert!(setting.origin.requests_for("/bad").is_empty());
}

#[test]
fn malformed_heads_of_one_client_spare_the_requests_of_others() {
    let setting = Setting::new();
    let held = setting.origin.hold("/held");
    let mut raw = setting.connect();
    raw.send(&request_frame(1, &get("/held", &[])));
    setting.origin.one("/held");
    let mut stream = 1;
    let mut until_goaway = |raw: &mut RawH2| {
        for answered in 0..1_000 {
            stream += 2;
            let lengths = [("content-length", "0"), ("content-length", "0")];
            raw.send(&request_frame(stream, &get("/bad", &lengths)));
            let frame = raw
                .find(|f| f.kind == GOAWAY || (f.kind == HEADERS && f.stream == stream))
                .unwrap();
            if frame.kind == GOAWAY {
                return (answered, frame.code());
            }
            assert_eq!(frame.status(), 400);
        }
        panic!("no end");
    };
    let (answered, code) = until_goaway(&mut raw);
    assert!(answered >= 100, "{answered}");
    assert_eq!((code, setting.protected("malformed_heads")), (NO_ERROR, 1.0));
    held.open();
    assert_eq!(raw.outcome(1), Some(Ok(200)), "a request that was begun");
    // A client that does not heed the end.
    let (answered, code) = until_goaway(&mut raw);
    assert!(answered >= 90, "{answered}");
    assert_eq!(code, ENHANCE_YOUR_CALM);
    setting.is_well_but_for(&["/held"], "malformed heads");
}

#[test]
fn bursts_of_small_messages_pass() {
    let setting = Setting::new();
    let mut raw = setting.connect();
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/ok"),
        (":authority", "gateway.test"),
    ]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &post));
    raw.send(&frame(DATA, 0, 1, b"0123456789").repeat(6_000));
    raw.send(&frame(DATA, END_STREAM, 1, b"!"));
    assert_eq!(raw.outcome(1), Some(Ok(200)));
    assert_eq!(setting.origin.one("/ok").body.len(), 60_001);
}

#[test]
fn requests_that_are_reset_at_once_spare_the_connection() {
    let setting = Setting::new();
    let mut raw = setting.connect();
    let bytes: Vec<u8> = (0..60)
        .flat_map(|nth| {
            let stream = 2 * nth + 1;
            let reset = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
            [request_frame(stream, &get("/ok", &[])), reset].concat()
        })
        .collect();
    raw.send(&bytes);
    raw.send(&request_frame(121, &get("/ok", &[])));
    assert_eq!(raw.outcome(121), Some(Ok(200)));
    assert_eq!(setting.protected("rapid_reset"), 0.0);
}

#[test]
fn answers_that_share_a_slow_line_arrive_whole() {
    const ANSWERS: u32 = 10;
    let origin = Origin::start();
    origin.on("/large", |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
        stream.write_all(&[b'x'; 100_000]).map(|()| true)
    });
    let gateway = Gateway::start(&format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
timeouts: {{ write: 800ms }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        origin.url()
    ));
    let mut raw = RawH2::connect(gateway.address);
    // Each answer has room, and all of them together have little.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0x10, 0, 0, 0]));
    for nth in 0..ANSWERS {
        raw.send(&request_frame(2 * nth + 1, &get("/large", &[])));
    }
    let mut reader = RawH2 { stream: raw.stream.try_clone().unwrap() };
    let ends = std::thread::spawn(move || {
        let mut bytes = 0;
        for _ in 0..ANSWERS {
            let end = reader.find(|f| {
                bytes += if f.kind == DATA { f.payload.len() } else { 0 };
                f.kind == RST_STREAM || (f.kind == DATA && f.flags & END_STREAM != 0)
            });
            assert_eq!(end.unwrap().kind, DATA, "an answer that is cut");
        }
        bytes
    });
    while !ends.is_finished() {
        raw.send(&frame(WINDOW_UPDATE, 0, 0, &16_000u32.to_be_bytes()));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(ends.join().unwrap(), 1_000_000);
}

#[test]
fn a_header_list_over_the_bound_is_answered() {
    let setting = Setting::new();
    let value = "x".repeat(15_000);
    let mut raw = setting.connect();
    raw.send(&frame(HEADERS, END_STREAM, 1, &get("/bad", &[])));
    for nth in 0..6 {
        let flags = if nth == 5 { END_HEADERS } else { 0 };
        raw.send(&frame(CONTINUATION, flags, 1, &block(&[("x", &value)])));
    }
    assert_eq!(raw.outcome(1), Some(Ok(431)));
    setting.is_well("a large header list");
}

#[test]
fn requests_beyond_the_bound_are_refused_and_may_be_sent_again() {
    let setting = Setting::new();
    let held = setting.origin.hold("/held");
    let mut raw = setting.connect();
    // The client does not wait for the gateway's settings.
    for nth in 0..150 {
        raw.send(&request_frame(2 * nth + 1, &get("/held", &[])));
    }
    let refused: Vec<u32> = (0..50)
        .map(|_| {
            let frame = raw.find(|f| f.kind == RST_STREAM).unwrap();
            assert_eq!(frame.code(), REFUSED_STREAM);
            frame.stream
        })
        .collect();
    assert!(refused.iter().all(|stream| *stream > 200), "{refused:?}");
    drop(held);
    assert_eq!(raw.outcome(1), Some(Ok(200)));
    assert!(setting.origin.requests_for("/held").len() <= 100);
}

#[test]
fn a_client_may_say_goodbye() {
    let setting = Setting::new();
    let mut raw = setting.connect();
    raw.send(&request_frame(1, &get("/ok", &[])));
    assert_eq!(raw.outcome(1), Some(Ok(200)));
    raw.send(&frame(GOAWAY, 0, 0, &[0; 8]));
    let end = raw.goaway();
    assert!(matches!(end, None | Some(NO_ERROR)), "{end:?}");
    setting.is_well("a goodbye");
}

/// Work on a request goes on for a moment after its client has reset it: here, while the store does not answer.
#[test]
fn requests_that_outlive_their_streams_are_bounded() {
    const WAVE: u32 = 50;
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
redis: {{ url: \"{}\", timeout: 30s }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }}, {{ prefix: /ok, upstream: up, auth: none }} ]",
        redis.url(),
        origin.url()
    ));
    let setting = Setting { origin, gateway };
    let token = bearer("alice");
    let private = get("/private", &[("authorization", &token)]);
    redis.freeze();
    let mut raw = setting.connect();
    for wave in 0..4 {
        let streams = || (0..WAVE).map(|nth| 2 * (WAVE * wave + nth) + 1);
        raw.send(&streams().flat_map(|stream| request_frame(stream, &private)).collect::<Vec<_>>());
        raw.send(&frame(PING, 0, 0, b"12345678"));
        assert!(raw.find(|f| f.kind == PING && f.flags == ACK).is_some());
        let reset = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        raw.send(&streams().flat_map(reset).collect::<Vec<_>>());
    }
    let next = 8 * WAVE + 1;
    raw.send(&request_frame(next, &get("/ok", &[])));
    assert_eq!(raw.outcome(next), Some(Err(REFUSED_STREAM)));
    assert_eq!(setting.protected("handlers"), 1.0);
    setting.is_well("requests that outlive their streams");
    redis.thaw();
    let mut stream = next;
    wait_for("the connection to go on", || {
        stream += 2;
        raw.send(&request_frame(stream, &get("/ok", &[])));
        (raw.outcome(stream) == Some(Ok(200))).then_some(())
    });
    assert!(setting.origin.requests_for("/private").is_empty());
}
