//! Load: wrk with as many tokens as a variant wants, and single requests that look at an answer's status. It must not know
//! which server answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Failure;
use crate::processes::{Placement, Process, Side};

/// Connections wrk keeps busy, one request at a time on each.
pub const CONNECTIONS: u32 = 64;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/load.lua");
const PATH: &str = "/api/items/7";

/// How long a proxy may take to answer its first request with 200.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// How long wrk may take beyond its own duration.
const WRK_GRACE: Duration = Duration::from_secs(10);
/// How often an answer's status is looked at during a run.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The figures of wrk.
#[derive(Deserialize)]
pub struct Outcome {
    /// Answers.
    pub requests: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Median time of an answer, in microseconds.
    pub p50_us: u64,
    /// 99th percentile of it, in microseconds.
    pub p99_us: u64,
    /// Answers with a status of 400 and above.
    pub not_2xx: u64,
    /// Connections refused, reset or silent.
    pub broken: u64,
}

/// Waits until `proxy` admits a request.
///
/// # Errors
/// When it ends or has not answered 200 within the deadline.
pub fn wait_until_ready(
    proxy: &mut Process,
    address: SocketAddr,
    token: &str,
) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        let answer = status(address, token);
        if matches!(answer, Ok(200)) {
            return Ok(());
        }
        if proxy.ended()?.is_some() || started.elapsed() > START_DEADLINE {
            return Err(format!("does not answer 200 but {answer:?}").into());
        }
        sleep(Duration::from_millis(10));
    }
}

/// Runs wrk against `address` with the tokens in a file, looking at a status now and then, each of which must be `expected`.
///
/// # Errors
/// When wrk fails or hangs, or when a status is not the expected status.
pub fn run(
    placement: &Placement,
    address: SocketAddr,
    tokens: &TokenFile,
    seconds: u64,
    expected: &[u16],
) -> Result<Outcome, Failure> {
    let mut command = placement.command(Side::Rest, "wrk");
    command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "-s", SCRIPT]);
    command.arg(format!("http://{address}{PATH}")).arg("--").arg(&tokens.path);
    let started = Instant::now();
    let mut wrk = Process::start(command, tokens.path.with_extension("wrk"))?;
    let ended = loop {
        if let Some(ended) = wrk.ended()? {
            break ended;
        }
        if started.elapsed() > Duration::from_secs(seconds) + WRK_GRACE {
            return Err("wrk does not end".into());
        }
        let answer = status(address, &tokens.first)?;
        if !expected.contains(&answer) {
            return Err(format!("status {answer} under load, expected one of {expected:?}").into());
        }
        sleep(PROBE_INTERVAL);
    };
    let output = wrk.output()?;
    match output.lines().last().filter(|line| ended.success() && line.starts_with('{')) {
        Some(outcome) => Ok(serde_json::from_str(outcome)?),
        None => Err(format!("wrk failed: {output}").into()),
    }
}

/// Tokens for wrk, one a line.
pub struct TokenFile {
    path: PathBuf,
    /// A token for single requests.
    pub first: String,
}

impl TokenFile {
    /// Writes them to `path`.
    ///
    /// # Errors
    /// When there is none, or the file cannot be written.
    pub fn write(path: &Path, tokens: &[String]) -> Result<Self, Failure> {
        std::fs::write(path, tokens.join("\n"))?;
        Ok(Self { path: path.to_owned(), first: tokens.first().ok_or("no token")?.clone() })
    }
}

/// The status of one answer on a connection of its own.
fn status(address: SocketAddr, token: &str) -> Result<u16, Failure> {
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(
        stream,
        "GET {PATH} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )?;
    // "HTTP/1.1 200"
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    let text = std::str::from_utf8(&start)?;
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .ok_or_else(|| format!("not an answer: {text:?}"))?
        .parse()?;
    // Unread bytes would reset the connection instead of closing it.
    stream.read_to_end(&mut Vec::new())?;
    Ok(status)
}
