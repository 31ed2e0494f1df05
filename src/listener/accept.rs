//! What happens to a connection that a listening socket has accepted.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;

use super::bounds::OpenConnections;
use super::connection::Connection;
use super::http1::{self, RefusalBytes};
use crate::policy::Policy;

/// Serves client connections: the application of the listening service.
pub struct Connections<A> {
    requests: Arc<A>,
    policy: Arc<ArcSwap<Policy>>,
    refusal_bytes: RefusalBytes,
    open: OpenConnections,
}

impl<A> Connections<A> {
    /// Gives each request to `requests`, under the policy of the moment. `refusal_bytes` answers what is
    /// no request.
    pub fn new(requests: A, policy: Arc<ArcSwap<Policy>>, refusal_bytes: RefusalBytes) -> Self {
        Self {
            requests: Arc::new(requests),
            policy,
            refusal_bytes,
            open: OpenConnections::default(),
        }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Connections<A> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        // No answer to a connection over the bound: writing answers to a flood is what the bound prevents.
        let _open = self.open.admit(self.policy.load().max_connections)?;
        let connection = Connection::new(stream);
        // Every connection speaks HTTP/1.
        let timeouts = || self.policy.load().timeouts;
        http1::serve(&self.requests, connection, timeouts, self.refusal_bytes, shutdown).await;
        None
    }

    async fn cleanup(&self) {
        self.requests.http_cleanup().await;
    }
}
