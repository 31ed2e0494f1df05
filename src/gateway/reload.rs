//! SIGHUP: loads the file, compiles it and swaps the policy; or keeps the old policy and logs the reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use signal_hook::consts::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};

use super::Load;
use super::descriptors;
use super::learn::learn;
use crate::config::{Config, StartupConfig};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;

/// A SIGHUP that came before the gateway could act on it. Without a handler it would end the process.
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

/// Reloads the configuration at each SIGHUP.
pub struct Reload {
    load: Load,
    pending: PendingReload,
    /// The configuration keys that keep their value until a restart.
    started_with: StartupConfig,
    policy: Arc<ArcSwap<Policy>>,
}

impl Reload {
    /// Reads the configuration with `load` and replaces `policy`.
    pub fn new(
        load: Load,
        pending: PendingReload,
        started_with: StartupConfig,
        policy: Arc<ArcSwap<Policy>>,
    ) -> Self {
        Self { load, pending, started_with, policy }
    }

    /// Reloads at each SIGHUP. Returns only when the system refuses to deliver the signal.
    pub async fn run(&self) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                error!("SIGHUP cannot be listened for, the configuration stays: {error}");
                return;
            }
        };
        // One signal may both set the flag and wake `recv`. The flag is taken first, so that at worst the
        // gateway reloads twice.
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
                descriptors::provide(policy.max_connections);
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
        // A file system that does not answer must delay neither the other background tasks nor the shutdown.
        let load = Arc::clone(&self.load);
        let Config { startup, mut live } = tokio::task::spawn_blocking(move || load())
            .await
            .map_err(|error| format!("reading it failed: {error}"))??;
        let log_level = live.log_level;
        let current = self.policy.load();
        if startup.listeners != self.started_with.listeners {
            // The rules belong to addresses that are not listened on before a restart.
            live.listeners.clone_from(&current.listeners);
        }
        let policy = Policy::compile(live, Some(&current));
        learn(&policy).await;
        log::set_max_level(log_level);
        let kept = self.started_with.changed_keys(&startup);
        if !kept.is_empty() {
            warn!("these keys need a restart to take effect: {}", kept.join(", "));
        }
        Ok(policy)
    }
}
