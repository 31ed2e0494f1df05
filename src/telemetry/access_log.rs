//! One log line for each request. The line holds no credential, and no query, which may contain a credential.
//!
//! Lines are frequent, so they are written straight into a buffer of the thread, past the formatter of other lines; their
//! form is the same.

use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use log::LevelFilter;

use super::log_output::{Colors, LogFormat};
use super::log_writer::Buffer;

/// The target of access-log lines.
const ACCESS: &str = "tollgate::access";

/// The form of the lines, once there is a log.
static FORM: OnceLock<(LogFormat, Colors)> = OnceLock::new();

thread_local! {
    static OWN: Own = Own { lines: Buffer::new(), second: Cell::new((i64::MIN, [0; SECOND])) };
}

/// The length of a date and time up to the second.
const SECOND: usize = "2026-01-01T00:00:00".len();

/// What a thread that writes lines has of its own.
struct Own {
    lines: Arc<Buffer>,
    /// A second since 1970 and its text, which most lines share with the line before.
    second: Cell<(i64, [u8; SECOND])>,
}

/// Sets the form of the lines. Without it nothing is written.
pub(super) fn begin(format: LogFormat, colors: Colors) {
    let _ = FORM.set((format, colors));
}

/// The line of one request.
#[derive(Debug)]
pub struct AccessLine<'a> {
    /// `X-Request-ID`.
    pub request_id: &'a str,
    /// The method as sent.
    pub method: &'a str,
    /// `Host`, in canonical form.
    pub host: Option<&'a str>,
    /// The path, in its canonical form where it has one.
    pub path: &'a str,
    /// The route's label.
    pub route: Option<&'a str>,
    /// The status of the answer; 499 when the client closed the connection before the answer.
    pub status: u16,
    /// From the end of the header to the end of the answer.
    pub duration: Duration,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    /// From choosing an endpoint to the header of its answer.
    pub upstream_duration: Option<Duration>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// The client's address, from `X-Forwarded-For` where the peer is a trusted proxy.
    pub client_ip: Option<IpAddr>,
    /// The token's public id.
    pub token_id: Option<&'a str>,
    /// The organization of the token.
    pub organization_id: Option<&'a str>,
    /// The plan of the token.
    pub plan: Option<&'a str>,
    /// The code of an answer that the gateway made itself.
    pub code: Option<&'a str>,
    /// The cause of that answer, or of an answer's early end: a word of a fixed set.
    pub reason: Option<&'a str>,
    /// The text of the cause, where it adds to the reason; its length is bounded.
    pub error: Option<&'a str>,
}

impl AccessLine<'_> {
    /// Writes the line.
    #[expect(clippy::disallowed_methods, reason = "a log line is dated; no decision depends on it")]
    pub fn write(&self) {
        let Some((format, colors)) = FORM.get().filter(|_| log::max_level() >= LevelFilter::Info)
        else {
            return;
        };
        // An error means that the thread ends.
        let _ = OWN.try_with(|own| {
            own.lines.push(false, |out| match format {
                LogFormat::Json => self.json(out, own.date(Utc::now())),
                LogFormat::Console => self.console(out, colors),
            });
        });
    }

    /// The line as a JSON object. Absent values are not written.
    fn json(&self, out: &mut Vec<u8>, (second, millis): ([u8; SECOND], u32)) {
        out.extend_from_slice(b"{\"timestamp\":\"");
        out.extend_from_slice(&second);
        let digit = |n: u32| b'0' + (n % 10) as u8;
        out.extend([b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
        out.extend_from_slice(b"Z\",\"level\":\"info\",\"target\":\"");
        out.extend_from_slice(ACCESS.as_bytes());
        out.extend_from_slice(b"\",\"message\":\"request\"");
        let mut line = Members(out);
        line.text("request_id", Some(self.request_id));
        line.text("method", Some(self.method));
        line.text("host", self.host);
        line.text("path", Some(self.path));
        line.text("route", self.route);
        line.number("status", self.status.into());
        line.millis("duration_ms", Some(self.duration));
        line.text("upstream", self.upstream);
        line.millis("upstream_ms", self.upstream_duration);
        line.number("bytes", self.bytes);
        line.address("client_ip", self.client_ip);
        line.text("token_id", self.token_id);
        line.text("organization_id", self.organization_id);
        line.text("plan", self.plan);
        line.text("code", self.code);
        line.text("reason", self.reason);
        line.text("error", self.error);
        out.extend_from_slice(b"}\n");
    }

    /// The line for people: `12:30:01.123 GET /api/hello 200 1.4 ms token_id=demo`.
    fn console(&self, out: &mut Vec<u8>, colors: &Colors) {
        // Writing to a vector does not fail.
        let _ = write!(out, "{} {}{}", colors.time(), colors.info, self.method);
        let _ = write!(out, "{} {} {} ", colors.reset, self.path.escape_debug(), self.status);
        push_millis(out, self.duration);
        out.extend_from_slice(b" ms");
        let members = [
            ("code", self.code),
            ("reason", self.reason),
            ("token_id", self.token_id),
            ("upstream", self.upstream),
        ];
        for (key, value) in members {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                let _ = write!(out, " {key}={}", value.escape_debug());
            }
        }
        out.push(b'\n');
    }
}

impl Own {
    /// The date and time up to the second, and milliseconds.
    fn date(&self, now: DateTime<Utc>) -> ([u8; SECOND], u32) {
        let (mut second, mut text) = self.second.get();
        if second != now.timestamp() {
            second = now.timestamp();
            let _ = write!(&mut text[..], "{}", now.format("%Y-%m-%dT%H:%M:%S"));
            self.second.set((second, text));
        }
        (text, now.timestamp_subsec_millis())
    }
}

/// The members of a JSON object that has some already.
struct Members<'a>(&'a mut Vec<u8>);

impl Members<'_> {
    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.key(key);
        if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        } else {
            // Writing to a vector does not fail.
            let _ = serde_json::to_writer(&mut *self.0, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn millis(&mut self, key: &str, value: Option<Duration>) {
        let Some(value) = value else { return };
        self.key(key);
        push_millis(self.0, value);
    }

    fn address(&mut self, key: &str, value: Option<IpAddr>) {
        let Some(value) = value else { return };
        self.key(key);
        let _ = write!(self.0, "\"{value}\"");
    }
}

/// Milliseconds with at most three decimals, and no zero at their end.
fn push_millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = duration.saturating_add(Duration::from_nanos(500)).as_micros();
    let (whole, mut decimals) = (micros / 1_000, (micros % 1_000) as u32);
    out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes());
    if decimals == 0 {
        return;
    }
    out.push(b'.');
    while decimals > 0 {
        out.push(b'0' + (decimals / 100) as u8);
        decimals = decimals % 100 * 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> AccessLine<'static> {
        AccessLine {
            request_id: "01",
            method: "GET",
            host: Some("a.example"),
            path: "/a\"b\\\u{1b}[31m/\u{e9}",
            route: None,
            status: 200,
            duration: Duration::from_nanos(1_499_600),
            upstream: Some("up"),
            upstream_duration: Some(Duration::from_millis(2)),
            bytes: 123_456,
            client_ip: Some([192, 0, 2, 1].into()),
            token_id: None,
            organization_id: None,
            plan: None,
            code: None,
            reason: Some("client_gone"),
            error: None,
        }
    }

    #[test]
    fn a_json_line_is_one_object_without_absent_members() {
        let mut out = Vec::new();
        line().json(&mut out, (*b"2026-11-28T10:11:12", 7));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"timestamp\":\"2026-11-28T10:11:12.007Z\",\"level\":\"info\",\"target\":\"tollgate::access\",\
             \"message\":\"request\",\"request_id\":\"01\",\"method\":\"GET\",\"host\":\"a.example\",\
             \"path\":\"/a\\\"b\\\\\\u001b[31m/\u{e9}\",\"status\":200,\"duration_ms\":1.5,\"upstream\":\"up\",\
             \"upstream_ms\":2,\"bytes\":123456,\"client_ip\":\"192.0.2.1\",\"reason\":\"client_gone\"}\n"
        );
    }

    #[test]
    fn a_console_line_lets_no_escape_through() {
        let mut out = Vec::new();
        line().console(&mut out, &Colors::new(false));
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.ends_with(
                " GET /a\\\"b\\\\\\u{1b}[31m/\u{e9} 200 1.5 ms reason=client_gone upstream=up\n"
            ),
            "{out}"
        );
        assert!(!out.contains('\u{1b}'));
    }

    #[test]
    fn milliseconds_have_the_digits_of_a_float() {
        for micros in (0..3_000).chain([10_000, 99_990, 123_456_789, 86_400_000_000]) {
            let mut out = Vec::new();
            push_millis(&mut out, Duration::from_micros(micros));
            assert_eq!(String::from_utf8(out).unwrap(), (micros as f64 / 1e3).to_string());
        }
    }

    #[test]
    fn the_second_is_made_anew_when_it_changes() {
        let own = Own { lines: Arc::default(), second: Cell::new((i64::MIN, [0; SECOND])) };
        for (millis, text) in [(1_999, b"1970-01-01T00:00:01"), (2_000, b"1970-01-01T00:00:02")] {
            let now = DateTime::from_timestamp_millis(millis).unwrap();
            assert_eq!(own.date(now), (*text, (millis % 1_000) as u32));
        }
    }
}
