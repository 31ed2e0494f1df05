//! One multiplexed connection to Redis: a deadline around every call, a breaker before it, and a
//! connection that is replaced when it breaks or falls silent.
//!
//! The client library is used for the protocol alone. Reconnecting, deadlines and the breaker are
//! decided here, so that nothing queues behind a dead store and nothing hangs. This file knows no
//! keys, records or quotas.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::config::{Config, ConnectionConfig, TcpConfig, UnresponsiveConfig};
use fred::types::{ConnectHandle, FromValue, Key, Value};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::{OnOperation, RedisUrlError};
use crate::secret::Secret;
use crate::store::StoreError;
use crate::store::breaker::{Breaker, Transition};

/// The longest pause between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// How long an attempt to connect may take at least: DNS, TCP and TLS, then again for the first
/// commands.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A script, and which entry of a connection's table holds its hash.
#[derive(Clone, Copy)]
pub(super) struct Script {
    source: &'static str,
    index: usize,
}

pub(super) const TAKE: Script = Script { source: include_str!("scripts/take.lua"), index: 0 };
pub(super) const PUT: Script = Script { source: include_str!("scripts/put.lua"), index: 1 };
pub(super) const HEARTBEAT: Script =
    Script { source: include_str!("scripts/heartbeat.lua"), index: 2 };
pub(super) const ADJUST: Script = Script { source: include_str!("scripts/adjust.lua"), index: 3 };
const SCRIPTS: [Script; 4] = [TAKE, PUT, HEARTBEAT, ADJUST];

/// Calls Redis. See the file's comment.
pub(super) struct RedisClient {
    config: Config,
    timeout: Duration,
    on_operation: OnOperation,
    breaker: Mutex<Breaker>,
    open: AtomicBool,
    available: AtomicBool,
    answered: AtomicBool,
    opened: Notify,
    refusal_logged: Mutex<Option<Instant>>,
    link: watch::Receiver<Link>,
    /// Taken by the task that keeps the connection.
    link_keeper: Mutex<Option<watch::Sender<Link>>>,
}

/// Where the connection stands.
#[derive(Clone)]
enum Link {
    /// The first attempt since the start, or since a connection was lost, is under way.
    Pending,
    /// The last attempt failed, and why; the next one follows.
    Down(Arc<str>),
    /// Connected.
    Up(Arc<Connection>),
}

/// A connection that answered, with its scripts loaded.
pub(super) struct Connection {
    pub(super) client: Client,
    hashes: [String; SCRIPTS.len()],
    retired: Notify,
}

impl RedisClient {
    /// A client of the server `url` names. Nothing is connected before [`RedisClient::start`].
    pub(super) fn new(
        url: &Secret,
        timeout: Duration,
        on_operation: OnOperation,
    ) -> Result<Self, RedisUrlError> {
        let config = server_config(url)?;
        let (link_keeper, link) = watch::channel(Link::Pending);
        Ok(Self {
            config,
            timeout,
            on_operation,
            breaker: Mutex::default(),
            open: AtomicBool::new(false),
            available: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            opened: Notify::new(),
            refusal_logged: Mutex::default(),
            link,
            link_keeper: Mutex::new(Some(link_keeper)),
        })
    }

    /// Spawns the task that keeps the connection, on the present runtime; it ends with the client.
    pub(super) fn start(&self) {
        if let Some(keeper) = self.link_keeper.lock().take() {
            tokio::spawn(keep_connected(
                self.config.clone(),
                self.timeout.max(MIN_CONNECT_TIMEOUT),
                keeper,
            ));
        }
    }

    /// Whether Redis has answered, and has not failed repeatedly since.
    pub(super) fn available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    /// Whether Redis has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Returns when the breaker has opened since the last time this returned.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Gives the present connection up, so that a new one replaces it.
    pub(super) fn abandon_connection(&self) {
        if let Link::Up(connection) = &*self.link.borrow() {
            connection.retired.notify_one();
        }
    }

    /// Runs one operation, unless the breaker is open.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        if self.open.load(Ordering::Acquire) {
            (self.on_operation)(operation, StoreError::Open.outcome(), Duration::ZERO);
            return Err(StoreError::Open);
        }
        self.probe(operation, run).await
    }

    /// Runs one operation whatever the breaker says.
    pub(super) async fn probe<T, F>(
        &self,
        operation: &'static str,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let answer = timeout(self.timeout, async {
            let mut link = self.link.clone();
            let connection = connected(&mut link).await?;
            tokio::select! {
                biased;
                result = run(connection) => result,
                // What reaches a connection in the moment it ends is never answered.
                _ = link.changed() => Err(Error::new(ErrorKind::IO, "the connection was lost")),
            }
        })
        .await;
        let (result, serves) = match answer {
            Ok(Ok(value)) => (Ok(value), true),
            Ok(Err(error)) => {
                // What Redis says about one key's data is no reason to stop asking about the others.
                let serves = concerns_data(&error);
                if serves {
                    self.log_refusal(operation, &error);
                }
                (Err(StoreError::Failed(reason(&error))), serves)
            }
            Err(_) => (Err(StoreError::Timeout(self.timeout)), false),
        };
        self.count(serves, result.as_ref().err());
        let outcome = result.as_ref().map_or_else(StoreError::outcome, |_| "ok");
        (self.on_operation)(operation, outcome, started.elapsed());
        result
    }

    /// Names a key that somebody must repair: once a second at most, however often it is asked for.
    fn log_refusal(&self, operation: &str, error: &Error) {
        let now = Instant::now();
        let mut logged = self.refusal_logged.lock();
        if logged.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1)) {
            *logged = Some(now);
            drop(logged);
            log::warn!("redis refused `{operation}`: {}", error.details());
        }
    }

    fn count(&self, serves: bool, error: Option<&StoreError>) {
        let now = Instant::now();
        let mut breaker = self.breaker.lock();
        let transition = if serves { breaker.succeeded(now) } else { breaker.failed(now) };
        self.open.store(breaker.is_open(), Ordering::Release);
        if serves {
            self.available.store(true, Ordering::Release);
            self.answered.store(true, Ordering::Release);
        } else if breaker.is_open() {
            self.available.store(false, Ordering::Release);
        }
        drop(breaker);
        match transition {
            Some(Transition::Opened) => {
                let reason = error.map(ToString::to_string).unwrap_or_default();
                log::warn!(
                    "redis failed repeatedly and is not asked until a probe succeeds: {reason}"
                );
                self.opened.notify_one();
            }
            Some(Transition::Closed(after)) => {
                log::info!("redis answers again after {:.1} s", after.as_secs_f64())
            }
            None => {}
        }
    }
}

/// The present connection; waits while the first attempt to get one is under way. A later change of
/// `link` means that the connection is gone.
async fn connected(link: &mut watch::Receiver<Link>) -> Result<Arc<Connection>, Error> {
    loop {
        match &*link.borrow_and_update() {
            Link::Up(connection) => return Ok(Arc::clone(connection)),
            Link::Down(reason) => return Err(Error::new(ErrorKind::IO, reason.to_string())),
            Link::Pending => {}
        }
        if link.changed().await.is_err() {
            return Err(Error::new(ErrorKind::IO, "the runtime of the connection has ended"));
        }
    }
}

impl Connection {
    /// Runs `script` with the keys and arguments `input` builds: by its hash, or by its source when
    /// the server has forgotten it.
    pub(super) async fn eval<R: FromValue>(
        &self,
        script: Script,
        input: impl Fn() -> (Vec<Key>, Vec<Value>),
    ) -> Result<R, Error> {
        let (keys, arguments) = input();
        match self.client.evalsha(self.hashes[script.index].as_str(), keys, arguments).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let (keys, arguments) = input();
                self.client.eval(script.source, keys, arguments).await
            }
            result => result,
        }
    }
}

/// Whether Redis answered that a key holds something else than expected.
fn concerns_data(error: &Error) -> bool {
    let details = error.details();
    details.starts_with("WRONGTYPE")
        || details.starts_with("BADCOUNTER")
        || *error.kind() == ErrorKind::Parse
}

/// What went wrong, for people: the library hands errors of the system on as their `Debug` text.
fn reason(error: &Error) -> String {
    let details = error.details();
    let inner = ["message: ", "error: "].iter().find_map(|name| details.split_once(name));
    let text = match inner.and_then(|(_, rest)| rest.strip_suffix(" }")) {
        Some(text) if *error.kind() == ErrorKind::IO => text.trim_matches('"'),
        _ => return details.to_owned(),
    };
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect()
}

fn server_config(url: &Secret) -> Result<Config, RedisUrlError> {
    let parsed =
        url::Url::parse(url.expose()).map_err(|error| RedisUrlError::Form(error.to_string()))?;
    let tls = match parsed.scheme() {
        "redis" => false,
        "rediss" => true,
        _ => return Err(RedisUrlError::Scheme),
    };
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(RedisUrlError::Host);
    }
    let database = parsed.path().trim_start_matches('/');
    if !database.is_empty() && database.parse::<u8>().is_err() {
        return Err(RedisUrlError::Database);
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(RedisUrlError::Query);
    }
    if !parsed.username().is_empty() && parsed.password().is_none_or(str::is_empty) {
        return Err(RedisUrlError::Credentials);
    }
    if tls {
        // The TLS library wants one process-wide choice; whoever chose first is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Config::from_url_centralized(url.expose()).map_err(|error| match error.kind() {
        ErrorKind::Tls => RedisUrlError::Tls(error.details().into()),
        _ => RedisUrlError::Credentials,
    })
}

async fn keep_connected(config: Config, connect_timeout: Duration, link: watch::Sender<Link>) {
    let mut failures = 0;
    loop {
        let connected = tokio::select! {
            () = link.closed() => return,
            connected = connect(&config, connect_timeout) => connected,
        };
        match connected {
            Ok((connection, mut driver)) => {
                failures = 0;
                link.send_replace(Link::Up(Arc::clone(&connection)));
                tokio::select! {
                    () = link.closed() => return,
                    _ = &mut driver.0 => log::debug!("the connection to redis ended"),
                    () = connection.retired.notified() => log::debug!("the connection to redis is silent"),
                }
                link.send_replace(Link::Pending);
            }
            Err(error) => {
                failures += 1;
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

/// A random pause before the next attempt, growing with the failures so far.
fn backoff(failures: u32) -> Duration {
    let ceiling = Duration::from_millis(25).saturating_mul(1 << failures.min(6)).min(MAX_BACKOFF);
    ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The task that reads and writes a connection. Dropping it closes the connection, and whoever waits
/// for an answer gets an error.
struct Driver(ConnectHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(
    config: &Config,
    connect_timeout: Duration,
) -> Result<(Arc<Connection>, Driver), Error> {
    let options = ConnectionConfig {
        connection_timeout: connect_timeout,
        internal_command_timeout: connect_timeout,
        max_command_attempts: 1,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
        ..ConnectionConfig::default()
    };
    // No reconnect policy: a connection that ends is replaced above, and nothing is sent twice.
    let client = Client::new(config.clone(), None, Some(options), None);
    let driver = Driver(client.init().await?);
    let mut hashes = SCRIPTS.map(|_| String::new());
    let load = async {
        for script in SCRIPTS {
            hashes[script.index] = client.script_load(script.source).await?;
        }
        Ok(())
    };
    timeout(connect_timeout, load)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer")))?;
    Ok((Arc::new(Connection { client, hashes, retired: Notify::new() }), driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused_without_their_password() {
        let read = |url: &str| {
            let config = server_config(&Secret::new(url)).unwrap();
            let server = config.server.hosts().pop().unwrap();
            (
                server.host.to_string(),
                server.port,
                config.username,
                config.password,
                config.database,
            )
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("redis://localhost"), ("localhost".into(), 6379, None, None, None));
        assert_eq!(read("redis://localhost:7000/"), ("localhost".into(), 7000, None, None, None));
        assert_eq!(read("redis://:p%40ss@h/3"), ("h".into(), 6379, None, some("p@ss"), Some(3)));
        assert_eq!(
            read("redis://me:pass@[::1]:1"),
            ("[::1]".into(), 1, some("me"), some("pass"), None)
        );
        for (url, expected) in [
            ("hunter2", "not a URL"),
            ("hunter2://host", "redis:// or rediss://"),
            ("redis-cluster://:hunter2@host", "redis:// or rediss://"),
            ("redis://", "no host"),
            ("redis:///0", "no host"),
            ("redis://:hunter2@host/300", "0 to 255"),
            ("redis://:hunter2@host/x", "0 to 255"),
            ("redis://:hunter2@host?timeout=1", "no query"),
            ("redis://hunter2@host", "user:password"),
            ("redis://:hunter2@host:99999", "not a URL"),
        ] {
            let error = server_config(&Secret::new(url)).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

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
