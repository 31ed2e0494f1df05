//! One server of an upstream, and the state that outlives reloads: its addresses, and whether it may get requests.
//!
//! Every policy whose upstream of this name has this URL shares the endpoint. Rules that a reload may change are
//! arguments. This file must not know how an endpoint is chosen.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{info, warn};
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;

use super::breaker::{Breaker, Pass, Standing, Transition, Verdict};
use super::health::{Change, Health};
use super::resolve::Schedule;
use super::rules::{BreakerRules, ConnectionRules, EndpointUrl, HealthRules, Http2, Scheme};

/// Most requests at the same time on one HTTP/2 connection; beyond that there is another connection.
const STREAMS: usize = 100;

/// How many bytes of an answer an HTTP/2 endpoint may send before the client has read them.
const STREAM_WINDOW: u32 = 256 * 1024;

/// How many bytes of all answers on an HTTP/2 connection may wait for their clients: more than all of its answers can hold.
/// So an answer goes on even when no client reads any of the others.
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW + (1 << 19);

/// The shortest wait that is told: zero is for times that nobody knows.
const SOON: Duration = Duration::from_millis(1);

/// One server, with a peer for each address of its host.
pub struct Endpoint {
    upstream: String,
    url: EndpointUrl,
    connections: ConnectionRules,
    /// `host:port`, for logs and the Host field.
    pub authority: String,
    peers: ArcSwap<Vec<HttpPeer>>,
    /// How many peers there are: cheaper to read than the peers.
    addresses: AtomicUsize,
    /// Counts connections, which take turns at the addresses.
    turns: AtomicUsize,
    /// When the name is looked up.
    pub(super) schedule: Mutex<Schedule>,
    breaker: Breaker,
    health: Health,
    /// Requests under way, where the upstream counts them.
    in_flight: AtomicUsize,
    made: Instant,
    /// When it began to get requests, new or again: milliseconds since it was made, and one more; 0 for long ago.
    begun: AtomicU64,
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

/// Whether an endpoint may get a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// It works, as far as anybody knows.
    Works,
    /// A request may try whether it works again.
    NeedsTrial,
    /// It gets requests only when no other endpoint is left: its breaker is open, and it takes connections.
    LastResort,
}

/// Why an endpoint gets no request now, and for how long; zero where nobody knows how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its name has no address.
    NoAddress(Duration),
    /// The checks of its health failed.
    Unhealthy(Duration),
    /// Its breaker is open.
    BreakerOpen(Duration),
}

impl Unusable {
    /// The time until the endpoint is tried again.
    pub fn wait(self) -> Duration {
        match self {
            Self::NoAddress(wait) | Self::Unhealthy(wait) | Self::BreakerOpen(wait) => wait,
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
            addresses: AtomicUsize::new(0),
            turns: AtomicUsize::new(0),
            schedule: Mutex::default(),
            breaker: Breaker::new(Instant::now()),
            health: Health::new(Instant::now()),
            in_flight: AtomicUsize::new(0),
            made: Instant::now(),
            begun: AtomicU64::new(0),
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

    /// Replaces the peers by peers at `addresses`, unless these are the addresses already. Whether they are new.
    ///
    /// Requests under way keep their connections. A kept connection to an address that is gone gets no further request,
    /// because a connection is looked for by its address.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) -> bool {
        let peers = self.peers.load();
        let present = peers.iter().map(|peer| peer._address.as_inet());
        if present.eq(addresses.iter().map(Some)) {
            return false;
        }
        self.peers
            .store(Arc::new(addresses.iter().map(|address| self.peer_at(*address)).collect()));
        self.addresses.store(addresses.len(), Ordering::Relaxed);
        true
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
        self.addresses() > 0
    }

    /// How many addresses the endpoint has.
    pub fn addresses(&self) -> usize {
        self.addresses.load(Ordering::Relaxed)
    }

    /// The next turn at the addresses.
    pub(super) fn turn(&self) -> usize {
        match self.addresses() {
            1 => 0,
            _ => self.turns.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The peer at the address whose turn is `turn`; `None` when there is no address.
    pub(super) fn peer(&self, turn: usize) -> Option<HttpPeer> {
        let peers = self.peers.load();
        peers.get(turn.checked_rem(peers.len())?).cloned()
    }

    /// Whether the endpoint may get a request at `now`. `is_checked`: whether the gateway checks its health.
    ///
    /// # Errors
    /// Why it may get none.
    pub fn fitness(&self, is_checked: bool, now: Instant) -> Result<Fitness, Unusable> {
        if !self.is_resolved() {
            return Err(Unusable::NoAddress(Duration::ZERO));
        }
        if is_checked && self.health.is_unhealthy() {
            let wait = self.health.wait(now).max(SOON);
            return Err(Unusable::Unhealthy(wait));
        }
        match self.breaker.standing(now) {
            Standing::Closed => Ok(Fitness::Works),
            Standing::Due => Ok(Fitness::NeedsTrial),
            Standing::Open(_) => Ok(Fitness::LastResort),
            Standing::Unreachable(wait) => Err(Unusable::BreakerOpen(wait)),
        }
    }

    /// The time until the name of the endpoint is looked up again at the earliest, at least a moment; zero while a look-up is
    /// running. A name that has an address is looked up again after `every`.
    pub(super) fn looked_up_after(&self, every: Duration, now: Instant) -> Duration {
        let wait = self.schedule.lock().wait(every, now.into());
        wait.map_or(Duration::ZERO, |wait| wait.max(SOON))
    }

    /// Counts a request that begins.
    pub(super) fn request_begins(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that ends, and that was counted when it began.
    pub(super) fn request_ends(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many requests that were counted are under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Notes that the endpoint begins to get requests at `now`, new or again.
    pub(super) fn begins_slowly(&self, now: Instant) {
        let since_made = now.saturating_duration_since(self.made).as_millis();
        self.begun.store(u64::try_from(since_made).unwrap_or(0) + 1, Ordering::Relaxed);
    }

    /// How long the endpoint has got requests at `now`; `None` for long.
    pub(super) fn since(&self, now: Instant) -> Option<Duration> {
        let begun = self.begun.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.made + Duration::from_millis(begun)))
    }

    /// Whether the last checks have passed.
    pub fn is_healthy(&self) -> bool {
        !self.health.is_unhealthy()
    }

    /// Whether a check must begin at `now`.
    pub(super) fn begins_check(&self, rules: &HealthRules, now: Instant) -> bool {
        self.health.begin(rules, now)
    }

    /// The check that was running has ended.
    pub(super) fn check_ended(&self) {
        self.health.ended();
    }

    /// The peer for a check. Checks take turns at the addresses.
    pub(super) fn peer_to_check(&self) -> Option<HttpPeer> {
        self.peer(self.turn())
    }

    /// Learns the result of a check, and says so in the log when the endpoint gets no requests any more, or gets them
    /// again.
    pub(super) fn learn_check(&self, result: Result<(), String>, rules: &HealthRules) {
        if result.is_ok() {
            self.breaker.try_now(Instant::now());
        }
        match (self.health.learn(result.is_ok(), rules), result) {
            (None, _) => {}
            (Some(Change::Healthy), _) => {
                self.begins_slowly(Instant::now());
                info!("{self} is healthy again, and gets requests");
            }
            (Some(Change::Unhealthy), result) => {
                let reason = result.err().unwrap_or_default();
                warn!("{self} is unhealthy, and gets no requests: {reason}");
            }
        }
    }

    /// Lets a request pass at `now`, if one may pass.
    pub(super) fn pass(&self, rules: &BreakerRules, now: Instant) -> Option<Pass> {
        self.breaker.pass(rules, now)
    }

    /// Notes that a request that passed in this way has a new connection.
    pub(super) fn reached(&self, pass: Pass) {
        self.breaker.reached(pass);
    }

    /// Lets the breaker follow rules that have replaced others.
    pub(super) fn follow(&self, rules: &BreakerRules, now: Instant) {
        self.breaker.follow(rules, now);
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
            Some(Transition::Opened(failures, pause)) => {
                warn!(
                    "{self} failed {failures} times in a row, and gets no requests for {pause:?}"
                );
            }
            Some(Transition::Closed) => {
                self.begins_slowly(now);
                info!("{self} works again, and gets requests");
            }
        }
    }
}
