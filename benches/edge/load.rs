//! Load by wrk and h2load, and what they print. It must not know which server answers.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::processes::{Placement, Process, Side};

/// How long a load generator may take beyond its own duration.
const GRACE: Duration = Duration::from_secs(10);

const PATH: &str = "/api/items/7";

/// The requests of one measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// HTTP/1.1 requests over TLS, on 64 connections that are kept.
    Tls,
    /// HTTP/1.1 requests over TLS, each on a connection of its own.
    Handshakes,
    /// HTTP/2 requests, 100 at the same time on each of 4 connections; over TLS or without.
    Http2 {
        /// Whether with TLS.
        tls: bool,
    },
    /// Unary gRPC calls, 100 at the same time on each of 4 connections.
    Grpc,
}

/// Runs `load` for `seconds` and returns the answers in a second; each must be a 2xx.
///
/// # Errors
/// When a request fails, or the program does.
pub fn run(
    placement: &Placement,
    load: Load,
    address: SocketAddr,
    token: &str,
    directory: &Path,
    seconds: u64,
) -> Result<f64, Failure> {
    let scheme = match load {
        Load::Tls | Load::Handshakes | Load::Http2 { tls: true } => "https",
        Load::Http2 { tls: false } | Load::Grpc => "http",
    };
    let url = format!("{scheme}://{address}{PATH}");
    let authorization = format!("authorization: Bearer {token}");
    let is_wrk = matches!(load, Load::Tls | Load::Handshakes);
    let mut command = placement.command(Side::Rest, if is_wrk { "wrk" } else { "h2load" });
    if is_wrk {
        command.args(["-t1", "-c64", &format!("-d{seconds}s"), "-H", &authorization]);
        if load == Load::Handshakes {
            command.args(["-H", "Connection: close"]);
        }
    } else {
        command.args(["-t1", "-c4", "-m100", "-D", &seconds.to_string(), "-H", &authorization]);
        if load == Load::Grpc {
            let message = directory.join("message");
            std::fs::write(&message, b"\0\0\0\0\x200123456789abcdef0123456789abcde\n")?;
            command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]);
            command.arg(message);
        }
    }
    command.arg(url);
    let output = finish(command, directory, Duration::from_secs(seconds))?;
    let rate = if is_wrk { wrk(&output) } else { h2load(&output) };
    rate.ok_or_else(|| format!("not a good run: {output}").into())
}

fn finish(
    command: std::process::Command,
    directory: &Path,
    duration: Duration,
) -> Result<String, Failure> {
    let started = Instant::now();
    let mut process = Process::start(command, directory.join("load.log"))?;
    loop {
        match process.ended()? {
            Some(ended) if ended.success() => return process.output(),
            Some(ended) => return Err(format!("{ended}: {}", process.last_lines()).into()),
            None if started.elapsed() > duration + GRACE => {
                return Err("the load does not end".into());
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The rate that wrk prints; `None` when an answer was no 2xx or a connection broke.
fn wrk(output: &str) -> Option<f64> {
    if output.contains("Non-2xx") || output.contains("Socket errors") {
        return None;
    }
    output.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim().parse().ok()
}

/// The rate that h2load prints; `None` when an answer was no 2xx or a request failed.
fn h2load(output: &str) -> Option<f64> {
    let line = |start: &str| output.lines().find(|line| line.starts_with(start));
    let codes = line("status codes:")?;
    if !codes.contains(" 0 3xx, 0 4xx, 0 5xx") || !line("requests:")?.contains(" 0 failed") {
        return None;
    }
    let rate = line("finished in")?.split(',').nth(1)?;
    rate.trim().strip_suffix("req/s")?.trim().parse().ok()
}
