//! The membership of the embedded store: the store always answers, and has a single gateway.

use std::sync::Arc;

use async_trait::async_trait;

use crate::store::{GatewayCount, Membership};

/// The only gateway that uses this store.
#[derive(Debug, Default)]
pub struct SoleGateway {
    gateways: Arc<GatewayCount>,
}

#[async_trait]
impl Membership for SoleGateway {
    fn start(&self) {}

    async fn run_probe(&self) {
        std::future::pending().await
    }

    fn available(&self) -> bool {
        true
    }

    fn has_answered(&self) -> bool {
        true
    }

    fn open_breakers(&self) -> usize {
        0
    }

    fn gateways(&self) -> &Arc<GatewayCount> {
        &self.gateways
    }
}
