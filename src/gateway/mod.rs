//! Assembles the gateway (state, services, signals) and runs it until it has drained.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use log::info;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_proxy::http_proxy;
use tokio::time::{sleep, timeout};

use crate::admission::{Admission, TokenWatch};
use crate::auth::cache::{
    CacheOutcome, RecordCache, Records, RevocationCache, Revocations, StoreCache,
};
use crate::auth::{Authenticator, Stored};
use crate::base::clock::{Clock, SystemClock};
use crate::base::task::detach;
use crate::config::{Config, StartupConfig};
use crate::limit::ledger::{FailurePolicy, Ledger};
use crate::listener::accept::{Connections, Refusals};
use crate::listener::bounds::OpenConnections;
use crate::listener::listening::Listening;
use crate::listener::server::Plain;
use crate::listener::sockets::{BindError, Bound, BoundSocket};
use crate::policy::Policy;
use crate::proxy::in_flight::RequestsInFlight;
use crate::proxy::{Proxy, Readiness, problem};
use crate::store::open::MAX_SUBJECTS;
use crate::store::{self, Membership, RecordChange, RecordReader, RecordStore, Remote, Stores};
use crate::telemetry::endpoint_metrics::{self, Reading, Show};
use crate::telemetry::metrics::METRICS;
use crate::tls;

pub mod background;
mod descriptors;
pub mod echo;
pub mod handover;
pub mod learn;
mod memory;
pub mod reload;
pub mod shutdown;

use background::Background;
use echo::Echo;
use handover::{HandOverError, Meeting, Predecessor};
use reload::{PendingReload, Reload};
use shutdown::{Drain, Signals};

/// How long a successor may take to become ready.
const BECOME_READY: Duration = Duration::from_secs(10);

/// Most open connections of those who read metrics.
const METRICS_CONNECTIONS: usize = 64;

/// Reads the configuration again; the error is text for people.
pub type Load = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The predecessor did not hand its sockets over.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// The operating system refuses something that every start needs.
    #[error("{0}")]
    System(String),
}

/// A gateway about to run.
pub struct Gateway {
    config: StartupConfig,
    policy: Arc<ArcSwap<Policy>>,
    bound: Bound,
    predecessor: Option<Predecessor>,
    echo: Option<BoundSocket>,
}

impl Gateway {
    /// Compiles `config` and binds its addresses. With `upgrade` a predecessor hands the sockets over.
    ///
    /// # Errors
    /// [`StartError`]; every socket that was bound is closed then.
    pub fn prepare(config: Config, upgrade: bool) -> Result<Self, StartError> {
        tls::install_provider();
        let Config { startup: config, live } = config;
        let policy = Policy::compile(live, None);
        let (inherited, predecessor) = match upgrade {
            // The predecessor serves meanwhile.
            true => {
                block_on(learn::learn(&policy))?;
                let meeting = Meeting::new(config.server.upgrade_sock.as_deref());
                let inheritance = block_on(async move { handover::receive(&meeting).await })??;
                (inheritance.sockets, Some(inheritance.predecessor))
            }
            false => (Vec::new(), None),
        };
        let bound = Bound::bind(&config, inherited)?;
        if !upgrade {
            // Clients can connect from here on. Without names and keys their requests would fail.
            block_on(learn::learn(&policy))?;
        }
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        Ok(Self { config, policy, bound, predecessor, echo: None })
    }

    /// Adds the echo server of `tollgate demo`, which listens on `socket`.
    pub fn with_echo(mut self, socket: BoundSocket) -> Self {
        self.echo = Some(socket);
        self
    }

    /// The address of the first listener.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.bound.first()
    }

    /// Runs until a signal ends the gateway and the requests in flight are done.
    ///
    /// # Errors
    /// [`StartError`] when the gateway cannot start.
    pub fn run(self, load: Load, pending: PendingReload) -> Result<(), StartError> {
        let Self { config, policy, bound, predecessor, echo } = self;
        METRICS.set_build_info(env!("CARGO_PKG_VERSION"), env!("TOLLGATE_COMMIT"));
        METRICS.config_generation.set(1);
        METRICS.config_last_reload_success.set(1);
        descriptors::provide(policy.load().max_connections);
        endpoint_metrics::register(endpoint_readings(Arc::clone(&policy)))
            .map_err(|error| StartError::System(error.to_string()))?;

        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let Stores { records, quota, membership, is_shared } = open_store(&config, &clock);
        let ledger = Arc::new(Ledger::new(quota, Arc::clone(&clock), MAX_SUBJECTS));
        // A store inside this process holds no other records than those of the configuration.
        let stored = is_shared.then(|| stored(&config, Arc::clone(&records), &clock));
        let caches = stored
            .as_ref()
            .map(|stored| (Arc::downgrade(&stored.records), Arc::downgrade(&stored.revocations)));
        let authenticator = Arc::new(Authenticator::new(stored));
        let tokens = Arc::new(TokenWatch::new(Arc::clone(&authenticator), Arc::clone(&clock)));
        if let Some((cached, revoked)) = caches {
            tell_of_changes(&*records, cached, revoked, Arc::downgrade(&tokens));
        }
        let gateways = Arc::clone(membership.gateways());
        let admission =
            Admission::new(authenticator, Arc::clone(&ledger), clock, move || gateways.get());
        let readiness = Arc::new(Readiness {
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            in_flight: RequestsInFlight::default(),
            store_serves: store_serves(Arc::clone(&membership)),
        });
        let ports = bound.listeners.iter().map(|bound| bound.address().port()).collect();
        let conf = server_conf(&config);
        let kept = conf.upstream_keepalive_pool_size;
        let proxy = Proxy::new(Arc::clone(&policy), admission, Arc::clone(&readiness), ports, kept);

        let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
        server.bootstrap();

        let meeting = Meeting::new(config.server.upgrade_sock.as_deref());
        let copies = bound.copies().map_err(|error| StartError::System(error.to_string()))?;
        let drain = Drain::new(Arc::clone(&readiness), Arc::clone(&ledger), &config);
        let open = Arc::new(OpenConnections::default());
        let refusals = open.refusals();
        // The application of one thread, with upstream connections of its own.
        let connections = || {
            Connections::new(
                http_proxy(&server.configuration, proxy.for_another_thread()),
                Arc::clone(&policy),
                Refusals { http1: problem::closing_response, http2: problem::refusal_answer },
                Arc::clone(&tokens),
                Arc::clone(&open),
            )
        };
        let mut listening =
            Listening::new(connections(), "listening", bound.listeners, drain.listeners())
                .on_start({
                    let membership = Arc::clone(&membership);
                    move || {
                        membership.start();
                        detach(memory::give_back());
                    }
                });
        let workers: Vec<_> = (1..config.server.threads)
            .map(|_| listening.add_worker(connections(), || detach(memory::give_back())))
            .collect();
        if let Some(predecessor) = predecessor {
            let (policy, readiness) = (Arc::clone(&policy), Arc::clone(&readiness));
            listening = listening.before_accept(take_over(predecessor, policy, readiness));
        }
        server.add_service(listening);
        for worker in workers {
            server.add_service(worker);
        }
        if !bound.metrics.is_empty() {
            let metrics = Plain(Arc::new(pingora_prometheus::new_prometheus_server()));
            let close = drain.never();
            let metrics = Listening::new(metrics, "metrics", bound.metrics, close);
            server.add_service(metrics.at_most(METRICS_CONNECTIONS));
        }
        if let Some(echo) = echo {
            let app = Plain(Arc::new(HttpServer::new_app(Echo)));
            server.add_service(Listening::new(app, "echo", vec![echo], drain.never()));
        }
        let reload = Arc::new(Reload::new(load, pending, config, Arc::clone(&policy)));
        let store = membership;
        let background = Background { reload, store, ledger, policy, readiness, refusals };
        server.add_service(background.service());
        info!("tollgate {} starts", env!("CARGO_PKG_VERSION"));
        let signals = Signals::new(drain, meeting, copies);
        server.run(RunArgs { shutdown_signal: Box::new(signals) });
        info!("stopped");
        Ok(())
    }
}

/// Shows every endpoint of the present policy.
fn endpoint_readings(policy: Arc<ArcSwap<Policy>>) -> impl Fn(Show<'_>) + Send + Sync + 'static {
    move |show| {
        for upstream in policy.load().upstreams() {
            for endpoint in upstream.endpoints() {
                show(Reading {
                    upstream: &upstream.rules().name,
                    endpoint: &endpoint.url().to_string(),
                    breaker_open: endpoint.is_breaker_open(),
                    healthy: upstream.rules().health.is_some().then(|| endpoint.is_healthy()),
                });
            }
        }
    }
}

/// Runs `future` before the services have a runtime.
fn block_on<F: Future>(future: F) -> Result<F::Output, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::System(format!("no event loop: {error}")))?;
    let output = runtime.block_on(future);
    // Look-ups that have no answer yet hold threads of the runtime.
    runtime.shutdown_background();
    Ok(output)
}

/// Waits until this process is ready, and tells the `predecessor`, which serves until then.
async fn take_over(
    predecessor: Predecessor,
    policy: Arc<ArcSwap<Policy>>,
    readiness: Arc<Readiness>,
) -> Result<(), HandOverError> {
    let ready = async {
        while !(readiness.store_serves)(&policy.load()) {
            sleep(SHORT).await;
        }
    };
    timeout(BECOME_READY, ready).await.map_err(|_late| HandOverError::NotReady(BECOME_READY))?;
    predecessor.confirm().await
}

fn server_conf(config: &StartupConfig) -> ServerConf {
    ServerConf {
        threads: 1,
        // Each thread has an event loop and upstream connections of its own.
        work_stealing: false,
        upstream_keepalive_pool_size: config
            .server
            .upstream_keepalive_pool_size
            .div_ceil(config.server.threads),
        // Tokio's timers, for every timeout. Tokio forgets a timer that is dropped. Pingora's timers stay until they are
        // due, and read the clock each time one is made.
        fast_timeout_to_tokio_threshold_seconds: Some(0),
        ..ServerConf::default()
    }
}

/// Opens the store that a configuration names. Nothing is connected yet.
fn open_store(config: &StartupConfig, clock: &Arc<dyn Clock>) -> Stores {
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

/// The caches of token records and revocations.
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
    Stored { records, revocations }
}

/// Lets the store tell the caches of changes, and then the watches of long requests, which look into the caches.
/// Weak, because the caches hold the store, and the store would hold the caches.
fn tell_of_changes(
    store: &dyn RecordStore,
    records: Weak<RecordCache>,
    revocations: Weak<RevocationCache>,
    tokens: Weak<TokenWatch>,
) {
    store.on_record_change(Arc::new(move |change| {
        let told = (records.upgrade(), revocations.upgrade(), tokens.upgrade());
        let (Some(records), Some(revocations), Some(tokens)) = told else {
            return;
        };
        match change {
            RecordChange::Of(id) => {
                records.forget(id);
                tokens.changed(id);
            }
            RecordChange::Revocation(id) => {
                revocations.forget(id);
                tokens.changed(id);
            }
            RecordChange::Unknown => {
                records.doubt();
                revocations.doubt();
                tokens.doubt();
            }
        }
    }));
}

/// The gateway is ready when the store answers, or when the store has answered once and the failure policy
/// lets requests pass without it. Before the store's first answer no token can be known.
fn store_serves(store: Arc<dyn Membership>) -> Box<dyn Fn(&Policy) -> bool + Send + Sync> {
    Box::new(move |policy| {
        let lets_through = policy.on_store_failure != FailurePolicy::Deny;
        store.available() || (store.has_answered() && lets_through)
    })
}

/// The pause between two looks at the requests in flight, and before the process ends.
pub(crate) const SHORT: Duration = Duration::from_millis(20);
