//! One server of an upstream, and the state that outlives reloads: its addresses, and whether it may get requests.
//!
//! Every policy whose upstream of this name has this URL shares the endpoint. Rules that a reload may change are
//! arguments. This file must not know how an endpoint is chosen.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{info, warn};
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;

use super::breaker::{Breaker, Pass, Transition, Verdict};
use super::resolve::Schedule;
use super::rules::{BreakerRules, ConnectionRules, EndpointUrl, Http2, Scheme};

/// Most requests at the same time on one HTTP/2 connection; beyond that there is another connection.
const STREAMS: usize = 100;

/// How many bytes of an answer an HTTP/2 endpoint may send before the client has read them. An answer that its client does
/// not read takes no more of the connection's window than this, so that other answers go on.
const STREAM_WINDOW: u32 = 1 << 20;

/// How many bytes of all answers on an HTTP/2 connection may wait for their clients.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How often an HTTP/2 connection is asked whether it is alive.
const PING: Duration = Duration::from_secs(10);

/// One server, with a peer for each address of its host.
pub struct Endpoint {
    upstream: String,
    url: EndpointUrl,
    connections: ConnectionRules,
    /// `host:port`, for logs and the Host field.
    pub authority: String,
    peers: ArcSwap<Vec<HttpPeer>>,
    /// Whether there are peers: cheaper to read than the peers.
    has_address: AtomicBool,
    /// Counts connections, which take turns at the addresses.
    turns: AtomicUsize,
    /// When the name is looked up.
    pub(super) schedule: Mutex<Schedule>,
    breaker: Breaker,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.to_string()).finish()
    }
}

/// The endpoint, as log lines name it.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upstream {}: endpoint {}", self.upstream, self.url)
    }
}

/// Why an endpoint gets no request now, and for how long; zero where nobody knows how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its name has no address.
    NoAddress(Duration),
    /// Its breaker is open.
    BreakerOpen(Duration),
}

impl Unusable {
    /// The time until the endpoint is tried again.
    pub fn wait(self) -> Duration {
        match self {
            Self::NoAddress(wait) | Self::BreakerOpen(wait) => wait,
        }
    }
}

impl Endpoint {
    /// An endpoint of the upstream called `upstream`. One whose host is a name has no address until it is resolved.
    pub fn new(upstream: &str, url: &EndpointUrl, connections: &ConnectionRules) -> Self {
        let endpoint = Self {
            upstream: upstream.to_owned(),
            url: url.clone(),
            connections: connections.clone(),
            authority: format!("{}:{}", url.host, url.port),
            peers: ArcSwap::default(),
            has_address: AtomicBool::new(false),
            turns: AtomicUsize::new(0),
            schedule: Mutex::default(),
            breaker: Breaker::new(Instant::now()),
        };
        if let Some(address) = endpoint.literal() {
            endpoint.set_addresses(&[address]);
        }
        endpoint
    }

    /// The URL.
    pub fn url(&self) -> &EndpointUrl {
        &self.url
    }

    /// Whether this is the endpoint at `url` to which connections are made by these rules.
    pub fn is(&self, url: &EndpointUrl, connections: &ConnectionRules) -> bool {
        self.url == *url && self.connections == *connections
    }

    /// The address of an endpoint whose host is an address; `None` when the host is a name.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host().parse().ok().map(|ip| SocketAddr::new(ip, self.url.port))
    }

    /// Replaces the peers by peers at `addresses`.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) {
        self.peers
            .store(Arc::new(addresses.iter().map(|address| self.peer_at(*address)).collect()));
        self.has_address.store(!addresses.is_empty(), Ordering::Relaxed);
    }

    /// The host, an IPv6 address without its brackets.
    fn host(&self) -> &str {
        self.url.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn peer_at(&self, address: SocketAddr) -> HttpPeer {
        let ConnectionRules { tls, http2 } = &self.connections;
        let is_tls = self.url.scheme == Scheme::Https;
        // The peer is cloned for each request, and without TLS nothing reads its name.
        let name = if is_tls { tls.server_name().unwrap_or(self.host()) } else { "" };
        // `HttpPeer::new` would look up a name here, blocking, and would panic when that fails.
        let mut peer = HttpPeer::new(address, is_tls, name.to_owned());
        let (most, least) = match (self.url.scheme, http2) {
            (Scheme::Http, _) | (Scheme::Https, Http2::Never) => (1, 1),
            (Scheme::Https, Http2::Auto) => (2, 1),
            (Scheme::Https, Http2::Always) | (Scheme::H2c, _) => (2, 2),
        };
        peer.options.set_http_version(most, least);
        if most == 2 {
            peer.options.max_h2_streams = STREAMS;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
            peer.options.h2_ping_interval = Some(PING);
        }
        if is_tls {
            peer.options.ca = tls.authorities();
            peer.client_cert_key = tls.identity();
            // A connection serves only requests whose rules for connections are the same.
            peer.group_key = tls.group().wrapping_add(*http2 as u64);
        }
        peer
    }

    /// Whether requests may go out over HTTP/2 only.
    pub fn needs_http2(&self) -> bool {
        self.url.scheme == Scheme::Https && self.connections.http2 == Http2::Always
    }

    /// Whether the endpoint has an address.
    pub fn is_resolved(&self) -> bool {
        self.has_address.load(Ordering::Relaxed)
    }

    /// How many addresses the endpoint has.
    pub fn addresses(&self) -> usize {
        self.peers.load().len()
    }

    /// The next turn at the addresses.
    pub(super) fn turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// The peer at the address whose turn is `turn`; `None` when there is no address.
    pub(super) fn peer(&self, turn: usize) -> Option<HttpPeer> {
        let peers = self.peers.load();
        peers.get(turn.checked_rem(peers.len())?).cloned()
    }

    /// Why the endpoint gets no request at `now`; `None` when it may get one.
    pub fn unusable(&self, now: Instant) -> Option<Unusable> {
        match self.is_resolved() {
            true => self.breaker.wait(now).map(Unusable::BreakerOpen),
            false => Some(Unusable::NoAddress(Duration::ZERO)),
        }
    }

    /// Lets a request pass at `now`, if one may pass.
    pub(super) fn pass(&self, now: Instant) -> Option<Pass> {
        self.breaker.pass(now)
    }

    /// Whether the breaker keeps requests away.
    pub fn is_breaker_open(&self) -> bool {
        !self.breaker.is_closed()
    }

    /// Learns about a request, and says so in the log when the endpoint gets no requests any more, or gets them again.
    pub(super) fn learn(
        &self,
        pass: Pass,
        verdict: Verdict,
        rules: &BreakerRules,
        began: Instant,
        now: Instant,
    ) {
        match self.breaker.learn(pass, verdict, rules, began, now) {
            None => {}
            Some(Transition::Opened(failures)) => {
                let pause = rules.open_for;
                warn!(
                    "{self} failed {failures} times in a row, and gets no requests for {pause:?}"
                );
            }
            Some(Transition::Closed) => info!("{self} works again, and gets requests"),
        }
    }
}
