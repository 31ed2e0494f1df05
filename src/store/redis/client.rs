//! Calls Redis: a deadline around every call, and the way to the node that holds the key.
//!
//! One server, the primary behind Sentinels and a cluster differ here and nowhere above. This file knows neither records
//! nor quotas.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fred::error::{Error, ErrorKind};
use fred::types::{FromValue, Key, Value};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::cluster::{Cluster, slot_of};
use super::errors::Cause;
use super::keys::Keys;
use super::node::{Node, Session, Signals, Verdict, reason};
use super::patience::answer_by;
pub(super) use super::scripts::{ADJUST, HEARTBEAT, IMPORT, PUT, READ, SHORTEN, Script};
use super::takes::{self, Question};
use super::url::{RedisUrl, Topology};
use crate::store::{Grant, OnOperation, OnRecordChange, RecordChange, StoreError};

/// How long an attempt to connect may take at least: DNS, TCP and TLS, then again for the first
/// commands.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often one call may be sent to another node of a cluster.
const REDIRECTIONS: usize = 4;

/// Calls Redis with deadlines.
pub(super) struct RedisClient {
    /// The names of keys.
    pub(super) keys: Keys,
    timeout: Duration,
    on_operation: OnOperation,
    signals: Arc<Signals>,
    answered: AtomicBool,
    /// The runtime that reads the answers.
    home: OnceLock<Handle>,
    refusal_logged: Mutex<Option<Instant>>,
    servers: Servers,
}

/// The servers that calls go to.
#[derive(Clone)]
enum Servers {
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

/// What an operation needs of a server. A server that refuses writes is still read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    /// A write that is sent whatever the breakers say.
    Probe,
}

/// Leads the calls of an operation to the node that holds a key.
pub(super) struct Connection {
    servers: Servers,
    access: Access,
    /// The deadline of the operation.
    deadline: tokio::time::Instant,
    asked: Mutex<Asked>,
}

/// The progress of an operation.
#[derive(Default)]
struct Asked {
    /// The node that was asked last: the outcome of the operation counts for its breaker.
    node: Option<Arc<Node>>,
    /// Whether the breaker of that node refused the operation.
    refused: bool,
}

impl RedisClient {
    /// A client of the servers `url` names. Nothing is connected before [`RedisClient::start`].
    pub(super) fn new(
        url: &RedisUrl,
        timeout: Duration,
        prefix: &str,
        on_operation: OnOperation,
    ) -> Self {
        let keys = Keys::new(prefix);
        let signals = Arc::new(Signals { keys: keys.clone(), ..Signals::default() });
        let servers = match url.topology() {
            Topology::One(config) => {
                Servers::One(Arc::new(Node::new("redis".into(), config, Arc::clone(&signals))))
            }
            Topology::Cluster { seeds, node } => {
                Servers::Cluster(Arc::new(Cluster::new(seeds, node, Arc::clone(&signals))))
            }
        };
        Self {
            keys,
            timeout,
            on_operation,
            signals,
            answered: AtomicBool::new(false),
            home: OnceLock::new(),
            refusal_logged: Mutex::default(),
            servers,
        }
    }

    /// Spawns the tasks that keep connections, on the present runtime; they end with the client.
    pub(super) fn start(&self) {
        let connect_timeout = self.timeout.max(MIN_CONNECT_TIMEOUT);
        // Only the first start counts, as for the connections.
        let _ = self.home.set(Handle::current());
        match &self.servers {
            Servers::One(node) => node.start(connect_timeout),
            Servers::Cluster(cluster) => cluster.start(connect_timeout),
        }
    }

    /// Whether Redis, or some node of the cluster, has answered and has not failed repeatedly since.
    pub(super) fn available(&self) -> bool {
        match &self.servers {
            Servers::One(node) => node.available(),
            Servers::Cluster(cluster) => cluster.available(),
        }
    }

    /// How many servers have failed repeatedly, or refused writes repeatedly.
    pub(super) fn open_breakers(&self) -> usize {
        match &self.servers {
            Servers::One(node) => usize::from(node.is_open() || node.refuses_writes()),
            Servers::Cluster(cluster) => cluster.open_breakers(),
        }
    }

    /// Whether Redis has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether one call may concern any keys together; in a cluster they would have to share a slot.
    pub(super) fn takes_any_keys(&self) -> bool {
        matches!(self.servers, Servers::One(_))
    }

    /// Tells `on_change` of changed records. A second call does nothing.
    pub(super) fn on_record_change(&self, on_change: OnRecordChange) {
        let _ = self.signals.on_record.set(on_change);
    }

    /// Tells that any record may have changed.
    pub(super) fn doubt_records(&self) {
        if let Some(on_change) = self.signals.on_record.get() {
            on_change(RecordChange::Unknown);
        }
    }

    /// Returns when a breaker has opened since the last time this returned.
    pub(super) async fn opened(&self) {
        self.signals.opened.notified().await;
    }

    /// The key of the set of gateways in each node that is to be probed. None while no node is known.
    pub(super) fn gateways_keys(&self) -> Vec<Key> {
        let name = self.keys.gateways();
        match &self.servers {
            Servers::One(_) => vec![name.into()],
            Servers::Cluster(cluster) => cluster.keys(&name),
        }
    }

    /// Runs an operation that writes nothing, unless the node that it concerns has failed repeatedly.
    pub(super) async fn read<T, F>(
        &self,
        operation: &'static str,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.run(operation, Access::Read, run).await
    }

    /// Runs an operation that writes, unless the node that it concerns has failed or refused writes repeatedly.
    pub(super) async fn write<T, F>(
        &self,
        operation: &'static str,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.run(operation, Access::Write, run).await
    }

    /// Runs an operation that writes, whatever the breakers say. Probes that keep failing replace the connection.
    pub(super) async fn probe<T, F>(
        &self,
        operation: &'static str,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.run(operation, Access::Probe, run).await
    }

    async fn run<T, F>(
        &self,
        operation: &'static str,
        access: Access,
        run: impl FnOnce(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let connection = Arc::new(Connection {
            servers: self.servers.clone(),
            access,
            deadline: (started + self.timeout).into(),
            asked: Mutex::default(),
        });
        let answer =
            answer_by(connection.deadline, self.home.get(), run(Arc::clone(&connection))).await;
        let asked = std::mem::take(&mut *connection.asked.lock());
        self.settle(operation, access, &asked, answer, started)
    }

    /// Asks for the quota of one subject, unless the breaker of the node it concerns is open.
    pub(super) async fn take(&self, question: impl Fn() -> Question) -> Result<Grant, StoreError> {
        let operation = "take";
        let up = match &self.servers {
            Servers::One(node) => node.session().map(|session| (node, session)),
            Servers::Cluster(_) => None,
        };
        let Some((node, session)) = up else {
            return self.write(operation, async |redis| redis.take(&question).await).await;
        };
        // Nearly always there is a connection. Then the call that carries the question has a timer, and the question
        // needs no timer of its own.
        let started = Instant::now();
        let refused = node.is_open() || node.refuses_writes();
        let asked = Asked { node: Some(Arc::clone(node)), refused };
        let answer = match asked.refused {
            true => Err(breaker_open()),
            false => {
                let deadline = (started + self.timeout).into();
                let ask = |session| takes::take(session, deadline, &question);
                explain_moved(Node::ask_through(session, ask).await)
            }
        };
        self.settle(operation, Access::Write, &asked, answer, started)
    }

    /// Counts the outcome of an operation, and turns its error into a [`StoreError`].
    fn settle<T>(
        &self,
        operation: &'static str,
        access: Access,
        asked: &Asked,
        answer: Result<T, Error>,
        started: Instant,
    ) -> Result<T, StoreError> {
        if asked.refused {
            (self.on_operation)(operation, StoreError::Open.outcome(), Duration::ZERO);
            return Err(StoreError::Open);
        }
        let (result, verdict) = match answer {
            Ok(value) => (Ok(value), Verdict::Serves),
            Err(error) => {
                let cause = Cause::of(&error);
                let verdict = match cause {
                    // An error about the data of one key is no reason to stop asking about other keys.
                    cause if cause.concerns_key() => Verdict::Serves,
                    cause if cause.refuses_writes() => Verdict::RefusesWrites,
                    Cause::HeldUp => Verdict::Unknown,
                    _ => Verdict::Fails,
                };
                if verdict == Verdict::Serves {
                    self.log_refusal(operation, &error);
                }
                let error = match cause {
                    Cause::TimedOut => StoreError::Timeout(self.timeout),
                    Cause::HeldUp => StoreError::HeldUp(self.timeout),
                    Cause::Unreadable => StoreError::Unreadable(reason(&error)),
                    _ => StoreError::Failed(reason(&error)),
                };
                (Err(error), verdict)
            }
        };
        self.count(asked, verdict, access, result.as_ref().err());
        let outcome = result.as_ref().map_or_else(StoreError::outcome, |_| "ok");
        (self.on_operation)(operation, outcome, started.elapsed());
        result
    }

    fn count(&self, asked: &Asked, verdict: Verdict, access: Access, error: Option<&StoreError>) {
        match (verdict, &self.servers) {
            (Verdict::Serves | Verdict::RefusesWrites, _) => {
                self.answered.store(true, Ordering::Release);
            }
            (Verdict::Fails, Servers::Cluster(cluster)) => cluster.doubt(),
            (Verdict::Fails | Verdict::Unknown, _) => {}
        }
        if let Some(node) = &asked.node {
            let is_probe = access == Access::Probe;
            node.count(verdict, is_probe, || error.map(ToString::to_string).unwrap_or_default());
        }
    }

    /// Logs a key that an operator must repair, once a second at most, because many requests may ask for it.
    fn log_refusal(&self, operation: &str, error: &Error) {
        let now = Instant::now();
        let mut logged = self.refusal_logged.lock();
        if logged.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1)) {
            *logged = Some(now);
            drop(logged);
            log::warn!("redis refused `{operation}`: {}", error.details());
        }
    }
}

impl Connection {
    /// Runs `script` with the keys and arguments `input` builds, where its first key is.
    pub(super) async fn eval<R: FromValue>(
        &self,
        script: Script,
        input: impl Fn() -> (Vec<Key>, Vec<Value>),
    ) -> Result<R, Error> {
        let slot = || input().0.first().map_or(0, slot_of);
        self.at(slot, async |session| session.eval(script, &input).await).await
    }

    /// Asks for the quota of one subject, where its counters are.
    pub(super) async fn take(&self, question: impl Fn() -> Question) -> Result<Grant, Error> {
        let slot = || question().keys.first().map_or(0, slot_of);
        self.to(slot, |session| takes::take(session, self.deadline, &question)).await
    }

    /// Runs `run` where `key` is.
    pub(super) async fn at_key<T, F>(
        &self,
        key: &Key,
        run: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.at(|| slot_of(key), run).await
    }

    /// Runs `run` where a slot of a cluster is, and again where that node sends it, as long as the
    /// connection lasts.
    pub(super) async fn at<T, F>(
        &self,
        slot: impl FnOnce() -> u16,
        run: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let run = async |session: Arc<Session>| {
            // Boxed, because the future of a call is large. Takes are frequent and use `to`, which does not box.
            session.while_open(Box::pin(run(Arc::clone(&session)))).await?
        };
        self.to(slot, run).await
    }

    /// As [`at`](Self::at), for a `run` that itself notices the end of the connection.
    async fn to<T, F>(
        &self,
        slot: impl FnOnce() -> u16,
        run: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match &self.servers {
            Servers::One(node) => explain_moved(self.ask(Arc::clone(node), &run).await),
            // Boxed, so that the state which only a cluster needs does not make the other calls larger.
            Servers::Cluster(cluster) => Box::pin(self.in_cluster(cluster, slot(), run)).await,
        }
    }

    async fn in_cluster<T, F>(
        &self,
        cluster: &Cluster,
        slot: u16,
        run: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut node = cluster.node_of(slot).await?;
        for _ in 0..REDIRECTIONS {
            let result = self.ask(node, &run).await;
            let Err(error) = &result else { return result };
            match cluster.moved(slot, error).await {
                Some(target) => node = target?,
                None => return result,
            }
        }
        self.ask(node, &run).await
    }

    /// The first slot of the node that follows the node of `slot`, to visit each node; `None` after the last.
    pub(super) fn node_after(&self, slot: u16) -> Option<u16> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => cluster.node_after(slot),
        }
    }

    async fn ask<T, F>(
        &self,
        node: Arc<Node>,
        run: impl FnOnce(Arc<Session>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let refused = match self.access {
            Access::Read => node.is_open(),
            Access::Write => node.is_open() || node.refuses_writes(),
            Access::Probe => false,
        };
        *self.asked.lock() = Asked { node: Some(Arc::clone(&node)), refused };
        if refused {
            return Err(breaker_open());
        }
        node.ask(run).await
    }
}

fn breaker_open() -> Error {
    Error::new(ErrorKind::Canceled, "the breaker is open")
}

/// Explains the mistake in the URL when a single server sends calls to another server.
fn explain_moved<T>(result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|error| match Cause::of(&error) == Cause::Moved {
        true => Error::new(
            ErrorKind::Cluster,
            "it is a node of a cluster: the URL must start with redis-cluster://",
        ),
        false => error,
    })
}
