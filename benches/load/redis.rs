//! The store of a run: a redis-server of the bench's own, filled with token records, and a count of its commands.
//! It must not know which proxy sends the commands.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::Failure;
use crate::processes::{Placement, Process, Side, free_address};

/// Commands that only scripts run here, inside the server. Redis counts them like a client's own, but they cost no
/// operation. One that is missing makes the count too high, never too low.
const INSIDE_SCRIPTS: [&str; 12] = [
    "del",
    "expire",
    "get",
    "hset",
    "incr",
    "pexpire",
    "pexpireat",
    "set",
    "time",
    "zadd",
    "zcard",
    "zremrangebyscore",
];

/// How long an answer to the bench itself may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Calls of each command since some moment.
pub type Calls = BTreeMap<String, u64>;

/// A running redis-server and a connection to it.
pub struct Redis {
    connection: BufReader<TcpStream>,
    /// Where it listens.
    pub address: SocketAddr,
    _server: Process,
}

impl Redis {
    /// Starts one without persistence.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start(placement: &Placement, directory: &Path) -> Result<Self, Failure> {
        let address = free_address()?;
        let mut command = placement.command(Side::Rest, "redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &address.port().to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let mut server = Process::start(command, directory.join("redis.log"))?;
        server
            .wait_until_listening(address)
            .map_err(|failure| format!("redis-server: {failure}"))?;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { connection: BufReader::new(stream), address, _server: server })
    }

    /// Writes a record with these `fields`, as `HSET` takes them, for each `api_key`.
    ///
    /// # Errors
    /// When Redis refuses one.
    pub fn store_records<'a>(
        &mut self,
        api_keys: impl Iterator<Item = &'a str>,
        fields: &str,
    ) -> Result<(), Failure> {
        let mut commands = String::new();
        let mut count = 0;
        for key in api_keys {
            commands.push_str(&format!("HSET token:{key} api_key {key} {fields}\r\n"));
            count += 1;
        }
        // Small enough for Redis to buffer all answers meanwhile.
        self.connection.get_mut().write_all(commands.as_bytes())?;
        for _ in 0..count {
            self.line()?;
        }
        Ok(())
    }

    /// Calls of each command since the server started, other than the `INFO` asked here.
    ///
    /// # Errors
    /// When Redis does not answer as documented.
    pub fn calls(&mut self) -> Result<Calls, Failure> {
        self.connection.get_mut().write_all(b"INFO commandstats\r\n")?;
        let length: usize =
            self.line()?.strip_prefix('$').ok_or("INFO did not answer with a string")?.parse()?;
        let mut text = vec![0; length + 2];
        self.connection.read_exact(&mut text)?;
        let text = String::from_utf8(text)?;
        let calls = text.lines().filter_map(|line| {
            let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let calls = figures.split(',').next()?.parse().ok()?;
            (command != "info").then(|| (command.to_owned(), calls))
        });
        Ok(calls.collect())
    }

    /// One line of an answer, without its end.
    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        if line.starts_with('-') || line.is_empty() {
            return Err(format!("redis answered {line:?}").into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// The calls between two counts.
pub fn difference(before: &Calls, after: &Calls) -> Calls {
    let since = |(command, calls): (&String, &u64)| {
        let new = calls - before.get(command).copied().unwrap_or(0);
        (new > 0).then(|| (command.clone(), new))
    };
    after.iter().filter_map(since).collect()
}

/// How many of these calls crossed the network.
pub fn operations(calls: &Calls) -> u64 {
    calls
        .iter()
        .filter(|(command, _)| !INSIDE_SCRIPTS.contains(&command.as_str()))
        .map(|(_, calls)| calls)
        .sum()
}
