//! Whether a store answers, and how many gateways share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;

/// Whether a store answers, and how many gateways share it. No call but [`run_probe`](Membership::run_probe) waits.
#[async_trait]
pub trait Membership: Send + Sync {
    /// Connects in the background, and again whenever the connection is lost. A second call does nothing.
    ///
    /// Call it on the runtime where the connection shall live: the connection ends with that runtime or with the
    /// store.
    fn start(&self);

    /// Asks the store again and again, and never returns. Run it once, beside [`start`](Membership::start).
    ///
    /// The probe alone notices a silent store while no request asks it, lets calls through again after an
    /// outage, and counts the gateways.
    async fn run_probe(&self);

    /// Whether the store has answered, and has not failed repeatedly since. Of several servers that each hold a
    /// part, a single server is enough.
    fn available(&self) -> bool;

    /// Whether the store has ever answered.
    fn has_answered(&self) -> bool;

    /// How many servers are not asked because they failed repeatedly.
    fn open_breakers(&self) -> usize;

    /// How many gateways were seen lately on this store, this one included; the last count while the store is
    /// away.
    fn gateways(&self) -> &Arc<GatewayCount>;
}

/// A number of gateways, at least 1. Every request reads the number, so it is shared and needs no call.
#[derive(Debug)]
pub struct GatewayCount(AtomicU32);

impl Default for GatewayCount {
    fn default() -> Self {
        Self(AtomicU32::new(1))
    }
}

impl GatewayCount {
    /// The present number.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes the number.
    pub(super) fn set(&self, gateways: u32) {
        self.0.store(gateways.max(1), Ordering::Relaxed);
    }
}
