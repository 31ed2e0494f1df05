//! Serves accepted connections: counts each, and gives it to the reader of its protocol.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::{GetSocketDigest, l4};
use pingora_core::server::ShutdownWatch;

use super::bounds::{Bounds, OpenConnections};
use super::connection::{Connection, peer_ip};
use super::http1::{self, RefusalBytes, TokenEnds};
use super::server::ConnectionServer;
use crate::admission::TokenWatch;
use crate::base::net::{self, Network};
use crate::policy::Policy;

/// Serves client connections: the application of the listening service.
pub struct Connections<A> {
    requests: Arc<A>,
    policy: Arc<ArcSwap<Policy>>,
    refusal_bytes: RefusalBytes,
    tokens: Arc<TokenWatch>,
    open: Arc<OpenConnections>,
}

impl<A> Connections<A> {
    /// Gives each request to `requests`. Bounds and deadlines are those of the current `policy`.
    /// `refusal_bytes` makes the answer to bytes that are not a request. `tokens` tells when a token ends
    /// before its request. `open` counts the connections of all threads.
    pub fn new(
        requests: A,
        policy: Arc<ArcSwap<Policy>>,
        refusal_bytes: RefusalBytes,
        tokens: Arc<TokenWatch>,
        open: Arc<OpenConnections>,
    ) -> Self {
        Self { requests: Arc::new(requests), policy, refusal_bytes, tokens, open }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ConnectionServer for Connections<A> {
    async fn serve(
        self: Arc<Self>,
        stream: l4::stream::Stream,
        _listener: usize,
        shutdown: &ShutdownWatch,
    ) {
        // A connection over the bound gets no answer: answering a flood would cost what the bound saves.
        let _open = {
            let policy = self.policy.load();
            let socket = stream.get_socket_digest();
            let address = peer_ip(socket.as_ref().and_then(|socket| socket.peer_addr()));
            // A trusted proxy holds connections for many clients.
            let client = address.filter(|ip| !net::contain(&policy.trusted_proxies, *ip));
            let bounds = Bounds {
                all: policy.max_connections,
                per_client: policy.max_connections_per_client,
            };
            let Some(open) = self.open.admit(client.map(Network::of), bounds) else { return };
            open
        };
        let connection = Connection::new(Box::new(stream));
        // Every connection speaks HTTP/1.
        let timeouts = || self.policy.load().timeouts;
        let token_end = |principal| -> TokenEnds {
            let (tokens, policy) = (Arc::clone(&self.tokens), Arc::clone(&self.policy));
            Box::pin(async move { tokens.end_of(&policy, principal).await })
        };
        let (requests, refusal_bytes) = (&self.requests, self.refusal_bytes);
        http1::serve(requests, connection, timeouts, refusal_bytes, &token_end, shutdown).await;
    }

    async fn cleanup(&self) {
        self.requests.http_cleanup().await;
    }
}
