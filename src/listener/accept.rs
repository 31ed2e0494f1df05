//! Serves accepted connections: counts each, and gives it to the reader of its protocol.

use std::future::ready;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::{GetSocketDigest, SocketDigest, Stream, l4};
use pingora_core::server::ShutdownWatch;
use tokio::time::timeout;

use super::bounds::{Bounds, OpenConnections};
use super::connection::{Connection, peer_ip};
use super::handshake::{HandshakeFailure, shake_hands};
use super::http1::{self, RefusalBytes, TokenEnds};
use super::proxy_protocol::{self, HeaderError};
use super::server::ConnectionServer;
use crate::admission::{Rejection, TokenWatch};
use crate::base::net::{self, Network};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;
use crate::tls::server::TlsServer;

/// What a client is told that speaks HTTP without TLS where TLS is spoken.
const PLAIN: &str = "this port speaks TLS; use https";

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

/// The client that a connection counts for. A trusted proxy holds connections for many clients.
fn client_network(policy: &Policy, stream: &l4::stream::Stream) -> Option<Network> {
    let socket = stream.get_socket_digest();
    let address = peer_ip(socket.as_ref().and_then(|socket| socket.peer_addr()));
    let client = address.filter(|ip| !net::contain(&policy.trusted_proxies, *ip));
    client.map(Network::of)
}

impl<A: Send + Sync + 'static> Connections<A> {
    /// Lets the proxy at the other end say whose connection it passes on, so that the connection has the address of its
    /// client. `None`: the peer is no trusted proxy, or its header does not hold.
    ///
    /// Boxed for the same reason as [`encrypt`](Self::encrypt).
    fn read_proxy_header(
        &self,
        mut stream: Box<l4::stream::Stream>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Option<Box<l4::stream::Stream>>> + Send>> {
        let is_trusted = {
            let policy = self.policy.load();
            let socket = stream.get_socket_digest();
            let peer = peer_ip(socket.as_ref().and_then(|socket| socket.peer_addr()));
            peer.is_some_and(|peer| net::contain(&policy.trusted_proxies, peer))
        };
        if !is_trusted {
            self.open.refusals().count_untrusted();
            return Box::pin(ready(None));
        }
        Box::pin(async move {
            let counts = &METRICS.proxy_headers;
            match timeout(limit, proxy_protocol::read(&mut *stream)).await {
                Ok(Ok(client)) => {
                    counts.ok.inc();
                    if let Some(client) = client {
                        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
                        // A new digest has no address yet.
                        let _ = digest.peer_addr.set(Some(client.into()));
                        stream.set_socket_digest(digest);
                    }
                    return Some(stream);
                }
                Ok(Err(HeaderError::Malformed | HeaderError::TooLong)) => counts.malformed.inc(),
                Ok(Err(HeaderError::Io(_))) => counts.closed.inc(),
                Err(_late) => counts.timeout.inc(),
            }
            None
        })
    }

    /// Shakes hands. `None`: there is no TLS connection, and the client has been told why if it can be told.
    ///
    /// Boxed, because a handshake must not make every connection's task large.
    fn encrypt(
        &self,
        stream: Box<l4::stream::Stream>,
        tls: Arc<TlsServer>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send>> {
        let refusal_bytes = self.refusal_bytes;
        Box::pin(async move {
            let failure = match shake_hands(stream, &tls, limit).await {
                Ok(encrypted) => return Some(Box::new(encrypted) as Stream),
                Err(failure) => failure,
            };
            if let HandshakeFailure::Plain(plain) = failure {
                let answer = refusal_bytes(&Rejection::BadRequest(PLAIN.into()));
                http1::refuse(plain, answer).await;
            }
            None
        })
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ConnectionServer for Connections<A> {
    async fn serve(
        self: Arc<Self>,
        stream: Box<l4::stream::Stream>,
        listener: usize,
        shutdown: &ShutdownWatch,
    ) {
        // A connection over the bound gets no answer: answering a flood would cost what the bound saves.
        let (mut open, tls, is_proxied, limit) = {
            let policy = self.policy.load();
            let Some(rules) = policy.listeners.get(listener) else { return };
            let client = client_network(&policy, &stream);
            let bounds = Bounds {
                all: policy.max_connections,
                per_client: policy.max_connections_per_client,
            };
            let Some(open) = self.open.admit(client, bounds) else { return };
            (open, rules.tls.clone(), rules.proxy_protocol, policy.timeouts.header)
        };
        let stream = match is_proxied {
            false => stream,
            true => {
                let Some(stream) = self.read_proxy_header(stream, limit).await else { return };
                let policy = self.policy.load();
                let client = client_network(&policy, &stream);
                let most = policy.max_connections_per_client;
                if !self.open.admit_client(&mut open, client, most) {
                    return;
                }
                stream
            }
        };
        let bytes: Stream = match tls {
            None => stream,
            Some(tls) => {
                let Some(bytes) = self.encrypt(stream, tls, limit).await else { return };
                bytes
            }
        };
        let connection = Connection::new(bytes).accepted_at(listener);
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
