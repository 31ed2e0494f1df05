//! The form of log lines: `env_logger` makes a JSON object or a coloured line of each record.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use chrono::{SecondsFormat, Utc};
use env_logger::{Builder, Target};
use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Record};

use super::access_log;
pub use super::log_writer::LogGuard;
use super::log_writer::{self, Buffer};

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

/// What colours text; all of it is empty where there are no colours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Colors {
    dim: &'static str,
    error: &'static str,
    warn: &'static str,
    pub(super) info: &'static str,
    debug: &'static str,
    pub(super) reset: &'static str,
}

impl Colors {
    pub(super) fn new(wanted: bool) -> Self {
        let paint = |code: &'static str| if wanted { code } else { "" };
        Self {
            dim: paint("\x1b[2m"),
            error: paint("\x1b[31m"),
            warn: paint("\x1b[33m"),
            info: paint("\x1b[32m"),
            debug: paint("\x1b[36m"),
            reset: paint("\x1b[0m"),
        }
    }

    fn of(&self, level: Level) -> &'static str {
        match level {
            Level::Error => self.error,
            Level::Warn => self.warn,
            Level::Info => self.info,
            Level::Debug | Level::Trace => self.debug,
        }
    }

    /// The time of day, which a console line begins with.
    #[expect(clippy::disallowed_methods, reason = "a log line is dated; no decision depends on it")]
    pub(super) fn time(&self) -> impl fmt::Display {
        let time = chrono::Local::now().format("%H:%M:%S%.3f");
        fmt::from_fn(move |f| write!(f, "{}{time}{}", self.dim, self.reset))
    }
}

/// Installs the logger of the process, which writes to standard output.
///
/// # Errors
/// When the thread cannot be started or a logger is installed already.
pub fn install(format: LogFormat, color: LogColor, level: LevelFilter) -> io::Result<LogGuard> {
    let colors = Colors::new(color.is_wanted());
    let guard = log_writer::start()?;
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
            LogFormat::Console => console_line(out, record, &colors),
        })
        .target(Target::Pipe(Box::new(Queue(Buffer::new()))))
        .try_init()
        .map_err(io::Error::other)?;
    access_log::begin(format, colors);
    log::set_max_level(level);
    Ok(guard)
}

/// Takes each formatted record, which `env_logger` writes in one piece.
struct Queue(Arc<Buffer>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // These lines are few, and people wait for them.
        self.0.push(true, |lines| lines.extend_from_slice(line));
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

fn console_line(out: &mut dyn Write, record: &Record<'_>, colors: &Colors) -> io::Result<()> {
    let level = record.level();
    write!(
        out,
        "{} {}{:<5}{} {}",
        colors.time(),
        colors.of(level),
        level_name(level),
        colors.reset,
        OneLine(&record.args().to_string())
    )?;
    let mut pairs = ConsolePairs { out, dim: colors.dim, reset: colors.reset };
    record.key_values().visit(&mut pairs).map_err(io::Error::other)?;
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
            LogFormat::Console => console_line(&mut out, &record, &Colors::new(false)).unwrap(),
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
