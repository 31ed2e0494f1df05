//! Work beside the requests: reloads, the store's probe, names, and forgetting what is idle.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::error;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::{BackgroundService, GenBackgroundService};
use tokio::time::sleep;

use super::reload::Reload;
use crate::limit::ledger::Ledger;
use crate::policy::Policy;
use crate::store::Membership;
use crate::telemetry::metrics::METRICS;
use crate::upstream::resolve::resolve;

/// How often idle subjects are forgotten.
const SWEEP: Duration = Duration::from_secs(5);

/// How often leases that lie unused are looked for.
const LEASES: Duration = Duration::from_millis(50);

/// How often names are looked up again.
const RESOLVE: Duration = Duration::from_secs(30);

/// How often is looked whether keys are to be fetched again.
const KEYS: Duration = Duration::from_secs(1);

/// How often gauges are brought up to date.
const GAUGES: Duration = Duration::from_millis(250);

/// How long a task that died waits before it starts again.
const RESTART: Duration = Duration::from_secs(1);

/// Everything that goes on in the background.
pub struct Background {
    reload: Arc<Reload>,
    store: Arc<dyn Membership>,
    ledger: Arc<Ledger>,
    policy: Arc<ArcSwap<Policy>>,
}

impl Background {
    /// As a service with a thread of its own.
    pub fn service(
        reload: Reload,
        store: Arc<dyn Membership>,
        ledger: Arc<Ledger>,
        policy: Arc<ArcSwap<Policy>>,
    ) -> GenBackgroundService<Self> {
        let background = Self { reload: Arc::new(reload), store, ledger, policy };
        let mut service = GenBackgroundService::new("background".into(), Arc::new(background));
        service.threads = Some(1);
        service
    }
}

#[async_trait]
impl BackgroundService for Background {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let reload = Arc::clone(&self.reload);
        keep_running("reload", move || {
            let reload = Arc::clone(&reload);
            async move { reload.run().await }
        });
        let store = Arc::clone(&self.store);
        keep_running("store probe", move || {
            let store = Arc::clone(&store);
            async move { store.run_probe().await }
        });
        let store = Arc::clone(&self.store);
        keep_running("gauges", move || {
            let store = Arc::clone(&store);
            async move {
                loop {
                    METRICS.store_available.set(i64::from(store.available()));
                    let open = i64::try_from(store.open_breakers()).unwrap_or(i64::MAX);
                    METRICS.store_breakers_open.set(open);
                    sleep(GAUGES).await;
                }
            }
        });
        let leases = Arc::clone(&self.ledger);
        keep_running("leases", move || {
            let ledger = Arc::clone(&leases);
            async move {
                loop {
                    sleep(LEASES).await;
                    ledger.expire_leases();
                }
            }
        });
        let ledger = Arc::clone(&self.ledger);
        keep_running("ledger sweep", move || {
            let ledger = Arc::clone(&ledger);
            async move {
                loop {
                    sleep(SWEEP).await;
                    ledger.sweep();
                    let subjects = i64::try_from(ledger.subjects()).unwrap_or(i64::MAX);
                    METRICS.limit_subjects.set(subjects);
                }
            }
        });
        let policy = Arc::clone(&self.policy);
        keep_running("names", move || {
            let policy = Arc::clone(&policy);
            async move {
                loop {
                    sleep(RESOLVE).await;
                    resolve(policy.load_full().upstreams()).await;
                }
            }
        });
        let policy = Arc::clone(&self.policy);
        keep_running("keys", move || {
            let policy = Arc::clone(&policy);
            async move {
                loop {
                    sleep(KEYS).await;
                    // What takes long must not hold up the others.
                    let policy = policy.load();
                    for set in policy.auth.jwt.key_sets() {
                        let set = Arc::clone(set);
                        drop(tokio::spawn(async move { set.refresh().await }));
                    }
                    let failing = policy.auth.jwt.key_sets().filter(|set| set.is_in_doubt());
                    let failing = i64::try_from(failing.count()).unwrap_or(i64::MAX);
                    METRICS.key_sources_failing.set(failing);
                    let empty = policy.auth.jwt.key_sets().filter(|set| set.is_empty());
                    let empty = i64::try_from(empty.count()).unwrap_or(i64::MAX);
                    METRICS.key_sources_empty.set(empty);
                }
            }
        });
        let _ = shutdown.wait_for(|down| *down).await;
    }
}

/// Spawns a task that should never end, and starts it again when it does, whatever ended it.
fn keep_running<F>(name: &'static str, task: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            match tokio::spawn(task()).await {
                Ok(()) => error!("background task ended, starting it again: {name}"),
                Err(died) => error!("background task died, starting it again: {name}: {died}"),
            }
            sleep(RESTART).await;
        }
    });
}
