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
use super::rules::{BreakerRules, EndpointUrl};

/// One server, with a peer for each address of its host.
pub struct Endpoint {
    upstream: String,
    url: EndpointUrl,
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
    pub fn new(upstream: &str, url: &EndpointUrl) -> Self {
        let endpoint = Self {
            upstream: upstream.to_owned(),
            url: url.clone(),
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

    /// The address of an endpoint whose host is an address; `None` when the host is a name.
    pub fn literal(&self) -> Option<SocketAddr> {
        let host = self.url.host.trim_start_matches('[').trim_end_matches(']');
        host.parse().ok().map(|ip| SocketAddr::new(ip, self.url.port))
    }

    /// Replaces the peers by peers at `addresses`.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) {
        // The peer is cloned for each request, and without TLS nothing reads its name.
        let server_name = if self.url.tls { &*self.url.host } else { "" };
        // `HttpPeer::new` would look up a name here, blocking, and would panic when that fails.
        let peer =
            |address: &SocketAddr| HttpPeer::new(*address, self.url.tls, server_name.to_owned());
        self.peers.store(Arc::new(addresses.iter().map(peer).collect()));
        self.has_address.store(!addresses.is_empty(), Ordering::Relaxed);
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
