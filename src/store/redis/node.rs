//! A multiplexed connection to a primary, with a breaker in front. The connection is replaced when it breaks, falls
//! silent or leads to a replica.
//!
//! Whether the server answers and whether it takes writes are judged apart: a server that is full, cannot save or has
//! become a replica is still read.
//!
//! The client library speaks the protocol and finds the primary that Sentinels name. This file decides about
//! reconnecting and the breaker, so that no call queues behind a dead server. It knows no other servers.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fred::bytes_utils::Str;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{
    AuthInterface, ClientInterface, ClientLike, LuaInterface, TrackingInterface,
};
use fred::types::client::Invalidation;
use fred::types::config::{Config, ConnectionConfig, ServerConfig, TcpConfig, UnresponsiveConfig};
use fred::types::{ConnectHandle, FromValue, Key, RespVersion, Value};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::errors::{Cause, connection_lost, timed_out};
use super::keys::Keys;
use super::questions::Takes;
use super::scripts::{SCRIPTS, Script};
use crate::base::task::detach;
use crate::store::breaker::{Breaker, Transition};
use crate::store::{OnRecordChange, RecordChange};

/// The longest pause between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Probes in a row that must fail before the connection is given up for a new one.
const FAILURES_TO_RECONNECT: u32 = 3;

/// The least age of a connection that is replaced because another server may be the primary: the next one may lead to the
/// same server, and is given twice the time then, up to the second number.
const REPLACED_AFTER: Duration = Duration::from_secs(1);
const MOST_REPLACED_AFTER: Duration = Duration::from_secs(8);

/// How long calls may be held up by this process without any answer before they count as failed.
const MOST_HELD_UP: Duration = Duration::from_secs(1);

/// A server, or the server that Sentinels name.
pub(super) struct Node {
    /// The name of the server in log lines.
    name: String,
    breakers: Mutex<Breakers>,
    open: AtomicBool,
    refuses_writes: AtomicBool,
    available: AtomicBool,
    failed_probes: AtomicU32,
    signals: Arc<Signals>,
    link: watch::Receiver<Link>,
    /// The task that keeps the connection takes this.
    link_keeper: Mutex<Option<(Config, watch::Sender<Link>)>>,
}

/// Signals of nodes to the client. The nodes of a cluster share them.
#[derive(Default)]
pub(super) struct Signals {
    /// Notified when a breaker opens.
    pub(super) opened: Notify,
    /// Called when token records change. Without it, the connection does not ask for changes.
    pub(super) on_record: OnceLock<OnRecordChange>,
    /// The names of the keys that may change.
    pub(super) keys: Keys,
}

/// Both judgements of a server.
#[derive(Default)]
struct Breakers {
    /// Open while the server does not answer.
    answers: Breaker,
    /// Open while the server answers and refuses writes.
    writes: Breaker,
    /// When a call was held up by this process, if no answer has come since.
    held_up_since: Option<Instant>,
}

/// What the outcome of a call says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server answered.
    Serves,
    /// The server answered that it takes no writes.
    RefusesWrites,
    /// The server did not answer, or cannot serve.
    Fails,
    /// Nothing: this process did not wait long enough to tell.
    Unknown,
}

/// The state of the connection.
#[derive(Clone)]
enum Link {
    /// The first attempt since the start, or since a connection was lost, is under way.
    Pending,
    /// The last attempt failed for this reason; the next attempt follows.
    Down(Arc<str>),
    /// Connected.
    Up(Arc<Session>),
}

/// A connection that answered, with its scripts loaded.
pub(super) struct Session {
    pub(super) client: Client,
    hashes: [Str; SCRIPTS.len()],
    pub(super) takes: Takes,
    /// Notified when the connection must be given up.
    retired: Notify,
    /// Wakes the keeper when the connection should be replaced, and serves until then; heard once it is old enough.
    demoted: Notify,
    /// Whether Sentinels name the primary.
    has_sentinels: bool,
    /// The runtime that reads the answers.
    pub(super) home: Handle,
    /// Never carries a value; the channel closes with the connection.
    open: watch::Receiver<()>,
}

impl Node {
    /// A node that `config` leads to. Nothing is connected before [`Node::start`].
    pub(super) fn new(name: String, config: Config, signals: Arc<Signals>) -> Self {
        let (link_keeper, link) = watch::channel(Link::Pending);
        Self {
            name,
            breakers: Mutex::default(),
            open: AtomicBool::new(false),
            refuses_writes: AtomicBool::new(false),
            available: AtomicBool::new(false),
            failed_probes: AtomicU32::new(0),
            signals,
            link,
            link_keeper: Mutex::new(Some((config, link_keeper))),
        }
    }

    /// Spawns the task that keeps the connection, on the present runtime; it ends with the node.
    pub(super) fn start(&self, connect_timeout: Duration) {
        if let Some((config, keeper)) = self.link_keeper.lock().take() {
            detach(keep_connected(config, connect_timeout, keeper, Arc::clone(&self.signals)));
        }
    }

    /// Whether the server has answered, and has neither failed nor refused writes repeatedly since.
    pub(super) fn available(&self) -> bool {
        self.available.load(Ordering::Acquire) && !self.refuses_writes()
    }

    /// Whether the server has refused writes repeatedly, so that only probes may write.
    pub(super) fn refuses_writes(&self) -> bool {
        self.refuses_writes.load(Ordering::Acquire)
    }

    /// Whether the server has failed repeatedly, so that only probes may ask it.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The connection, if there is one at the moment.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        match &*self.link.borrow() {
            Link::Up(session) => Some(Arc::clone(session)),
            Link::Pending | Link::Down(_) => None,
        }
    }

    /// Runs `run` on the connection; waits while the first attempt to get one is under way.
    pub(super) async fn ask<T, F>(&self, run: impl FnOnce(Arc<Session>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let session = match self.session() {
            Some(session) => session,
            None => connected(self.link.clone()).await?,
        };
        Self::ask_through(session, run).await
    }

    /// Runs `run` on `session`.
    pub(super) async fn ask_through<T, F>(
        session: Arc<Session>,
        run: impl FnOnce(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let result = run(Arc::clone(&session)).await;
        match result.as_ref().map_err(Cause::of) {
            Err(Cause::Replica) => session.retired.notify_one(),
            // Another server may be the primary by now. Replicas follow it only where Sentinels choose it.
            Err(Cause::ReadOnly) => session.demoted.notify_waiters(),
            Err(Cause::TooFewReplicas) if session.has_sentinels => session.demoted.notify_waiters(),
            _ => {}
        }
        result
    }

    /// Counts the outcome of a call, and logs the reason when it changes how the server is used. A probe is a write.
    pub(super) fn count(&self, verdict: Verdict, is_probe: bool, reason: impl FnOnce() -> String) {
        let now = Instant::now();
        let mut breakers = self.breakers.lock();
        // A busy process says nothing about the server, unless that goes on while no answer comes at all.
        let verdict = match verdict {
            Verdict::Unknown => {
                let since = *breakers.held_up_since.get_or_insert(now);
                match now.saturating_duration_since(since) >= MOST_HELD_UP {
                    true => Verdict::Fails,
                    false => return,
                }
            }
            verdict => verdict,
        };
        let answers = match verdict {
            Verdict::Serves | Verdict::RefusesWrites => breakers.answers.succeeded(now),
            Verdict::Fails => breakers.answers.failed(now),
            Verdict::Unknown => None,
        };
        if verdict != Verdict::Fails {
            breakers.held_up_since = None;
        }
        let writes = match verdict {
            // A take that grants nothing writes nothing: only a probe shows that writes succeed.
            Verdict::Serves if is_probe => breakers.writes.succeeded(now),
            Verdict::RefusesWrites => breakers.writes.failed(now),
            _ => None,
        };
        let is_open = breakers.answers.is_open();
        self.open.store(is_open, Ordering::Release);
        self.refuses_writes.store(breakers.writes.is_open(), Ordering::Release);
        if verdict != Verdict::Fails {
            self.available.store(true, Ordering::Release);
        } else if is_open {
            self.available.store(false, Ordering::Release);
        }
        drop(breakers);
        self.tell(answers, writes, reason);
        if is_probe {
            self.count_probe(verdict != Verdict::Fails);
        }
    }

    fn tell(
        &self,
        answers: Option<Transition>,
        writes: Option<Transition>,
        reason: impl FnOnce() -> String,
    ) {
        let name = &self.name;
        if let Some(Transition::Closed(after)) = answers {
            log::info!("{name} answers again after {:.1} s", after.as_secs_f64());
        }
        if let Some(Transition::Closed(after)) = writes {
            log::info!("{name} takes writes again after {:.1} s", after.as_secs_f64());
        }
        let what = match (answers, writes) {
            (Some(Transition::Opened), _) => "failed repeatedly and is not asked",
            (_, Some(Transition::Opened)) => "refuses writes and is only read",
            _ => return,
        };
        log::warn!("{name} {what} until a probe succeeds: {}", reason());
        self.signals.opened.notify_one();
    }

    /// Counts a probe. Where several fail in a row, the connection is replaced: it may be silent.
    fn count_probe(&self, serves: bool) {
        if serves {
            self.failed_probes.store(0, Ordering::Relaxed);
        } else if self.failed_probes.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_TO_RECONNECT {
            self.failed_probes.store(0, Ordering::Relaxed);
            if let Some(session) = self.session() {
                session.retired.notify_one();
            }
        }
    }
}

/// The present connection; waits while the first attempt to get one is under way.
async fn connected(mut link: watch::Receiver<Link>) -> Result<Arc<Session>, Error> {
    loop {
        match &*link.borrow_and_update() {
            Link::Up(session) => return Ok(Arc::clone(session)),
            Link::Down(reason) => return Err(Error::new(ErrorKind::IO, reason.to_string())),
            Link::Pending => {}
        }
        if link.changed().await.is_err() {
            return Err(Error::new(ErrorKind::IO, "the runtime of the connection has ended"));
        }
    }
}

impl Session {
    /// Waits for an answer as long as the connection lasts, because a call that is sent at the moment the connection
    /// ends is never answered.
    pub(super) async fn while_open<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let mut open = self.open.clone();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            _ = open.changed() => Err(connection_lost()),
        }
    }

    /// Runs `script` with the keys and arguments `input` builds: by its hash, or by its source when
    /// the server has forgotten it.
    pub(super) async fn eval<R: FromValue>(
        &self,
        script: Script,
        input: impl Fn() -> (Vec<Key>, Vec<Value>),
    ) -> Result<R, Error> {
        let (keys, arguments) = input();
        match self.eval_loaded(script, keys, arguments).await {
            Err(error) if Cause::of(&error) == Cause::NoScript => {
                let (keys, arguments) = input();
                self.client.eval(script.source, keys, arguments).await
            }
            result => result,
        }
    }

    /// Runs `script`, which the server may have forgotten.
    pub(super) async fn eval_loaded<R: FromValue>(
        &self,
        script: Script,
        keys: Vec<Key>,
        arguments: Vec<Value>,
    ) -> Result<R, Error> {
        self.client.evalsha(self.hashes[script.index].clone(), keys, arguments).await
    }
}

/// The text of an error for people. The library passes errors of the system on as their `Debug` text.
pub(super) fn reason(error: &Error) -> String {
    let details = error.details();
    let inner = ["message: ", "error: "].iter().find_map(|name| details.split_once(name));
    let text = match inner.and_then(|(_, rest)| rest.strip_suffix(" }")) {
        Some(text) if *error.kind() == ErrorKind::IO => text.trim_matches('"'),
        _ => return details.to_owned(),
    };
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect()
}

async fn keep_connected(
    config: Config,
    connect_timeout: Duration,
    link: watch::Sender<Link>,
    signals: Arc<Signals>,
) {
    let on_record = signals.on_record.get();
    let doubt = || {
        if let Some(on_record) = on_record {
            on_record(RecordChange::Unknown);
        }
    };
    let mut failures = 0;
    let mut demotable_after = REPLACED_AFTER;
    // A connection that serves until the next one does.
    let mut demoted: Option<Driver> = None;
    loop {
        let connected = tokio::select! {
            () = link.closed() => return,
            connected = connect(&config, connect_timeout, on_record.map(|_| &signals.keys)) => connected,
        };
        match connected {
            Ok((session, mut driver)) => {
                failures = 0;
                let mut changes = session.client.invalidation_rx();
                link.send_replace(Link::Up(Arc::clone(&session)));
                if let Some(demoted) = demoted.take() {
                    // Changes since its end were missed. Calls that are under way get their answers.
                    doubt();
                    detach(async move {
                        sleep(connect_timeout).await;
                        drop(demoted);
                    });
                }
                let since = Instant::now();
                let is_demoted = tokio::select! {
                    () = link.closed() => return,
                    _ = &mut driver.task => {
                        log::debug!("the connection to redis ended");
                        false
                    }
                    () = session.retired.notified() => {
                        log::debug!("the connection to redis is given up");
                        false
                    }
                    () = async { sleep(demotable_after).await; session.demoted.notified().await } => {
                        log::debug!("the connection to redis may lead to a former primary");
                        true
                    }
                    () = hear(&mut changes, on_record, &signals.keys) => false,
                };
                // Where there is no other primary, looking for one more and more seldom spares the records in memory.
                demotable_after = match is_demoted && since.elapsed() < demotable_after * 2 {
                    true => (demotable_after * 2).min(MOST_REPLACED_AFTER),
                    false => REPLACED_AFTER,
                };
                if is_demoted {
                    demoted = Some(driver);
                } else {
                    link.send_replace(Link::Pending);
                    // Changes from here on are missed.
                    doubt();
                }
            }
            Err(error) => {
                failures += 1;
                if demoted.take().is_some() {
                    doubt();
                }
                let reason = reason(&error);
                log::debug!("no connection to redis: {reason}");
                link.send_replace(Link::Down(reason.into()));
            }
        }
        tokio::select! {
            () = link.closed() => return,
            () = sleep(backoff(failures)) => {}
        }
    }
}

/// Passes on changes of records for as long as the connection lasts.
async fn hear(
    changes: &mut broadcast::Receiver<Invalidation>,
    on_record: Option<&OnRecordChange>,
    keys: &Keys,
) {
    let Some(on_record) = on_record else { return std::future::pending().await };
    loop {
        match changes.recv().await {
            Ok(change) if !change.keys.is_empty() => {
                for key in &change.keys {
                    let key = key.as_str().unwrap_or_default();
                    let record = key.strip_prefix(keys.records()).map(RecordChange::Of);
                    let revocation =
                        || key.strip_prefix(keys.revocations()).map(RecordChange::Revocation);
                    on_record(record.or_else(revocation).unwrap_or(RecordChange::Unknown));
                }
            }
            // All keys were deleted, or changes came faster than they were read.
            Ok(_) | Err(RecvError::Lagged(_)) => on_record(RecordChange::Unknown),
            // The connection has ended, which the driver reports.
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// A random pause before the next attempt, growing with the failures so far.
pub(super) fn backoff(failures: u32) -> Duration {
    let ceiling = Duration::from_millis(25).saturating_mul(1 << failures.min(6)).min(MAX_BACKOFF);
    ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The task that reads and writes a connection. Dropping it closes the connection, and calls that wait for an answer
/// get an error.
pub(super) struct Driver {
    task: ConnectHandle,
    _open: watch::Sender<()>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn connect(
    config: &Config,
    connect_timeout: Duration,
    tells_changes_of: Option<&Keys>,
) -> Result<(Arc<Session>, Driver), Error> {
    let options = ConnectionConfig {
        connection_timeout: connect_timeout,
        internal_command_timeout: connect_timeout,
        max_command_attempts: 1,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
        ..ConnectionConfig::default()
    };
    // No reconnect policy: a connection that ends is replaced above, and no call is sent twice.
    let mut config = config.clone();
    // The library writes HELLO as an inline command, in which a space or a quote of a credential ends an argument, and
    // AUTH as an array. Without credentials HELLO is sent, because the library would send PING instead, which a Redis
    // that cannot save refuses.
    let has_credentials = config.password.is_some();
    config.version = if has_credentials { RespVersion::RESP2 } else { RespVersion::RESP3 };
    if let ServerConfig::Sentinel { hosts, .. } = &mut config.server {
        // The library asks them in order. A Sentinel that accepts and stays silent must not always be the first.
        fastrand::shuffle(hosts);
    }
    let has_sentinels = matches!(config.server, ServerConfig::Sentinel { .. });
    let client = Client::new(config, None, Some(options), None);
    let (closes, open) = watch::channel(());
    let driver = Driver { task: client.init().await?, _open: closes };
    let mut hashes = SCRIPTS.map(|_| Str::default());
    let load = async {
        for script in SCRIPTS {
            hashes[script.index] = client.script_load(script.source).await?;
        }
        if let Some(keys) = tells_changes_of {
            // Only RESP3 tells of changes on the connection that asks for them.
            if has_credentials {
                client.hello(RespVersion::RESP3, None, None).await?;
            }
            let prefixes = vec![keys.records().to_owned(), keys.revocations().to_owned()];
            client
                .client_tracking::<(), _, _>("ON", None, prefixes, true, false, false, false)
                .await?;
        }
        Ok(())
    };
    timeout(connect_timeout, load).await.unwrap_or_else(|_| Err(timed_out()))?;
    let session = Session {
        client,
        hashes,
        takes: Takes::default(),
        retired: Notify::new(),
        demoted: Notify::new(),
        has_sentinels,
        home: Handle::current(),
        open,
    };
    Ok((Arc::new(session), driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_said_in_words() {
        use std::io;
        let custom = io::Error::new(io::ErrorKind::InvalidData, "name or service not known");
        for (error, text) in [
            (Error::from(io::Error::from_raw_os_error(libc::ECONNREFUSED)), "connection refused"),
            (Error::from(custom), "name or service not known"),
            (Error::new(ErrorKind::IO, "the connection was lost"), "the connection was lost"),
            (
                Error::new(ErrorKind::Auth, "WRONGPASS message: \"x\" }"),
                "WRONGPASS message: \"x\" }",
            ),
        ] {
            assert_eq!(reason(&error), text);
        }
    }

    #[test]
    fn pauses_grow_to_a_second_and_vary() {
        for (failures, least, most) in
            [(0, 12, 25), (1, 25, 50), (3, 100, 200), (6, 500, 1_000), (99, 500, 1_000)]
        {
            for _ in 0..100 {
                let pause = backoff(failures).as_millis();
                assert!((least..=most).contains(&pause), "{failures} failures: {pause} ms");
            }
        }
    }
}
