//! Work beside the requests: reloads, the store's probe, name look-ups, health checks, and forgetting idle subjects.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::error;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::{BackgroundService, GenBackgroundService};
use tokio::time::sleep;

use super::reload::Reload;
use crate::base::clock::{Clock as _, SystemClock};
use crate::base::task::detach;
use crate::limit::ledger::Ledger;
use crate::listener::bounds::Refusals;
use crate::policy::Policy;
use crate::proxy::Readiness;
use crate::store::Membership;
use crate::telemetry::metrics::METRICS;
use crate::upstream::check::Checker;
use crate::upstream::resolve::look_up;

/// How often idle subjects are forgotten.
const SWEEP: Duration = Duration::from_secs(5);

/// How often unused leases are given back.
const LEASES: Duration = Duration::from_millis(50);

/// How often the gateway checks whether a name is due to be looked up again.
const NAMES: Duration = Duration::from_millis(250);

/// How often the gateway looks whether an endpoint is due to be checked.
const HEALTH: Duration = Duration::from_millis(50);

/// How often the gateway checks whether a key set is due to be fetched again.
const KEYS: Duration = Duration::from_secs(1);

/// How often the gateway checks whether the files of certificates have changed.
const CERTIFICATES: Duration = Duration::from_secs(2);

/// How often gauges are brought up to date.
const GAUGES: Duration = Duration::from_millis(250);

/// How often refused connections are written to the log.
const REFUSALS: Duration = Duration::from_secs(1);

/// How long a task that died waits before it starts again.
const RESTART: Duration = Duration::from_secs(1);

/// The state that the background tasks work on.
pub struct Background {
    /// Waits for SIGHUP.
    pub reload: Arc<Reload>,
    /// Knows whether the store answers.
    pub store: Arc<dyn Membership>,
    /// Holds leases and subjects.
    pub ledger: Arc<Ledger>,
    /// Holds upstreams and key sets.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Knows the requests in flight.
    pub readiness: Arc<Readiness>,
    /// Counts refused connections.
    pub refusals: Arc<Refusals>,
}

/// A task of the background.
struct Task {
    /// How the log calls the task.
    name: &'static str,
    /// The pause after each run; `None` for a task whose run should never end.
    every: Option<Duration>,
    run: Box<dyn Fn() -> Run + Send + Sync>,
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Background {
    /// The background as a service with a thread of its own.
    pub fn service(self) -> GenBackgroundService<Self> {
        let mut service = GenBackgroundService::new("background".into(), Arc::new(self));
        service.threads = Some(1);
        service
    }

    fn tasks(&self) -> Vec<Task> {
        vec![
            Task::new("reload", None, &self.reload, |reload| async move { reload.run().await }),
            Task::new("store probe", None, &self.store, |store| async move {
                store.run_probe().await;
            }),
            Task::new("store gauges", Some(GAUGES), &self.store, |store| async move {
                METRICS.store_available.set(i64::from(store.available()));
                METRICS.store_breakers_open.set(gauge_value(store.open_breakers()));
            }),
            Task::new("request gauge", Some(GAUGES), &self.readiness, |readiness| async move {
                METRICS.in_flight.set(gauge_value(readiness.in_flight.count()));
            }),
            Task::new(
                "refused connections",
                Some(REFUSALS),
                &self.refusals,
                |refusals| async move {
                    refusals.report();
                },
            ),
            Task::new("leases", Some(LEASES), &self.ledger, |ledger| async move {
                ledger.expire_leases();
            }),
            Task::new("ledger sweep", Some(SWEEP), &self.ledger, |ledger| async move {
                ledger.sweep();
                METRICS.limit_subjects.set(gauge_value(ledger.subjects()));
            }),
            Task::new("names", Some(NAMES), &self.policy, |policy| async move {
                drop(look_up(policy.load().upstreams()));
            }),
            Task::new("health checks", Some(HEALTH), &self.policy, {
                let checker = Arc::new(Checker::default());
                move |policy| {
                    let checker = Arc::clone(&checker);
                    async move { checker.check(policy.load().upstreams()) }
                }
            }),
            Task::new("keys", Some(KEYS), &self.policy, |policy| async move {
                refresh_keys(&policy.load());
            }),
            Task::new("certificates", Some(CERTIFICATES), &self.policy, |policy| async move {
                refresh_certificates(policy.load_full()).await;
            }),
        ]
    }
}

impl Task {
    fn new<S, F>(
        name: &'static str,
        every: Option<Duration>,
        state: &Arc<S>,
        run: impl Fn(Arc<S>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        S: ?Sized + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let state = Arc::clone(state);
        Self { name, every, run: Box::new(move || Box::pin(run(Arc::clone(&state)))) }
    }

    /// Runs the task again and again. Returns only when a run that should never end has ended.
    async fn repeat(&self) {
        loop {
            (self.run)().await;
            match self.every {
                Some(pause) => sleep(pause).await,
                None => return,
            }
        }
    }

    /// Runs the task for ever: a task that ends or panics is started again.
    #[expect(clippy::disallowed_methods, reason = "a task that dies is started again here")]
    async fn keep_running(self: Arc<Self>) {
        let name = self.name;
        loop {
            let task = Arc::clone(&self);
            match tokio::spawn(async move { task.repeat().await }).await {
                Ok(()) => error!("background task ended, starting it again: {name}"),
                Err(died) => error!("background task died, starting it again: {name}: {died}"),
            }
            sleep(RESTART).await;
        }
    }
}

#[async_trait]
impl BackgroundService for Background {
    #[expect(clippy::disallowed_methods, reason = "keep_running starts a task again that dies")]
    async fn start(&self, mut shutdown: ShutdownWatch) {
        for task in self.tasks() {
            tokio::spawn(Arc::new(task).keep_running());
        }
        let _ = shutdown.wait_for(|down| *down).await;
    }
}

/// Fetches the key sets that are due. A slow fetch must not delay the next set, so each has a task of its own.
fn refresh_keys(policy: &Policy) {
    for set in policy.auth.jwt.key_sets() {
        let set = Arc::clone(set);
        detach(async move { set.refresh().await });
    }
    let failing = policy.auth.jwt.key_sets().filter(|set| set.is_in_doubt());
    METRICS.key_sources_failing.set(gauge_value(failing.count()));
    let empty = policy.auth.jwt.key_sets().filter(|set| set.is_empty());
    METRICS.key_sources_empty.set(gauge_value(empty.count()));
}

/// Takes up certificates whose files have changed, and tells when each one expires.
async fn refresh_certificates(policy: Arc<Policy>) {
    let refresh = move || {
        let now = SystemClock::default().now();
        let mut expiries = Vec::new();
        for tls in policy.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
            tls.refresh(now);
            for certificate in tls.certificates() {
                certificate.warn_of_end(now);
                let file = certificate.files().certificate.display().to_string();
                expiries.push((file, certificate.not_after().as_secs()));
            }
        }
        METRICS.set_certificate_expiries(&expiries);
    };
    // A file system that does not answer must not delay the other tasks. The next run comes after this one.
    if tokio::task::spawn_blocking(refresh).await.is_err() {
        error!("the files of certificates could not be checked");
    }
}

fn gauge_value(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
