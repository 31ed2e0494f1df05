//! The form and the output of log lines: `env_logger` makes a JSON object or a coloured line of each record,
//! and a thread of its own writes the lines, so that a slow reader never stops a worker.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use env_logger::{Builder, Target};
use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Record};

use super::metrics::METRICS;

/// How many lines may wait for the writing thread; further lines are dropped and counted.
const QUEUE: usize = 8_192;

/// How long the process waits for queued lines before it ends.
const DRAIN: Duration = Duration::from_secs(1);

/// The target of access-log records.
pub const ACCESS: &str = "tollgate::access";

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Console,
}

/// When console text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogColor {
    /// When the output is a terminal and `NO_COLOR` is unset.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl LogColor {
    /// Whether text on standard output is coloured.
    fn is_wanted(self) -> bool {
        match self {
            Self::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Writes the queued lines when it is dropped.
pub struct LogGuard {
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    sender: SyncSender<Vec<u8>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        log::set_max_level(LevelFilter::Off);
        // An empty line tells the thread to end.
        let deadline = Instant::now() + DRAIN;
        while self.sender.try_send(Vec::new()).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let finished = self.done.recv_timeout(DRAIN);
        if finished != Err(RecvTimeoutError::Timeout)
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Installs the logger of the process, which writes to standard output.
///
/// # Errors
/// When the thread cannot be started or a logger is installed already.
pub fn install(format: LogFormat, color: LogColor, level: LevelFilter) -> io::Result<LogGuard> {
    let color = color.is_wanted();
    let (sender, lines) = sync_channel::<Vec<u8>>(QUEUE);
    let (finished, done) = sync_channel(1);
    // A descriptor of its own: the thread must not hold the lock of `io::stdout()` while a reader of the log
    // is slow, because the end of the process takes that lock.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
        while let Ok(line) = lines.recv() {
            if line.is_empty() {
                break;
            }
            // A gateway goes on serving when its standard output is closed.
            let _ = out.write_all(&line);
        }
        let _ = finished.send(());
    })?;
    Builder::new()
        // Libraries may log warnings, and information when this program logs details. Below that level they
        // print whole requests, credentials included.
        .filter_level(if level >= LevelFilter::Debug {
            LevelFilter::Info
        } else {
            LevelFilter::Warn
        })
        // The store's room logs the events of its connection itself.
        .filter_module("fred", LevelFilter::Off)
        .filter_module("tollgate", LevelFilter::Trace)
        .format(move |out, record| match format {
            LogFormat::Json => json_line(out, record),
            LogFormat::Console => console_line(out, record, color),
        })
        .target(Target::Pipe(Box::new(Queue(sender.clone()))))
        .try_init()
        .map_err(io::Error::other)?;
    log::set_max_level(level);
    Ok(LogGuard { done, thread: Some(thread), sender })
}

/// Hands each formatted record, which `env_logger` writes in one piece, to the writing thread.
struct Queue(SyncSender<Vec<u8>>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(line.to_vec()).is_err() {
            METRICS.log_lines_dropped.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "a log line is dated; no decision depends on it")]
fn json_line(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let level = level_name(record.level());
    write!(out, r#"{{"timestamp":"{time}","level":"{level}","target":"{}""#, record.target())?;
    write!(out, r#","message":"#)?;
    json_text(out, &record.args().to_string())?;
    let mut members = JsonMembers { out };
    record.key_values().visit(&mut members).map_err(io::Error::other)?;
    writeln!(out, "}}")
}

#[expect(clippy::disallowed_methods, reason = "a log line is dated; no decision depends on it")]
fn console_line(out: &mut dyn Write, record: &Record<'_>, color: bool) -> io::Result<()> {
    let paint = |code: &'static str| if color { code } else { "" };
    let (dim, reset) = (paint("\x1b[2m"), paint("\x1b[0m"));
    let level = match record.level() {
        Level::Error => paint("\x1b[31m"),
        Level::Warn => paint("\x1b[33m"),
        Level::Info => paint("\x1b[32m"),
        Level::Debug | Level::Trace => paint("\x1b[36m"),
    };
    let time = chrono::Local::now().format("%H:%M:%S%.3f");
    if record.target() == ACCESS {
        return access_line(out, record, format_args!("{dim}{time}{reset} {level}"), reset);
    }
    write!(
        out,
        "{dim}{time}{reset} {level}{:<5}{reset} {}",
        level_name(record.level()),
        OneLine(&record.args().to_string())
    )?;
    let mut pairs = ConsolePairs { out, dim, reset };
    record.key_values().visit(&mut pairs).map_err(io::Error::other)?;
    writeln!(out)
}

/// A request's line for people: `12:30:01.123 GET /api/hello 200 1.4 ms token_id=demo`.
fn access_line(
    out: &mut dyn Write,
    record: &Record<'_>,
    before: std::fmt::Arguments<'_>,
    reset: &str,
) -> io::Result<()> {
    let pairs = record.key_values();
    let text = |key: &str| {
        let value = pairs.get(kv::Key::from(key)).map(|value| value.to_string());
        value.filter(|text| text != "None").unwrap_or_default()
    };
    let (method, path, status) = (text("method"), text("path"), text("status"));
    let path = path.escape_debug();
    write!(out, "{before}{method}{reset} {path} {status} {} ms", text("duration_ms"))?;
    for key in ["code", "reason", "token_id", "upstream"] {
        let value = text(key);
        if !value.is_empty() {
            write!(out, " {key}={}", value.escape_debug())?;
        }
    }
    writeln!(out)
}

/// Text whose control characters are written as escapes, so that it stays on its line and moves no cursor.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn json_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::other)
}

struct JsonMembers<'a> {
    out: &'a mut dyn Write,
}

impl<'kvs> VisitSource<'kvs> for JsonMembers<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(JsonMember { out: self.out, key: key.as_str() })
    }
}

struct JsonMember<'a> {
    out: &'a mut dyn Write,
    key: &'a str,
}

impl JsonMember<'_> {
    fn raw(&mut self, value: impl std::fmt::Display) -> Result<(), kv::Error> {
        write!(self.out, r#","{}":{value}"#, self.key)?;
        Ok(())
    }
}

impl<'v> VisitValue<'v> for JsonMember<'_> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.visit_str(&value.to_string())
    }

    /// Absent values are not written.
    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.raw(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.raw(value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() { self.raw(value) } else { self.visit_null() }
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.raw(value)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        write!(self.out, r#","{}":"#, self.key)?;
        json_text(self.out, value)?;
        Ok(())
    }
}

struct ConsolePairs<'a> {
    out: &'a mut dyn Write,
    dim: &'static str,
    reset: &'static str,
}

impl<'kvs> VisitSource<'kvs> for ConsolePairs<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let text = value.to_string();
        // Absent values are not written.
        if !text.is_empty() && text != "None" {
            // Control characters of a path must not reach a terminal.
            let text = text.escape_debug();
            write!(self.out, " {}{key}={}{text}", self.dim, self.reset)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat) -> String {
        let mut out = Vec::new();
        let pairs: &[(&str, kv::Value<'_>)] = &[
            ("path", kv::Value::from("/a\"\u{1b}[31m")),
            ("status", kv::Value::from(200u64)),
            ("code", kv::Value::null()),
        ];
        let record = Record::builder()
            .level(Level::Info)
            .target("t")
            .args(format_args!("a \"line\"\nof two"))
            .key_values(&pairs)
            .build();
        match format {
            LogFormat::Json => json_line(&mut out, &record).unwrap(),
            LogFormat::Console => console_line(&mut out, &record, false).unwrap(),
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_typed_members() {
        let line = line(LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "a \"line\"\nof two");
        assert_eq!(value["path"], "/a\"\u{1b}[31m");
        assert_eq!(value["status"], 200);
        assert!(value.get("code").is_none());
    }

    #[test]
    fn a_console_line_lets_no_escape_through() {
        let line = line(LogFormat::Console);
        assert!(line.contains("path=/a\\\"\\u{1b}[31m status=200"), "{line}");
        assert!(line.contains("a \"line\"\\nof two"), "{line}");
        assert!(!line.contains('\u{1b}'));
        assert_eq!(line.matches('\n').count(), 1, "{line}");
    }

    #[test]
    fn control_characters_are_escaped_and_nothing_else_is() {
        for (text, line) in [
            ("plain \"é\" '\\'", "plain \"é\" '\\'"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{7f}\u{85}\u{0}", "\\u{7f}\\u{85}\\u{0}"),
        ] {
            assert_eq!(OneLine(text).to_string(), line);
        }
    }
}
