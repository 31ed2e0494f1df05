//! An upstream: its endpoints, and the choice of one for each attempt.
//!
//! This file must not know requests. What an upstream learns from attempts is in `learning`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;

use super::attempt::{Attempt, AttemptEnd};
use super::balance::{Candidates, Member, Position};
use super::breaker::Pass;
use super::budget::Budget;
use super::endpoint::{Endpoint, Fitness, Unusable};
use super::rules::{Balance, UpstreamRules};
use crate::telemetry::configured::UpstreamMetrics;

/// An upstream.
pub struct Upstream {
    rules: Arc<UpstreamRules>,
    members: Vec<Member>,
    position: Position,
    budget: Arc<Budget>,
    pub(super) metrics: UpstreamMetrics,
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
    /// Whether a part of the request's body has yet to come from the client.
    body_follows: bool,
    /// Whether an attempt was on trial.
    had_trial: bool,
    /// Whether a kept connection had ended.
    had_stale: bool,
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

    /// Sets whether a part of the request's body has yet to come from the client.
    pub fn set_body_follows(&mut self, follows: bool) {
        self.body_follows = follows;
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
            let now = Instant::now();
            match (kept, previous) {
                (Some(_), _) => shared.follow(&rules.breaker, now),
                (None, Some(_)) => shared.begins_slowly(now),
                (None, None) => {}
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
            && self
                .endpoint(turn.endpoint)
                .is_some_and(|endpoint| turn.addresses < endpoint.addresses())
    }

    /// Chooses an endpoint at `now` for a copy of a request. A copy goes to an endpoint only whose breaker is closed: whether
    /// an endpoint works again is for a request to try. Its end must be told as [`AttemptEnd::Abandoned`], for copies say
    /// nothing about the endpoints of requests.
    ///
    /// # Errors
    /// When there is no such endpoint.
    pub fn pick_for_copy(&self, now: Instant) -> Result<Picked, Unusable> {
        let turn = Turn { attempts: 1, ..Turn::default() };
        let chosen = self.best(&turn, now, |_, fitness| fitness == Fitness::Works);
        let picked = chosen.and_then(|at| {
            let peer = self.peer(at, self.members[at].endpoint.turn())?;
            Some(self.begin(at, Pass::Freely, peer))
        });
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
        if goes_on && let Some(last) = before.last() {
            turn.addresses += 1;
            let address = turn.address + turn.addresses - 1;
            if let Some(peer) = self.peer(turn.endpoint, address) {
                return Ok(self.begin(turn.endpoint, last.pass, peer));
            }
        }
        if turn.attempts == 0 {
            self.budget.request_begins(now);
        }
        turn.attempts += 1;
        self.choose(turn, before, now).ok_or_else(|| self.all_unusable(now))
    }

    /// The request of `turn` has ended.
    pub fn request_ended(&self, turn: &Turn) {
        if turn.attempts > 0 {
            self.budget.request_ends();
        }
    }

    /// Whether the request of `turn`, which has made the attempts `before`, gets another one at `now`: it has one left, an
    /// endpoint may get it, and the budget allows it.
    ///
    /// An attempt that did not reach a server costs nothing of the budget, because no server has worked for it. A kept
    /// connection that had ended is not even an attempt, once in a request.
    pub fn take_retry(&self, turn: &mut Turn, before: &[Attempt], now: Instant) -> bool {
        let end = before.last().and_then(|attempt| attempt.end).map(|(_, end)| end);
        turn.had_stale |= end == Some(AttemptEnd::Stale);
        let left = self.rules.retries + usize::from(turn.had_stale);
        if turn.attempts > left || !self.has_next(turn, before, now) {
            return false;
        }
        let is_free = match end {
            Some(AttemptEnd::Failed(failure)) => failure.is_before_request(),
            end => end == Some(AttemptEnd::Stale),
        };
        let allowed = is_free || self.budget.take_retry(self.rules.retry_budget, now);
        let counter = if allowed { &self.metrics.retries } else { &self.metrics.retries_refused };
        counter.inc();
        allowed
    }

    /// Whether an endpoint may get the next attempt. The last resort is tried once.
    fn has_next(&self, turn: &Turn, before: &[Attempt], now: Instant) -> bool {
        let mut endpoints = self.endpoints().enumerate();
        endpoints.any(|(at, endpoint)| match self.fitness(endpoint, now) {
            Ok(Fitness::Works) => true,
            Ok(Fitness::NeedsTrial) => !turn.had_trial,
            Ok(Fitness::LastResort) => has_not_had(before, at),
            Err(_) => false,
        })
    }

    /// Whether an endpoint may get the request of `turn` at `now` to which none of the attempts `before` went.
    pub fn has_another(&self, turn: &Turn, before: &[Attempt], now: Instant) -> bool {
        let mut endpoints = self.endpoints().enumerate();
        endpoints.any(|(at, endpoint)| {
            is_new(before, at)
                && match self.fitness(endpoint, now) {
                    Ok(Fitness::Works) => true,
                    Ok(Fitness::NeedsTrial) => !turn.had_trial,
                    Ok(Fitness::LastResort) | Err(_) => false,
                }
        })
    }

    /// Chooses an endpoint, and lets the next attempt pass to it.
    fn choose(&self, turn: &mut Turn, before: &[Attempt], now: Instant) -> Option<Picked> {
        // Another request may be on trial meanwhile, or a look-up may find no address: then the next is chosen.
        for _ in 0..=self.members.len() {
            let (at, anyway) = self.next(turn, before, now)?;
            let endpoint = &self.members[at].endpoint;
            let address = match at == turn.endpoint && turn.attempts > 1 {
                true => turn.address + turn.addresses,
                false => endpoint.turn(),
            };
            let Some(peer) = self.peer(at, address) else { continue };
            let pass = match anyway {
                true => Some(Pass::Anyway),
                false => endpoint.pass(&self.rules.breaker, now),
            };
            if let Some(pass) = pass {
                (turn.endpoint, turn.address, turn.addresses) = (at, address, 1);
                turn.had_trial |= matches!(pass, Pass::OnTrial(_));
                return Some(self.begin(at, pass, peer));
            }
        }
        None
    }

    /// The endpoint of the next attempt at `now`, and whether it gets the attempt although its breaker is open.
    ///
    /// An endpoint that has not had the request is better. A request tries one endpoint at most whose breaker is open, so
    /// that such endpoints cannot take all of its attempts: its first attempt does, or one for which nothing better is
    /// left. A request whose body has yet to come tries none if it need not, because its client may stall.
    fn next(&self, turn: &Turn, before: &[Attempt], now: Instant) -> Option<(usize, bool)> {
        let tries = !turn.had_trial;
        let tries_gladly = tries && before.is_empty() && !turn.body_follows;
        let fits = |fitness, tries| match fitness {
            Fitness::Works => true,
            Fitness::NeedsTrial => tries,
            Fitness::LastResort => false,
        };
        let new = |at| is_new(before, at);
        let usable = self
            .best(turn, now, |at, fitness| new(at) && fits(fitness, tries_gladly))
            .or_else(|| self.best(turn, now, |at, fitness| new(at) && fits(fitness, tries)))
            .or_else(|| self.best(turn, now, |_, fitness| fits(fitness, tries)));
        if let Some(at) = usable {
            return Some((at, false));
        }
        let last_resort = |at, fitness| fitness == Fitness::LastResort && has_not_had(before, at);
        self.best(turn, now, last_resort).map(|at| (at, true))
    }

    /// The endpoint that comes next of those that `admits`.
    fn best(
        &self,
        turn: &Turn,
        now: Instant,
        admits: impl Fn(usize, Fitness) -> bool,
    ) -> Option<usize> {
        let fits = |at: usize| {
            let fitness = self.fitness(&self.members[at].endpoint, now);
            fitness.is_ok_and(|fitness| admits(at, fitness))
        };
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

    /// The peer at an address of the endpoint `at`.
    fn peer(&self, at: usize, address: usize) -> Option<Box<HttpPeer>> {
        let mut peer = Box::new(self.endpoint(at)?.peer(address)?);
        let timeouts = &self.rules.timeouts;
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect * 2);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        Some(peer)
    }

    /// Begins an attempt at the endpoint `at`.
    fn begin(&self, at: usize, pass: Pass, peer: Box<HttpPeer>) -> Picked {
        if self.counts_requests() {
            self.members[at].endpoint.request_begins();
        }
        Picked { endpoint: at, pass, peer }
    }

    /// Whether this endpoint may get a request at `now`.
    fn fitness(&self, endpoint: &Endpoint, now: Instant) -> Result<Fitness, Unusable> {
        endpoint.fitness(self.rules.health.is_some(), now)
    }

    /// Why no endpoint may get a request at `now`.
    fn all_unusable(&self, now: Instant) -> Unusable {
        let every = self.rules.resolve_every;
        let reasons = self.endpoints().filter_map(|endpoint| {
            Some(match self.fitness(endpoint, now).err()? {
                // Asked here alone: it takes a lock.
                Unusable::NoAddress(_) => Unusable::NoAddress(endpoint.looked_up_after(every, now)),
                reason => reason,
            })
        });
        reasons.min_by_key(|reason| reason.wait()).unwrap_or(Unusable::BreakerOpen(Duration::ZERO))
    }

    pub(super) fn counts_requests(&self) -> bool {
        self.rules.balance == Balance::LeastConnections
    }
}

/// Whether none of the attempts `before` went to the endpoint `at`.
fn is_new(before: &[Attempt], at: usize) -> bool {
    before.iter().all(|attempt| attempt.endpoint != Some(at))
}

/// Whether the endpoint `at` has not had the request: the attempts `before` met at most a kept connection of it that had
/// ended.
fn has_not_had(before: &[Attempt], at: usize) -> bool {
    let is_stale = |attempt: &Attempt| attempt.end.is_some_and(|(_, end)| end == AttemptEnd::Stale);
    before.iter().all(|attempt| attempt.endpoint != Some(at) || is_stale(attempt))
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
            upstream.attempt_ended(&mut self.attempts, end, now);
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
            assert!(!upstream.has_another(&request.turn, &request.attempts, now));
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
        assert_eq!(picked.endpoint, 0);
        assert!(is_trial(picked.pass));
        assert!((0..10).all(|_| at(&upstream, later) == Ok(1)));
        // A client that leaves says nothing, and the next request is on trial.
        trial.end(&upstream, AttemptEnd::Abandoned, later);
        let mut trial = Request::new();
        assert!(is_trial(trial.pick(&upstream, later).unwrap().pass));
        // The header of the answer decides, before the answer ends.
        upstream.answer_began(&mut trial.attempts, 200, later);
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
                    upstream.answer_began(&mut request.attempts, status, now);
                }
                request.end(&upstream, end, now);
                upstream.settle(&mut request.attempts, now);
            }
            let is_open = upstream.endpoint(0).unwrap().is_breaker_open();
            assert_eq!(is_open, opens, "{status:?} {end:?}");
        }
    }

    fn is_trial(pass: Pass) -> bool {
        matches!(pass, Pass::OnTrial(_))
    }

    /// Lets requests fail in this way, alone, until the breakers of these endpoints are open.
    fn open(upstream: &Upstream, endpoints: &[usize], failure: Failure, now: Instant) {
        while endpoints.iter().any(|at| !upstream.endpoint(*at).unwrap().is_breaker_open()) {
            let mut request = Request::new();
            if endpoints.contains(&request.pick(upstream, now).unwrap().endpoint) {
                request.end(upstream, AttemptEnd::Failed(failure), now);
                upstream.settle(&mut request.attempts, now);
            }
        }
    }

    #[test]
    fn breakers_alone_leave_no_request_without_an_endpoint_that_takes_connections() {
        let (upstream, now) = (upstream(&[(HERE, 1), (HERE, 1)]), Instant::now());
        open(&upstream, &[0], Failure::ReadTimeout, now);
        assert!((0..4).all(|_| at(&upstream, now) == Ok(1)));
        open(&upstream, &[1], Failure::ReadTimeout, now);
        let first = sequence(&upstream, 8).into_iter().filter(|at| *at == 0).count();
        assert!((3..=5).contains(&first), "they take turns: {first}");
        // An answer closes the breaker.
        let mut request = Request::new();
        let chosen = request.pick(&upstream, now).unwrap();
        assert_eq!(chosen.pass, Pass::Anyway);
        upstream.answer_began(&mut request.attempts, 200, now);
        assert!((0..4).all(|_| at(&upstream, now) == Ok(chosen.endpoint)));
    }

    #[test]
    fn endpoints_that_refuse_connections_get_only_trials() {
        let (upstream, now) = (upstream(&[(HERE, 1), (HERE, 1)]), Instant::now());
        open(&upstream, &[0, 1], Failure::ConnectRefused, now);
        let soon = Duration::from_millis(250);
        assert_eq!(at(&upstream, now), Err(Unusable::BreakerOpen(soon)));
        let later = now + soon;
        let mut trial = Request::new();
        assert!(is_trial(trial.pick(&upstream, later).unwrap().pass));
        trial.end(&upstream, AttemptEnd::Failed(Failure::ConnectRefused), later);
        // A trial is one to a request, or the trials of many endpoints would take all of its attempts.
        assert!(!upstream.take_retry(&mut trial.turn, &trial.attempts, later));
    }

    #[test]
    fn retries_and_requests_with_a_body_leave_trials_to_others() {
        let (upstream, now) = (upstream(&[(HERE, 1), (HERE, 1), (HERE, 1)]), Instant::now());
        open(&upstream, &[0, 1], Failure::ConnectRefused, now);
        let later = now + SECOND;
        let mut upload = Request::new();
        upload.turn.set_body_follows(true);
        assert_eq!(upload.pick(&upstream, later).unwrap().pass, Pass::Freely);
        let mut request = Request::new();
        let first = request.pick(&upstream, later).unwrap();
        assert!(is_trial(first.pass));
        request.end(&upstream, AttemptEnd::Failed(Failure::ConnectRefused), later);
        assert!(upstream.take_retry(&mut request.turn, &request.attempts, later));
        let second = request.pick(&upstream, later).unwrap();
        assert_eq!((second.endpoint, second.pass), (2, Pass::Freely));
    }

    #[test]
    fn a_request_that_fails_at_two_endpoints_is_itself_the_cause() {
        let now = Instant::now();
        let failed = |failure| AttemptEnd::Failed(failure);
        // (how the first endpoint fails, how the request ends at the second, which breakers open)
        for (first, second, opens) in [
            (Failure::Closed, Some(failed(Failure::Closed)), [false, false]),
            (Failure::ReadTimeout, Some(failed(Failure::ReadTimeout)), [false, false]),
            (Failure::MalformedAnswer, Some(failed(Failure::MalformedAnswer)), [false, false]),
            (Failure::Closed, Some(AttemptEnd::Answered), [true, false]),
            (Failure::MalformedAnswer, Some(AttemptEnd::Answered), [true, false]),
            (Failure::Closed, Some(AttemptEnd::Abandoned), [true, false]),
            (Failure::Closed, None, [true, false]),
            (Failure::MalformedAnswer, None, [false, false]),
            (Failure::ConnectTimeout, Some(failed(Failure::ConnectTimeout)), [true, true]),
        ] {
            let mut rules = rules(&[(HERE, 1), (HERE, 1)]);
            rules.breaker.failures = Some(1);
            let upstream = Upstream::new(Arc::new(rules), None);
            let mut request = Request::new();
            request.pick(&upstream, now).unwrap();
            request.end(&upstream, failed(first), now);
            if let Some(second) = second {
                request.pick(&upstream, now).unwrap();
                if second == AttemptEnd::Answered {
                    upstream.answer_began(&mut request.attempts, 200, now);
                }
                request.end(&upstream, second, now);
            }
            upstream.settle(&mut request.attempts, now);
            let open = [0, 1].map(|at| upstream.endpoint(at).unwrap().is_breaker_open());
            assert_eq!(open, opens, "{first:?} {second:?}");
        }
    }

    #[test]
    fn an_attempt_without_a_server_costs_nothing_of_the_budget() {
        let mut rules = rules(&[(HERE, 1), (HERE, 1)]);
        (rules.retry_budget, rules.breaker.failures) = (0, None);
        let (upstream, now) = (Upstream::new(Arc::new(rules), None), Instant::now());
        for (end, granted) in [
            (AttemptEnd::Failed(Failure::ConnectRefused), 100),
            (AttemptEnd::Stale, 100),
            (AttemptEnd::Failed(Failure::ReadTimeout), 30),
        ] {
            let retries = (0..100).filter(|_| {
                let mut request = Request::new();
                request.pick(&upstream, now).unwrap();
                request.end(&upstream, end, now);
                upstream.take_retry(&mut request.turn, &request.attempts, now)
            });
            assert_eq!(retries.count(), granted, "{end:?}");
        }
    }

    #[test]
    fn one_kept_connection_that_had_ended_is_no_attempt() {
        let mut rules = rules(&[(HERE, 1)]);
        rules.retries = 0;
        let (upstream, now) = (Upstream::new(Arc::new(rules), None), Instant::now());
        let mut request = Request::new();
        for again in [true, false] {
            request.pick(&upstream, now).unwrap();
            request.end(&upstream, AttemptEnd::Stale, now);
            assert_eq!(upstream.take_retry(&mut request.turn, &request.attempts, now), again);
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
        let now = Instant::now();
        // Its first look-up is due. While one runs, nobody knows how long that takes.
        let soon = Duration::from_millis(1);
        assert_eq!(at(&nowhere, now), Err(Unusable::NoAddress(soon)));
        let endpoint = nowhere.endpoint(0).unwrap();
        assert!(endpoint.schedule.lock().start(SECOND, now.into()));
        assert_eq!(at(&nowhere, now), Err(Unusable::NoAddress(Duration::ZERO)));
    }
}
