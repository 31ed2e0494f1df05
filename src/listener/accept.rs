//! Serves accepted connections: counts each, and gives it to the reader of its protocol.

use std::future::ready;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::{ALPN, GetSocketDigest, SocketDigest, Stream, l4};
use pingora_core::server::ShutdownWatch;
use tokio::time::timeout;

use super::bounds::{Bounds, OpenConnections};
use super::connection::{Connection, Entry, peer_ip};
use super::end::TokenEnds;
use super::handshake::{HandshakeFailure, shake_hands};
use super::http1::{self, RefusalBytes};
use super::http2::{self, RefusalAnswer, preface};
use super::proxy_protocol::{self, HeaderError};
use super::server::ConnectionServer;
use crate::admission::{Rejection, TokenWatch};
use crate::auth::Principal;
use crate::base::net::{self, Network};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;
use crate::tls::client::ClientCertificate;
use crate::tls::server::TlsServer;

/// What a client is told that speaks HTTP without TLS where TLS is spoken.
const PLAIN: &str = "this port speaks TLS; use https";

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

/// A TLS connection, and the certificate that its client has shown.
type Encrypted = (Stream, Option<Arc<ClientCertificate>>);

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
    ) -> Pin<Box<dyn Future<Output = Option<Encrypted>> + Send>> {
        let refusal_bytes = self.refusals.http1;
        Box::pin(async move {
            let failure = match shake_hands(stream, &tls, limit).await {
                Ok((encrypted, certificate)) => {
                    return Some((Box::new(encrypted) as Stream, certificate));
                }
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
        let (bytes, certificate): (Stream, _) = match tls {
            None => (stream, None),
            Some(tls) => {
                let Some(encrypted) = self.encrypt(stream, tls, limit).await else { return };
                encrypted
            }
        };
        let mut connection = Connection::new(bytes).with_entry(Entry { listener, certificate });
        let timeouts = || self.policy.load().timeouts;
        let may_be_http2 =
            self.policy.load().listeners.get(listener).is_some_and(|rules| rules.http2);
        let is_http2 = match may_be_http2 {
            // With TLS, the handshake has agreed on the protocol.
            _ if connection.facts.tls.is_some() => {
                Some(connection.bytes.selected_alpn_proto() == Some(ALPN::H2))
            }
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
            let most = http2::max_streams(open.nth_of_client());
            let refusal = refusals.http2;
            let served =
                http2::serve(requests, connection, most, timeouts, refusal, token_end, shutdown);
            return Box::pin(served).await;
        }
        http1::serve(requests, connection, timeouts, refusals.http1, &token_end, shutdown).await;
    }

    async fn cleanup(&self) {
        self.requests.http_cleanup().await;
    }
}
