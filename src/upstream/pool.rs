//! An upstream: endpoints in weighted rotation, each with peers that are built before a request needs them.
//!
//! This file must not know requests. The upstream chooses an endpoint for an attempt, and the proxy tells it
//! how the attempt ended.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::attempt::Attempt;
use super::resolve::Schedule;
use crate::telemetry::metrics::{self, Histogram};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;

/// The rules of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRules {
    /// The upstream's name.
    pub name: String,
    /// The servers of the upstream; at least one.
    pub endpoints: Vec<EndpointRules>,
    /// How many further attempts a request gets after the first has failed.
    pub retries: usize,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRules {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether to speak TLS, verifying the certificate for `host`.
    pub tls: bool,
    /// Its share of the requests, relative to the other endpoints.
    pub weight: u32,
}

/// A URL without path: `https://host`, or `https://host:port` where the port is not the scheme's own.
impl fmt::Display for EndpointRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, tls, weight: _ } = self;
        let (scheme, own_port) = if *tls { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{host}")?;
        if *port != own_port {
            write!(f, ":{port}")?;
        }
        Ok(())
    }
}

/// Deadlines towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To establish a connection.
    pub connect: Duration,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

/// An upstream.
pub struct Upstream {
    rules: Arc<UpstreamRules>,
    endpoints: Vec<Endpoint>,
    /// Indexes of endpoints, each as often as its weight, spread evenly.
    rotation: Vec<usize>,
    next: AtomicUsize,
    /// Time from the choice of an endpoint to the header of its answer.
    seconds: Histogram,
}

/// One server, with a peer for each address of its host.
pub struct Endpoint {
    rules: EndpointRules,
    /// `host:port`, for logs and the Host field.
    pub authority: String,
    peers: ArcSwap<Vec<HttpPeer>>,
    /// When the name is looked up.
    pub(super) schedule: Mutex<Schedule>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.rules.name).finish()
    }
}

/// The place of a request in the rotation, kept over its attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    start: Option<usize>,
    attempts: usize,
    /// The endpoint of the present attempt, by its index.
    endpoint: usize,
    /// How many addresses of that endpoint were tried.
    addresses: usize,
    /// Whether the last address took no connection.
    has_no_connection: bool,
}

impl Turn {
    /// How many attempts the request has begun.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    /// Notes that the last peer took no connection: the same attempt goes on at the next address.
    pub fn connection_failed(&mut self) {
        self.has_no_connection = true;
    }
}

impl Upstream {
    /// An upstream by `rules`. An endpoint that is a name has no address until it is resolved.
    pub fn new(rules: Arc<UpstreamRules>) -> Self {
        let endpoints: Vec<_> = rules
            .endpoints
            .iter()
            .map(|endpoint| Endpoint::new(endpoint, rules.timeouts))
            .collect();
        let weights: Vec<_> = rules.endpoints.iter().map(|endpoint| endpoint.weight).collect();
        Self {
            seconds: metrics::upstream_seconds(&rules.name),
            endpoints,
            rotation: rotation(&weights),
            next: AtomicUsize::new(0),
            rules,
        }
    }

    /// The rules of the upstream.
    pub fn rules(&self) -> &UpstreamRules {
        &self.rules
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether the attempt whose last peer took no connection has another address to try.
    pub fn has_another_address(&self, turn: &Turn) -> bool {
        turn.has_no_connection && turn.addresses < self.endpoints[turn.endpoint].peers.load().len()
    }

    /// Chooses an endpoint for the next attempt of a request: its index, and one of its peers. A retry goes
    /// to another endpoint than the attempt before, where there is another. `None` when no endpoint has an
    /// address.
    ///
    /// An attempt whose peer took no connection goes on at the next address of the same endpoint, because a
    /// name may have addresses at which nothing listens. It is a new attempt when there is no further address.
    pub fn pick(&self, turn: &mut Turn) -> Option<(usize, Box<HttpPeer>)> {
        let start = *turn.start.get_or_insert_with(|| self.next.fetch_add(1, Ordering::Relaxed));
        let goes_on = self.has_another_address(turn);
        turn.has_no_connection = false;
        if goes_on {
            let at = turn.endpoint;
            turn.addresses += 1;
            return self.peer(at, start, turn).map(|peer| (at, peer));
        }
        let first = self.rotation[start % self.rotation.len()];
        let attempt = turn.attempts;
        turn.attempts += 1;
        // The first attempt follows the rotation; each retry takes the next endpoint in the list.
        turn.addresses = 1;
        (0..self.endpoints.len()).find_map(|step| {
            let at = (first + attempt + step) % self.endpoints.len();
            let peer = self.peer(at, start, turn)?;
            turn.endpoint = at;
            Some((at, peer))
        })
    }

    /// The peer at the address of the endpoint `at` whose turn it is.
    fn peer(&self, at: usize, start: usize, turn: &Turn) -> Option<Box<HttpPeer>> {
        let peers = self.endpoints[at].peers.load();
        // Requests take turns, and so do the attempts of a request, and the connections of an attempt.
        let turns = start / self.rotation.len() + turn.attempts + turn.addresses - 2;
        let peer = peers.get(turns.checked_rem(peers.len())?)?;
        Some(Box::new(peer.clone()))
    }

    /// Records an attempt that has ended.
    pub fn attempt_ended(&self, attempt: &Attempt) {
        if let Some(first_byte) = attempt.first_byte {
            self.seconds.observe(first_byte.as_secs_f64());
        }
    }
}

impl Endpoint {
    fn new(rules: &EndpointRules, timeouts: Timeouts) -> Self {
        let authority = format!("{}:{}", rules.host, rules.port);
        let endpoint = Self {
            rules: rules.clone(),
            authority,
            peers: ArcSwap::default(),
            schedule: Mutex::default(),
        };
        if let Some(address) = endpoint.literal() {
            endpoint.set_addresses(&[address], timeouts);
        }
        endpoint
    }

    /// The address of an endpoint whose host is an address; `None` when the host is a name.
    pub fn literal(&self) -> Option<SocketAddr> {
        let host = self.rules.host.trim_start_matches('[').trim_end_matches(']');
        host.parse().ok().map(|ip| SocketAddr::new(ip, self.rules.port))
    }

    /// Replaces the peers by peers at `addresses`.
    pub fn set_addresses(&self, addresses: &[SocketAddr], timeouts: Timeouts) {
        // The peer is cloned for each request, and without TLS nothing reads its name.
        let server_name = if self.rules.tls { &*self.rules.host } else { "" };
        let peer = |address: &SocketAddr| {
            // `HttpPeer::new` would look up a name here, blocking, and would panic when that fails.
            let mut peer = HttpPeer::new(*address, self.rules.tls, server_name.to_owned());
            peer.options.connection_timeout = Some(timeouts.connect);
            peer.options.total_connection_timeout = Some(timeouts.connect * 2);
            peer.options.read_timeout = Some(timeouts.read);
            peer.options.write_timeout = Some(timeouts.write);
            peer.options.idle_timeout = Some(timeouts.idle);
            peer
        };
        self.peers.store(Arc::new(addresses.iter().map(peer).collect()));
    }

    /// Whether the endpoint has an address.
    pub fn is_resolved(&self) -> bool {
        !self.peers.load().is_empty()
    }
}

/// Indexes of `weights`, each as often as its weight, spread evenly: the endpoint that is furthest behind
/// its share comes next.
fn rotation(weights: &[u32]) -> Vec<usize> {
    let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    let mut credit = vec![0i64; weights.len()];
    (0..total.max(1))
        .map(|_| {
            for (credit, &weight) in credit.iter_mut().zip(weights) {
                *credit += i64::from(weight);
            }
            let most = (0..credit.len()).rev().max_by_key(|&at| credit[at]).unwrap_or(0);
            if let Some(credit) = credit.get_mut(most) {
                *credit -= total;
            }
            most
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(endpoints: &[(&str, u32)]) -> Upstream {
        let timeout = Duration::from_secs(1);
        Upstream::new(Arc::new(UpstreamRules {
            name: "u".into(),
            endpoints: endpoints
                .iter()
                .enumerate()
                .map(|(at, (host, weight))| EndpointRules {
                    host: (*host).into(),
                    port: 1_000 + at as u16,
                    tls: false,
                    weight: *weight,
                })
                .collect(),
            retries: 2,
            timeouts: Timeouts { connect: timeout, read: timeout, write: timeout, idle: timeout },
        }))
    }

    /// The port of the peer, which follows from the index of its endpoint.
    fn port(picked: Option<(usize, Box<HttpPeer>)>) -> Option<u16> {
        let (at, peer) = picked?;
        let port = peer._address.as_inet().map(SocketAddr::port);
        assert_eq!(port, Some(1_000 + at as u16));
        port
    }

    #[test]
    fn the_rotation_follows_the_weights_evenly() {
        assert_eq!(rotation(&[1, 1]), [0, 1]);
        assert_eq!(rotation(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(rotation(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn requests_take_turns_and_retries_go_elsewhere() {
        let upstream = upstream(&[("127.0.0.1", 1), ("127.0.0.1", 1)]);
        let first: Vec<_> = (0..4).map(|_| port(upstream.pick(&mut Turn::default()))).collect();
        assert_eq!(first, [Some(1_000), Some(1_001), Some(1_000), Some(1_001)]);
        let mut turn = Turn::default();
        let attempts: Vec<_> = (0..3).map(|_| port(upstream.pick(&mut turn))).collect();
        assert_eq!(attempts, [Some(1_000), Some(1_001), Some(1_000)]);
    }

    /// The addresses that `connections` of a request go to when each fails.
    fn addresses_of(upstream: &Upstream, turn: &mut Turn, connections: usize) -> Vec<String> {
        let mut address = || {
            let (_, peer) = upstream.pick(turn).unwrap();
            turn.connection_failed();
            peer._address.to_string()
        };
        (0..connections).map(|_| address()).collect()
    }

    #[test]
    fn an_attempt_moves_on_through_the_addresses_of_a_name() {
        let upstream = upstream(&[("one.invalid", 1), ("two.invalid", 1)]);
        let timeouts = upstream.rules().timeouts;
        let set = |endpoint: usize, addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            upstream.endpoints()[endpoint].set_addresses(&addresses, timeouts);
        };
        set(0, &["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"]);
        set(1, &["127.0.0.1:2", "127.0.0.2:2"]);
        let mut turn = Turn::default();
        let mut tried = addresses_of(&upstream, &mut turn, 3);
        assert_eq!(turn.attempts(), 1, "all addresses of an endpoint are one attempt");
        assert!(!upstream.has_another_address(&turn));
        tried.sort_unstable();
        assert_eq!(tried, ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"]);
        let mut tried = addresses_of(&upstream, &mut turn, 2);
        assert_eq!(turn.attempts(), 2);
        tried.sort_unstable();
        assert_eq!(tried, ["127.0.0.1:2", "127.0.0.2:2"]);
    }

    #[test]
    fn a_connection_that_was_made_ends_the_search_for_an_address() {
        let upstream = upstream(&[("one.invalid", 1)]);
        let addresses = ["127.0.0.1:1", "127.0.0.2:1"].map(|address| address.parse().unwrap());
        upstream.endpoints()[0].set_addresses(&addresses, upstream.rules().timeouts);
        let address = |turn: &mut Turn| upstream.pick(turn).unwrap().1._address.to_string();
        let mut turn = Turn::default();
        let first = address(&mut turn);
        assert!(!upstream.has_another_address(&turn), "the peer has answered, and badly");
        assert_ne!(address(&mut turn), first, "a retry goes to the other address");
        assert_eq!(turn.attempts(), 2);
    }

    #[test]
    fn endpoints_read_as_urls() {
        for (host, port, tls, text) in [
            ("127.0.0.1", 3001, false, "http://127.0.0.1:3001"),
            ("a", 80, false, "http://a"),
            ("a", 443, false, "http://a:443"),
            ("a", 443, true, "https://a"),
            ("[::1]", 8443, true, "https://[::1]:8443"),
        ] {
            let endpoint = EndpointRules { host: host.into(), port, tls, weight: 1 };
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn endpoints_without_an_address_are_passed_over() {
        let upstream = upstream(&[("a.invalid", 1), ("::1", 1)]);
        for _ in 0..3 {
            assert_eq!(port(upstream.pick(&mut Turn::default())), Some(1_001));
        }
        let nowhere = self::upstream(&[("a.invalid", 1)]);
        assert_eq!(port(nowhere.pick(&mut Turn::default())), None);
    }
}
