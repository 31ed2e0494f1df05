//! Puts the gateway together: state, services, signals; and runs it until it has drained.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use log::info;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::listening::Service;
use pingora_proxy::http_proxy;

use crate::admission::Admission;
use crate::auth::cache::{CacheOutcome, Records, Revocations, StoreCache};
use crate::auth::{Authenticator, Stored};
use crate::base::clock::{Clock, SystemClock};
use crate::config::{Config, StartupConfig};
use crate::limit::ledger::{FailurePolicy, Ledger};
use crate::listener::accept::Connections;
use crate::listener::sockets::{BindError, Bound, BoundSocket, Listening};
use crate::policy::Policy;
use crate::proxy::{Proxy, Readiness, problem};
use crate::store::{
    self, Membership, RecordChange, RecordReader, RecordStore, Remote, StoreUrlError, Stores,
};
use crate::telemetry::metrics::METRICS;

pub mod background;
pub mod echo;
pub mod learn;
pub mod reload;
pub mod shutdown;

use background::Background;
use echo::Echo;
use reload::{PendingReload, Reload};
use shutdown::{Drain, Signals};

/// Subjects whose grants are kept in memory, at most.
const MAX_SUBJECTS: usize = 1_000_000;

/// So many worker threads were measured to share one lock for their timers without harm.
const FEW_THREADS: usize = 2;

/// Reads the configuration afresh; the error is text for people.
pub type Load = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `redis.url` names no store.
    #[error("redis.url: {0}")]
    Store(#[from] StoreUrlError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The machine refuses something that every start needs.
    #[error("{0}")]
    System(String),
}

/// A gateway about to run.
pub struct Gateway {
    config: StartupConfig,
    policy: Arc<ArcSwap<Policy>>,
    upgrade: bool,
    bound: Bound,
    echo: Option<BoundSocket>,
}

impl Gateway {
    /// Compiles `config` and binds its addresses, unless a predecessor will hand them over
    /// (`upgrade`).
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn prepare(config: Config, upgrade: bool) -> Result<Self, StartError> {
        let Config { startup: config, live } = config;
        let policy = Policy::compile(live, None);
        make_ready(&policy)?;
        let bound = if upgrade { Bound::default() } else { Bound::bind(&config)? };
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        Ok(Self { config, policy, upgrade, bound, echo: None })
    }

    /// Runs the echo on `socket`, beside the gateway.
    pub fn with_echo(mut self, socket: BoundSocket) -> Self {
        self.echo = Some(socket);
        self
    }

    /// The bound address of the first listener, when it is known already.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.bound.first()
    }

    /// Runs until a signal has ended it and what was in flight is done.
    ///
    /// # Errors
    /// [`StartError`] when it cannot begin to.
    pub fn run(self, load: Load, pending: PendingReload) -> Result<(), StartError> {
        let Self { config, policy, upgrade, bound, echo } = self;
        METRICS.set_build_info(env!("CARGO_PKG_VERSION"), env!("TOLLGATE_COMMIT"));
        METRICS.config_generation.set(1);
        METRICS.config_last_reload_success.set(1);

        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let Stores { records, quota, membership, is_shared } = open_store(&config, &clock)?;
        let ledger = Arc::new(Ledger::new(quota, Arc::clone(&clock), MAX_SUBJECTS));
        // Without other processes that write records, those of the configuration are all there are.
        let stored = is_shared.then(|| stored(&config, records, &clock));
        let gateways = Arc::clone(membership.gateways());
        let admission =
            Admission::new(Authenticator::new(stored), Arc::clone(&ledger), clock, move || {
                gateways.get()
            });
        let readiness = Arc::new(Readiness {
            draining: AtomicBool::new(false),
            store_serves: store_serves(Arc::clone(&membership)),
        });
        let proxy = Proxy::new(Arc::clone(&policy), admission, Arc::clone(&readiness));

        let conf = server_conf(&config);
        let opt = Opt { upgrade, ..Opt::default() };
        let mut server = Server::new_with_opt_and_conf(opt, conf);
        server.bootstrap();

        let drain = Drain::new(readiness, Arc::clone(&ledger), &config);
        let connections = Connections::new(
            http_proxy(&server.configuration, proxy),
            Arc::clone(&policy),
            problem::closing_response,
        );
        let mut service = Service::new("gateway".into(), connections);
        service.threads = Some(config.server.threads);
        let addresses = config.listeners.iter().map(|listener| listener.address);
        server.add_service(
            Listening::new(service, addresses, bound.listeners, "listening", drain.listeners())
                .on_start({
                    let membership = Arc::clone(&membership);
                    move || membership.start()
                }),
        );
        if let Some(address) = config.metrics {
            let mut service = pingora_prometheus::prometheus_http_service();
            service.threads = Some(1);
            let close = drain.never();
            let metrics = Listening::new(service, [address], bound.metrics, "metrics", close);
            server.add_service(metrics);
        }
        if let Some(echo) = echo {
            let mut service = Service::new("echo".into(), HttpServer::new_app(Echo));
            service.threads = Some(1);
            let address = echo.configured();
            let close = drain.never();
            server.add_service(Listening::new(service, [address], vec![echo], "echo", close));
        }
        let reload = Reload::new(load, pending, config, Arc::clone(&policy));
        server.add_service(Background::service(reload, membership, ledger, policy));
        info!("tollgate {} starts", env!("CARGO_PKG_VERSION"));
        server.run(RunArgs { shutdown_signal: Box::new(Signals::new(drain)) });
        info!("stopped");
        Ok(())
    }
}

/// Names and keys must not make the first requests fail, so they are looked up before the first one comes.
fn make_ready(policy: &Policy) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::System(format!("no event loop: {error}")))?;
    runtime.block_on(learn::learn(policy));
    runtime.shutdown_background();
    Ok(())
}

fn server_conf(config: &StartupConfig) -> ServerConf {
    let defaults = ServerConf::default();
    ServerConf {
        threads: 1,
        // A single thread has nobody to share work with, and does without what that takes. With several,
        // tasks would wait for a busy one while others are idle.
        work_stealing: config.server.threads > 1,
        // The grace period is spent by `shutdown::Drain`, which ends it as soon as nothing is in
        // flight; Pingora's own serves the hand-over to a successor.
        grace_period_seconds: Some(config.server.graceful_shutdown_timeout_seconds),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: config.server.upstream_keepalive_pool_size,
        upgrade_sock: config.server.upgrade_sock.clone(),
        fast_timeout_to_tokio_threshold_seconds: match config.server.threads {
            // Those of a second and more. Tokio forgets a timer that is dropped; Pingora's own stay until
            // they are due, and read the clock whenever one is prepared.
            ..=FEW_THREADS => Some(0),
            // But Tokio's are behind one lock, Pingora's each thread's own.
            _ => defaults.fast_timeout_to_tokio_threshold_seconds,
        },
        ..defaults
    }
}

/// Opens the store that a configuration names. Nothing is connected yet.
pub(crate) fn open_store(
    config: &StartupConfig,
    clock: &Arc<dyn Clock>,
) -> Result<Stores, StoreUrlError> {
    let remote = config.redis.as_ref();
    let remote = remote.map(|store| Remote {
        url: store.url.clone(),
        timeout: store.timeout,
        prefix: store.prefix.clone(),
    });
    let on_operation = Arc::new(|operation, outcome, elapsed| {
        METRICS.store_operation(operation, outcome, elapsed);
    });
    store::open(remote.as_ref(), Arc::clone(clock), on_operation)
}

/// Caches of what the store says of tokens, which hear of changes.
fn stored(config: &StartupConfig, store: Arc<dyn RecordStore>, clock: &Arc<dyn Clock>) -> Stored {
    let rules = config.token_cache;
    let on_lookup = |outcome| {
        let lookups = &METRICS.token_cache;
        let counter = match outcome {
            CacheOutcome::Hit => &lookups.hit,
            CacheOutcome::Miss => &lookups.miss,
            CacheOutcome::Stale => &lookups.stale,
        };
        counter.inc();
    };
    let reader: Arc<dyn RecordReader> = Arc::clone(&store) as _;
    let records = Records(Arc::clone(&reader));
    let records = StoreCache::new(records, Arc::clone(clock), rules, on_lookup);
    let revocations = StoreCache::new(Revocations(reader), Arc::clone(clock), rules, on_lookup);
    // Weak, because the caches hold the store, and the store would hold the caches.
    let told = (Arc::downgrade(&records), Arc::downgrade(&revocations));
    store.on_record_change(Arc::new(move |change| {
        let (Some(records), Some(revocations)) = (told.0.upgrade(), told.1.upgrade()) else {
            return;
        };
        match change {
            RecordChange::Of(id) => records.forget(id),
            RecordChange::Revocation(id) => revocations.forget(id),
            RecordChange::Unknown => {
                records.doubt();
                revocations.doubt();
            }
        }
    }));
    Stored { records, revocations }
}

/// Ready means: the store answers, or it has answered once and its failure policy lets requests pass
/// without it. Before its first answer no token can be known.
fn store_serves(store: Arc<dyn Membership>) -> Box<dyn Fn(&Policy) -> bool + Send + Sync> {
    Box::new(move |policy| {
        let lets_through = policy.on_store_failure != FailurePolicy::Deny;
        store.available() || (store.has_answered() && lets_through)
    })
}

/// How long anything that should be quick may take at the end of the process.
pub(crate) const SHORT: Duration = Duration::from_millis(20);
