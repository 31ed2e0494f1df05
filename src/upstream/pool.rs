//! An upstream: its endpoints, and the choice of one for each attempt.
//!
//! This file must not know requests. The upstream chooses an endpoint for an attempt, and the proxy tells it
//! how the attempt ended.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;

use super::attempt::{Attempt, AttemptEnd};
use super::balance::{Candidates, Member, Position};
use super::breaker::{Pass, Verdict};
use super::budget::Budget;
use super::endpoint::{Endpoint, Unusable};
use super::rules::{Balance, UpstreamRules};
use crate::telemetry::metrics::UpstreamMetrics;

/// An upstream.
pub struct Upstream {
    rules: Arc<UpstreamRules>,
    members: Vec<Member>,
    position: Position,
    budget: Arc<Budget>,
    metrics: UpstreamMetrics,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.rules.name).finish()
    }
}

/// The place of a request among the endpoints, kept over its attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    attempts: usize,
    /// The endpoint of the present attempt, by its index.
    endpoint: usize,
    /// The turn of the present attempt at the addresses of the endpoint.
    address: usize,
    /// How many addresses of that endpoint were tried.
    addresses: usize,
    /// Whether the last address took no connection.
    has_no_connection: bool,
    /// What the request has in common with others, where an endpoint is chosen by it.
    key: Option<u32>,
}

impl Turn {
    /// How many attempts the request has begun.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    /// Sets what the request has in common with other requests of its endpoint.
    pub fn set_key(&mut self, key: u32) {
        self.key = Some(key);
    }

    /// Notes that the last peer took no connection: the same attempt goes on at the next address.
    pub fn connection_failed(&mut self) {
        self.has_no_connection = true;
    }
}

/// What an attempt goes to.
pub struct Picked {
    /// The endpoint's place in the upstream's list.
    pub endpoint: usize,
    /// How the attempt passes the endpoint's breaker.
    pub pass: Pass,
    /// One of the endpoint's peers.
    pub peer: Box<HttpPeer>,
}

impl Upstream {
    /// An upstream by `rules`. Endpoints that are the same are taken over from `previous`, the upstream of this name
    /// that was there before, with all that is known about them. An endpoint that is a name has no address until it
    /// is resolved.
    pub fn new(rules: Arc<UpstreamRules>, previous: Option<&Self>) -> Self {
        let members = rules.endpoints.iter().map(|endpoint| {
            let connections = &rules.connections;
            let same = |member: &&Member| member.endpoint.is(&endpoint.url, connections);
            let kept = previous.and_then(|previous| previous.members.iter().find(same));
            let shared = match kept {
                Some(kept) => Arc::clone(&kept.endpoint),
                None => Arc::new(Endpoint::new(&rules.name, &endpoint.url, connections)),
            };
            if kept.is_none() && previous.is_some() {
                shared.begins_slowly(Instant::now());
            }
            Member::new(shared, endpoint.weight)
        });
        Self {
            members: members.collect(),
            position: Position::default(),
            budget: match previous {
                Some(previous) => Arc::clone(&previous.budget),
                None => Arc::new(Budget::new(Instant::now())),
            },
            metrics: UpstreamMetrics::new(&rules.name),
            rules,
        }
    }

    /// The rules of the upstream.
    pub fn rules(&self) -> &UpstreamRules {
        &self.rules
    }

    /// The endpoints, in the order of the rules.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &Arc<Endpoint>> {
        self.members.iter().map(|member| &member.endpoint)
    }

    /// The endpoint at this place.
    pub fn endpoint(&self, at: usize) -> Option<&Endpoint> {
        self.members.get(at).map(|member| &*member.endpoint)
    }

    /// Whether the attempt whose last peer took no connection has another address to try.
    pub fn has_another_address(&self, turn: &Turn) -> bool {
        turn.has_no_connection
            && self.endpoint(turn.endpoint).is_some_and(|endpoint| {
                turn.addresses < endpoint.addresses()
                    && self.unusable(endpoint, Instant::now()).is_none()
            })
    }

    /// Chooses an endpoint at `now` for a copy of a request. A copy goes to an endpoint only whose breaker is closed: whether
    /// an endpoint works again is for a request to try. Its end must be told as [`AttemptEnd::Abandoned`], for copies say
    /// nothing about the endpoints of requests.
    ///
    /// # Errors
    /// When there is no such endpoint.
    pub fn pick_for_copy(&self, now: Instant) -> Result<Picked, Unusable> {
        let mut turn = Turn { attempts: 1, ..Turn::default() };
        let is_closed = |at: usize| !self.members[at].endpoint.is_breaker_open();
        let picked = self.choose(&mut turn, now, is_closed);
        picked.ok_or(Unusable::BreakerOpen(Duration::ZERO))
    }

    /// Chooses an endpoint at `now` for the next attempt of a request, which has made the attempts `before`. A retry
    /// goes to an endpoint that was not tried yet, where one may get requests, and otherwise to another address.
    ///
    /// An attempt whose peer took no connection goes on at the next address of the same endpoint, because a
    /// name may have addresses at which nothing listens. It is a new attempt when there is no further address.
    ///
    /// # Errors
    /// Why there is no endpoint; of several reasons, the one that ends first.
    pub fn pick(
        &self,
        turn: &mut Turn,
        before: &[Attempt],
        now: Instant,
    ) -> Result<Picked, Unusable> {
        let goes_on = self.has_another_address(turn);
        turn.has_no_connection = false;
        if goes_on {
            turn.addresses += 1;
            if let Some(picked) = self.enter(turn.endpoint, turn.address + turn.addresses - 1, now)
            {
                return Ok(picked);
            }
        }
        if turn.attempts == 0 {
            self.budget.count_request(now);
        }
        turn.attempts += 1;
        let is_new = |at: usize| before.iter().all(|attempt| attempt.endpoint != Some(at));
        let chosen = self.choose(turn, now, is_new);
        let chosen = match chosen {
            None if !before.is_empty() => self.choose(turn, now, |_| true),
            chosen => chosen,
        };
        chosen.ok_or_else(|| self.all_unusable(now))
    }

    /// Whether the request of `turn` gets another attempt at `now`: it has one left, an endpoint may get requests, and the
    /// budget allows it.
    pub fn take_retry(&self, turn: &Turn, now: Instant) -> bool {
        if turn.attempts > self.rules.retries || !self.has_usable(now) {
            return false;
        }
        let allowed = self.budget.take_retry(self.rules.retry_budget, now);
        let counter = if allowed { &self.metrics.retries } else { &self.metrics.retries_refused };
        counter.inc();
        allowed
    }

    fn has_usable(&self, now: Instant) -> bool {
        self.endpoints().any(|endpoint| self.unusable(endpoint, now).is_none())
    }

    /// Whether an endpoint may get requests at `now` to which none of the attempts `before` went.
    pub fn has_another(&self, before: &[Attempt], now: Instant) -> bool {
        let is_new = |at: usize| before.iter().all(|attempt| attempt.endpoint != Some(at));
        let mut endpoints = self.endpoints().enumerate();
        endpoints.any(|(at, endpoint)| is_new(at) && self.unusable(endpoint, now).is_none())
    }

    /// Chooses among the endpoints that `admits`.
    fn choose(
        &self,
        turn: &mut Turn,
        now: Instant,
        admits: impl Fn(usize) -> bool,
    ) -> Option<Picked> {
        // Another request may be on trial meanwhile, or a look-up may find no address: then the next is chosen.
        for _ in 0..=self.members.len() {
            let at = self.next(turn, now, &admits)?;
            let endpoint = &self.members[at].endpoint;
            let address = match at == turn.endpoint && turn.attempts > 1 {
                true => turn.address + turn.addresses,
                false => endpoint.turn(),
            };
            if let Some(picked) = self.enter(at, address, now) {
                (turn.endpoint, turn.address, turn.addresses) = (at, address, 1);
                return Some(picked);
            }
        }
        None
    }

    /// The next endpoint of those that `admits` and that may get requests at `now`.
    fn next(&self, turn: &Turn, now: Instant, admits: impl Fn(usize) -> bool) -> Option<usize> {
        let fits =
            |at: usize| admits(at) && self.unusable(&self.members[at].endpoint, now).is_none();
        if self.members.len() == 1 {
            return fits(0).then_some(0);
        }
        let slow_start = self.rules.slow_start;
        let is_retry = turn.attempts > 1;
        let candidates = Candidates { members: &self.members, fits, slow_start, now, is_retry };
        match (&self.rules.balance, turn.key) {
            (Balance::Hash(_), Some(key)) => candidates.of_key(key),
            (Balance::LeastConnections, _) => candidates.least_busy(&self.position),
            (Balance::RoundRobin | Balance::Hash(_), _) => candidates.in_turn(&self.position),
        }
    }

    /// Lets an attempt pass to the endpoint `at`.
    fn enter(&self, at: usize, address: usize, now: Instant) -> Option<Picked> {
        let endpoint = &self.members[at].endpoint;
        let mut peer = Box::new(endpoint.peer(address)?);
        let timeouts = &self.rules.timeouts;
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect * 2);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        let pass = endpoint.pass(&self.rules.breaker, now)?;
        if self.counts_requests() {
            endpoint.request_begins();
        }
        Some(Picked { endpoint: at, pass, peer })
    }

    /// Why this endpoint may get no request at `now`.
    fn unusable(&self, endpoint: &Endpoint, now: Instant) -> Option<Unusable> {
        endpoint.unusable(self.rules.health.is_some(), now)
    }

    /// Why no endpoint may get a request at `now`.
    fn all_unusable(&self, now: Instant) -> Unusable {
        let reasons = self.endpoints().filter_map(|endpoint| self.unusable(endpoint, now));
        reasons.min_by_key(|reason| reason.wait()).unwrap_or(Unusable::BreakerOpen(Duration::ZERO))
    }

    /// Records that the header of an answer with this `status` has arrived. It decides about an attempt on trial, which
    /// would otherwise keep other requests away for as long as its answer takes.
    pub fn answer_began(&self, attempt: &mut Attempt, status: u16, now: Instant) {
        attempt.status = Some(status);
        if attempt.pass == Pass::OnTrial {
            self.learn(attempt, self.verdict(attempt, AttemptEnd::Answered), now);
            attempt.pass = Pass::Freely;
        }
    }

    fn counts_requests(&self) -> bool {
        self.rules.balance == Balance::LeastConnections
    }

    /// Records an attempt that has ended in this way, at `now`.
    pub fn attempt_ended(&self, attempt: &Attempt, end: AttemptEnd, now: Instant) {
        if self.counts_requests()
            && let Some(endpoint) = attempt.endpoint.and_then(|at| self.endpoint(at))
        {
            endpoint.request_ends();
        }
        if let Some(first_byte) = attempt.first_byte {
            self.metrics.seconds.observe(first_byte.as_secs_f64());
        }
        self.learn(attempt, self.verdict(attempt, end), now);
    }

    fn learn(&self, attempt: &Attempt, verdict: Verdict, now: Instant) {
        if let Some(endpoint) = attempt.endpoint.and_then(|at| self.endpoint(at)) {
            endpoint.learn(attempt.pass, verdict, &self.rules.breaker, attempt.started, now);
        }
    }

    /// What an attempt that ends in this way says about its endpoint.
    fn verdict(&self, attempt: &Attempt, end: AttemptEnd) -> Verdict {
        let is_failure = |status| self.rules.breaker.statuses.contain(status);
        match end {
            AttemptEnd::Answered if attempt.status.is_some_and(is_failure) => Verdict::Bad,
            AttemptEnd::Answered => Verdict::Good,
            AttemptEnd::Failed(failure) if failure.is_of_connection() => Verdict::Bad,
            AttemptEnd::Failed(_) | AttemptEnd::Stale | AttemptEnd::Abandoned => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::attempt::Failure;
    use super::super::rules::{BreakerRules, EndpointRules, EndpointUrl, Scheme, Timeouts};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Rules of an upstream whose endpoints have these hosts and weights, at the ports from 1000 on.
    fn rules(endpoints: &[(&str, u32)]) -> UpstreamRules {
        let endpoint = |(at, &(host, weight)): (usize, &(&str, u32))| EndpointRules {
            url: EndpointUrl { host: host.into(), port: 1_000 + at as u16, scheme: Scheme::Http },
            weight,
        };
        UpstreamRules {
            name: "u".into(),
            endpoints: endpoints.iter().enumerate().map(endpoint).collect(),
            balance: Balance::RoundRobin,
            slow_start: Duration::ZERO,
            connections: Default::default(),
            retries: 2,
            retry_budget: 20,
            timeouts: Timeouts {
                connect: SECOND,
                read: SECOND,
                write: SECOND,
                idle: SECOND,
                deadlines: Default::default(),
            },
            breaker: BreakerRules {
                failures: Some(2),
                open_for: SECOND,
                statuses: Default::default(),
            },
            resolve_every: SECOND,
            health: None,
        }
    }

    fn upstream(endpoints: &[(&str, u32)]) -> Upstream {
        Upstream::new(Arc::new(rules(endpoints)), None)
    }

    /// A request with its attempts.
    struct Request {
        turn: Turn,
        attempts: Vec<Attempt>,
    }

    impl Request {
        fn new() -> Self {
            Self { turn: Turn::default(), attempts: Vec::new() }
        }

        fn pick(&mut self, upstream: &Upstream, now: Instant) -> Result<Picked, Unusable> {
            let picked = upstream.pick(&mut self.turn, &self.attempts, now)?;
            self.attempts.push(Attempt::new(Some(picked.endpoint), picked.pass, now));
            Ok(picked)
        }

        fn end(&mut self, upstream: &Upstream, end: AttemptEnd, now: Instant) {
            upstream.attempt_ended(self.attempts.last().unwrap(), end, now);
        }
    }

    /// The endpoint of the next request, which follows from the port of its peer.
    fn at(upstream: &Upstream, now: Instant) -> Result<usize, Unusable> {
        let picked = Request::new().pick(upstream, now)?;
        let port = picked.peer._address.as_inet().map(SocketAddr::port);
        assert_eq!(port, Some(1_000 + picked.endpoint as u16));
        Ok(picked.endpoint)
    }

    fn sequence(upstream: &Upstream, requests: usize) -> Vec<usize> {
        (0..requests).map(|_| at(upstream, Instant::now()).unwrap()).collect()
    }

    const HERE: &str = "127.0.0.1";

    #[test]
    fn requests_follow_the_weights_evenly() {
        assert_eq!(sequence(&upstream(&[(HERE, 1), (HERE, 1)]), 4), [0, 1, 0, 1]);
        assert_eq!(sequence(&upstream(&[(HERE, 3), (HERE, 1)]), 8), [0, 0, 1, 0, 0, 0, 1, 0]);
        let three = sequence(&upstream(&[(HERE, 5), (HERE, 1), (HERE, 1)]), 14);
        for half in three.chunks(7) {
            let of = |at: usize| half.iter().filter(|chosen| **chosen == at).count();
            assert_eq!([of(0), of(1), of(2)], [5, 1, 1], "{three:?}");
        }
    }

    #[test]
    fn retries_go_elsewhere_first() {
        let (upstream, now) = (upstream(&[(HERE, 1), (HERE, 9), (HERE, 1)]), Instant::now());
        for _ in 0..20 {
            let mut request = Request::new();
            let mut tried: Vec<_> =
                (0..3).map(|_| request.pick(&upstream, now).unwrap().endpoint).collect();
            tried.sort_unstable();
            assert_eq!(tried, [0, 1, 2]);
            assert!(!upstream.has_another(&request.attempts, now));
            request.pick(&upstream, now).unwrap();
            assert_eq!(request.turn.attempts(), 4);
        }
    }

    #[test]
    fn an_endpoint_that_fails_gets_no_requests_until_one_succeeds() {
        let (upstream, start) = (upstream(&[(HERE, 1), (HERE, 1)]), Instant::now());
        let refused = AttemptEnd::Failed(Failure::ConnectRefused);
        let mut failures = 0;
        while failures < 2 {
            let mut request = Request::new();
            if request.pick(&upstream, start).unwrap().endpoint == 0 {
                request.end(&upstream, refused, start);
                failures += 1;
            }
        }
        assert!((0..10).all(|_| at(&upstream, start) == Ok(1)));
        // The first request after the pause is on trial, and the endpoint gets no other until it ends.
        let later = start + SECOND * 2;
        let mut trial = Request::new();
        let picked = trial.pick(&upstream, later).unwrap();
        assert_eq!((picked.endpoint, picked.pass), (0, Pass::OnTrial));
        assert!((0..10).all(|_| at(&upstream, later) == Ok(1)));
        // A client that leaves says nothing, and the next request is on trial.
        trial.end(&upstream, AttemptEnd::Abandoned, later);
        let mut trial = Request::new();
        assert_eq!(trial.pick(&upstream, later).unwrap().pass, Pass::OnTrial);
        // The header of the answer decides, before the answer ends.
        upstream.answer_began(&mut trial.attempts[0], 200, later);
        let mut zeros = sequence(&upstream, 10);
        zeros.retain(|at| *at == 0);
        assert!((4..=6).contains(&zeros.len()), "no more than its share: {zeros:?}");
        trial.end(&upstream, AttemptEnd::Answered, later);
    }

    #[test]
    fn only_what_the_endpoint_did_counts() {
        let statuses = crate::upstream::rules::Statuses(vec![500..=599]);
        let mut rules = rules(&[(HERE, 1)]);
        rules.breaker.statuses = statuses;
        let rules = Arc::new(rules);
        for (status, end, opens) in [
            (None, AttemptEnd::Failed(Failure::ConnectTimeout), true),
            (None, AttemptEnd::Failed(Failure::Closed), true),
            (Some(200), AttemptEnd::Failed(Failure::ReadFailed), true),
            (Some(503), AttemptEnd::Answered, true),
            (Some(404), AttemptEnd::Answered, false),
            (None, AttemptEnd::Failed(Failure::MalformedAnswer), false),
            (None, AttemptEnd::Stale, false),
            (None, AttemptEnd::Abandoned, false),
        ] {
            let (upstream, now) = (Upstream::new(Arc::clone(&rules), None), Instant::now());
            for _ in 0..2 {
                let mut request = Request::new();
                request.pick(&upstream, now).unwrap();
                if let Some(status) = status {
                    upstream.answer_began(&mut request.attempts[0], status, now);
                }
                request.end(&upstream, end, now);
            }
            let expected = if opens { Err(Unusable::BreakerOpen(SECOND)) } else { Ok(0) };
            assert_eq!(at(&upstream, now), expected, "{status:?} {end:?}");
            assert_eq!(upstream.has_usable(now), !opens);
        }
    }

    #[test]
    fn endpoints_outlive_the_rules_of_their_upstream() {
        let first = upstream(&[(HERE, 1), ("127.0.0.2", 1)]);
        let mut changed = rules(&[(HERE, 7), ("127.0.0.3", 1)]);
        changed.retries = 9;
        let second = Upstream::new(Arc::new(changed), Some(&first));
        let same: Vec<_> =
            first.endpoints().zip(second.endpoints()).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(same, [true, false]);
    }

    /// The addresses that `connections` of a request go to when each fails.
    fn addresses_of(upstream: &Upstream, request: &mut Request, connections: usize) -> Vec<String> {
        let mut address = || {
            let picked = request.pick(upstream, Instant::now()).unwrap();
            request.turn.connection_failed();
            picked.peer._address.to_string()
        };
        (0..connections).map(|_| address()).collect()
    }

    fn set_addresses(upstream: &Upstream, endpoint: usize, addresses: &[&str]) {
        let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        upstream.endpoint(endpoint).unwrap().set_addresses(&addresses);
    }

    #[test]
    fn an_attempt_moves_on_through_the_addresses_of_a_name() {
        let upstream = upstream(&[("one.invalid", 1), ("two.invalid", 1)]);
        set_addresses(&upstream, 0, &["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"]);
        set_addresses(&upstream, 1, &["127.0.0.1:2", "127.0.0.2:2"]);
        let mut request = Request::new();
        let mut tried = addresses_of(&upstream, &mut request, 3);
        assert_eq!(request.turn.attempts(), 1, "all addresses of an endpoint are one attempt");
        assert!(!upstream.has_another_address(&request.turn));
        tried.sort_unstable();
        assert_eq!(tried, ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"]);
        let mut tried = addresses_of(&upstream, &mut request, 2);
        assert_eq!(request.turn.attempts(), 2);
        tried.sort_unstable();
        assert_eq!(tried, ["127.0.0.1:2", "127.0.0.2:2"]);
    }

    #[test]
    fn a_connection_that_was_made_ends_the_search_for_an_address() {
        let upstream = upstream(&[("one.invalid", 1)]);
        set_addresses(&upstream, 0, &["127.0.0.1:1", "127.0.0.2:1"]);
        let mut request = Request::new();
        let mut address =
            || request.pick(&upstream, Instant::now()).unwrap().peer._address.to_string();
        let first = address();
        assert_ne!(address(), first, "a retry goes to the other address");
        assert!(!upstream.has_another_address(&request.turn), "the peer has answered, and badly");
        assert_eq!(request.turn.attempts(), 2);
    }

    #[test]
    fn endpoints_without_an_address_are_passed_over() {
        let upstream = upstream(&[("a.invalid", 1), ("::1", 1)]);
        for _ in 0..3 {
            assert_eq!(at(&upstream, Instant::now()), Ok(1));
        }
        let nowhere = self::upstream(&[("a.invalid", 1)]);
        let reason = at(&nowhere, Instant::now());
        assert_eq!(reason, Err(Unusable::NoAddress(Duration::ZERO)));
    }
}
