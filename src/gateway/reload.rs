//! SIGHUP: load the file, compile it, swap the policy; or keep the old one and say why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use signal_hook::consts::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};

use super::Load;
use super::learn::learn;
use crate::config::{Config, StartupConfig};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;

/// A SIGHUP that came before anyone could act on it. Unhandled, it would end the process.
#[derive(Clone, Debug, Default)]
pub struct PendingReload(Arc<AtomicBool>);

impl PendingReload {
    /// Catches SIGHUP from now on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn catch() -> std::io::Result<Self> {
        let pending = Self::default();
        signal_hook::flag::register(SIGHUP, Arc::clone(&pending.0))?;
        Ok(pending)
    }
}

/// Reloads when told to.
pub struct Reload {
    load: Load,
    pending: PendingReload,
    /// The keys that keep their first value.
    started_with: StartupConfig,
    policy: Arc<ArcSwap<Policy>>,
}

impl Reload {
    /// Reloads with `load` and swaps `policy`.
    pub fn new(
        load: Load,
        pending: PendingReload,
        started_with: StartupConfig,
        policy: Arc<ArcSwap<Policy>>,
    ) -> Self {
        Self { load, pending, started_with, policy }
    }

    /// Reloads at each SIGHUP; never returns, unless the system refuses to listen for it.
    pub async fn run(&self) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                error!("SIGHUP cannot be listened for, the configuration stays: {error}");
                return;
            }
        };
        // One signal may set both: the flag is taken first, so at worst a reload happens twice.
        loop {
            if self.pending.0.swap(false, Ordering::SeqCst) {
                self.reload().await;
            }
            hangups.recv().await;
            self.pending.0.store(true, Ordering::SeqCst);
        }
    }

    async fn reload(&self) {
        match self.next_policy().await {
            Ok(policy) => {
                let generation = policy.generation;
                self.policy.store(Arc::new(policy));
                METRICS.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
                METRICS.config_last_reload_success.set(1);
                info!("configuration reloaded, generation {generation}");
            }
            Err(reason) => {
                METRICS.config_last_reload_success.set(0);
                for line in reason.lines() {
                    error!("configuration not reloaded, the old one stays: {line}");
                }
            }
        }
    }

    async fn next_policy(&self) -> Result<Policy, String> {
        // What a file's system does not answer must hinder neither other work in the background nor the end.
        let load = Arc::clone(&self.load);
        let Config { startup, live } = tokio::task::spawn_blocking(move || load())
            .await
            .map_err(|error| format!("reading it failed: {error}"))??;
        let log_level = live.log_level;
        let policy = Policy::compile(live, Some(&self.policy.load()));
        learn(&policy).await;
        log::set_max_level(log_level);
        let kept = self.started_with.changed_keys(&startup);
        if !kept.is_empty() {
            warn!("these keys need a restart to take effect: {}", kept.join(", "));
        }
        Ok(policy)
    }
}
