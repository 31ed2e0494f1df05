//! Serves accepted connections: counts each, and gives it to the reader of its protocol.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::{GetSocketDigest, l4};
use pingora_core::server::ShutdownWatch;

use super::bounds::{Bounds, OpenConnections};
use super::connection::{Connection, peer_ip};
use super::end::TokenEnds;
use super::http1::{self, RefusalBytes};
use super::http2::{self, RefusalAnswer, preface};
use super::server::ConnectionServer;
use crate::admission::TokenWatch;
use crate::auth::Principal;
use crate::base::net::{self, Network};
use crate::policy::Policy;

/// Serves client connections: the application of the listening service.
pub struct Connections<A> {
    requests: Arc<A>,
    policy: Arc<ArcSwap<Policy>>,
    refusals: Refusals,
    tokens: Arc<TokenWatch>,
    open: Arc<OpenConnections>,
}

/// The answers to what is no request.
#[derive(Clone, Copy)]
pub struct Refusals {
    /// As bytes of HTTP/1.
    pub http1: RefusalBytes,
    /// As an answer of HTTP/2.
    pub http2: RefusalAnswer,
}

impl<A> Connections<A> {
    /// Gives each request to `requests`. Bounds and deadlines are those of the current `policy`.
    /// `refusals` makes the answer to what is not a request. `tokens` tells when a token ends
    /// before its request. `open` counts the connections of all threads.
    pub fn new(
        requests: A,
        policy: Arc<ArcSwap<Policy>>,
        refusals: Refusals,
        tokens: Arc<TokenWatch>,
        open: Arc<OpenConnections>,
    ) -> Self {
        Self { requests: Arc::new(requests), policy, refusals, tokens, open }
    }
}

impl<A: Send + Sync + 'static> Connections<A> {
    /// Waits for the end of the token of `principal`.
    fn token_end(&self, principal: Principal) -> TokenEnds {
        let (tokens, policy) = (Arc::clone(&self.tokens), Arc::clone(&self.policy));
        Box::pin(async move { tokens.end_of(&policy, principal).await })
    }

    /// The same for requests that have tasks of their own.
    fn token_ends(self: Arc<Self>) -> http2::TokenEnd {
        Arc::new(move |principal| self.token_end(principal))
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ConnectionServer for Connections<A> {
    async fn serve(
        self: Arc<Self>,
        stream: l4::stream::Stream,
        listener: usize,
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
        let mut connection = Connection::new(Box::new(stream));
        let timeouts = || self.policy.load().timeouts;
        let may_be_http2 =
            self.policy.load().listeners.get(listener).is_some_and(|rules| rules.http2);
        let is_http2 = match may_be_http2 {
            true => preface::is_http2(&mut connection, timeouts(), shutdown).await,
            false => Some(false),
        };
        // The client has left, or was silent for too long.
        let Some(is_http2) = is_http2 else { return };
        let token_end = |principal| self.token_end(principal);
        let (requests, refusals) = (&self.requests, self.refusals);
        if is_http2 {
            let token_end = Arc::clone(&self).token_ends();
            let requests = Arc::clone(requests);
            // Boxed, because the task of a connection of HTTP/1 would be larger.
            let served =
                http2::serve(requests, connection, timeouts, refusals.http2, token_end, shutdown);
            return Box::pin(served).await;
        }
        http1::serve(requests, connection, timeouts, refusals.http1, &token_end, shutdown).await;
    }

    async fn cleanup(&self) {
        self.requests.http_cleanup().await;
    }
}
