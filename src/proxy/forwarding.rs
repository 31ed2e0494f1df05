//! A request that has a permit: its route, and its attempts to reach an upstream.
//!
//! Pingora's hooks share one context, which exists before the permit does. They ask for the permit in
//! [`Forwarding::of`] alone, and pass it on as an argument. This file must not know what follows a failed attempt.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use smallvec::SmallVec;

use crate::admission::Permit;
use crate::auth::Principal;
use crate::upstream::attempt::{Attempt, AttemptEnd, Failure};
use crate::upstream::balance::key;
use crate::upstream::breaker::Pass;
use crate::upstream::endpoint::{Endpoint, Unusable};
use crate::upstream::pool::{Picked, Turn, Upstream};
use crate::upstream::rules::{Balance, Deadlines, HashKey};

/// A request on its way to an upstream.
pub struct Forwarding {
    permit: Permit,
    turn: Turn,
    /// Most requests need one attempt.
    attempts: SmallVec<[Attempt; 1]>,
    pub(super) deadlines: Deadlines,
    /// When the time for all attempts runs out.
    pub(super) due: Option<Instant>,
    /// Bytes of the request's body that the present attempt has been given.
    pub body_seen: u64,
}

impl Forwarding {
    /// Begins to forward the request that got `permit`, and whose header was complete when it `started`.
    pub fn new(permit: Permit, started: Instant) -> Self {
        let deadlines = permit.upstream().rules().timeouts.deadlines;
        let deadlines = deadlines.narrowed(permit.route().deadlines);
        let due = deadlines.total.map(|total| started + total);
        let (turn, attempts) = (Turn::default(), SmallVec::new());
        Self { permit, turn, attempts, deadlines, due, body_seen: 0 }
    }

    /// Lets the request end at `due`, which its client has set. No endpoint is at fault when that time runs out.
    pub fn end_at(&mut self, due: Instant) {
        if self.due.is_none_or(|own| due < own) {
            (self.due, self.deadlines.total) = (Some(due), Some(Duration::MAX));
        }
    }

    /// The forwarding of a hook that Pingora calls only after `request_filter` has let the request pass.
    ///
    /// # Errors
    /// When the request has no permit: a forgotten check cannot become an open door.
    pub fn of(forwarding: &mut Option<Self>) -> Result<&mut Self> {
        match forwarding {
            Some(forwarding) => Ok(forwarding),
            None => Error::e_explain(ErrorType::InternalError, "no permit"),
        }
    }

    /// The proof that the request may pass.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The upstream that the request goes to.
    fn upstream(&self) -> &Upstream {
        self.permit.upstream()
    }

    /// The attempts, the last one last.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The `host:port` of the endpoint that the present attempt goes to.
    pub fn authority(&self) -> Option<&str> {
        let endpoint = self.attempts.last()?.endpoint?;
        self.upstream().endpoint(endpoint).map(|endpoint| &*endpoint.authority)
    }

    /// Whether the present attempt may go out over HTTP/2 only.
    pub fn needs_http2(&self) -> bool {
        let endpoint = self.attempts.last().and_then(|attempt| attempt.endpoint);
        let endpoint = endpoint.and_then(|at| self.upstream().endpoint(at));
        endpoint.is_some_and(Endpoint::needs_http2)
    }

    /// What the request has in common with others, where the upstream chooses an endpoint by it.
    fn set_key(&mut self, client: Option<IpAddr>, headers: &HeaderMap) {
        let Balance::Hash(by) = &self.upstream().rules().balance else { return };
        let principal = self.permit.principal();
        let key = match by {
            HashKey::Token => principal.map(|principal| key(principal.record().id().as_bytes())),
            HashKey::Organization => principal
                .and_then(Principal::organization_id)
                .map(|organization| key(organization.as_str().as_bytes())),
            HashKey::Ip => client.map(|client| match client.to_canonical() {
                IpAddr::V4(client) => key(&client.octets()),
                // A client has all addresses of its network.
                IpAddr::V6(client) => key(&client.octets()[..8]),
            }),
            HashKey::Header(name) => headers.get(name).map(|value| key(value.as_bytes())),
        };
        if let Some(key) = key {
            self.turn.set_key(key);
        }
    }

    /// Starts the next attempt of the request of `client` with these `headers`. `body_follows`: whether a part of its body
    /// has yet to come.
    ///
    /// # Errors
    /// Why no endpoint can get the request.
    pub fn next_peer(
        &mut self,
        client: Option<IpAddr>,
        headers: &HeaderMap,
        body_follows: bool,
    ) -> std::result::Result<Box<HttpPeer>, Unusable> {
        // Each attempt sends the body from its beginning.
        self.body_seen = 0;
        if self.attempts.is_empty() {
            self.set_key(client, headers);
        }
        self.turn.set_body_follows(body_follows);
        let started = Instant::now();
        let Self { permit, turn, attempts, .. } = self;
        match permit.upstream().pick(turn, attempts, started) {
            Ok(Picked { endpoint, pass, mut peer }) => {
                attempts.push(Attempt::new(Some(endpoint), pass, started));
                self.limit(&mut peer, started);
                Ok(peer)
            }
            Err(reason) => {
                attempts.push(Attempt::new(None, Pass::Freely, started));
                self.end_attempt(AttemptEnd::Abandoned, started);
                Err(reason)
            }
        }
    }

    /// Notes that the present attempt has a connection, which was `kept` from an earlier one or is new.
    pub fn connected(&mut self, kept: bool) {
        if let Some(attempt) = self.attempts.last_mut() {
            // A kept connection is there at once, and the clock need not be asked.
            let after = if kept { Duration::ZERO } else { attempt.started.elapsed() };
            attempt.connected = Some(after);
            if !kept {
                self.permit.upstream().connected(attempt);
            }
        }
    }

    /// Notes that the header of an answer with this `status` to the present attempt has arrived.
    pub fn answer_began(&mut self, status: u16) {
        let Self { permit, attempts, .. } = self;
        if let Some(attempt) = attempts.last_mut() {
            let now = Instant::now();
            // A tunnel has no answer that a duration could be measured for.
            if status != StatusCode::SWITCHING_PROTOCOLS {
                attempt.first_byte = Some(now.saturating_duration_since(attempt.started));
            }
            permit.upstream().answer_began(attempts, status, now);
        }
    }

    /// Notes that the present attempt ends at `now`, if it has not ended before, and tells the upstream.
    pub fn end_attempt(&mut self, end: AttemptEnd, now: Instant) {
        if self.attempts.last().is_some_and(|attempt| attempt.end.is_none()) {
            self.permit.upstream().attempt_ended(&mut self.attempts, end, now);
        }
    }

    /// Notes that no further attempt follows.
    pub fn settle(&mut self, now: Instant) {
        self.permit.upstream().settle(&mut self.attempts, now);
    }

    /// Notes that the present attempt has no connection, and ended in this way. Whether another connection is tried: at
    /// another address of the endpoint, or in another attempt.
    pub fn connects_elsewhere(&mut self, end: AttemptEnd) -> bool {
        let now = Instant::now();
        self.turn.connection_failed();
        let Self { permit, turn, attempts, .. } = self;
        let upstream = permit.upstream();
        if self.due.is_none_or(|due| now < due)
            && upstream.has_another_address(turn)
            && let Some(attempt) = attempts.last_mut()
        {
            upstream.address_failed(attempt, end, now);
            return true;
        }
        self.end_attempt(end, now);
        self.take_retry()
    }

    /// Whether the request gets another attempt. It is taken from the budget of the upstream.
    pub fn take_retry(&mut self) -> bool {
        let now = Instant::now();
        let Self { permit, turn, attempts, .. } = self;
        let again = self.due.is_none_or(|due| now < due)
            && permit.upstream().take_retry(turn, attempts, now);
        if !again {
            self.settle(now);
        }
        again
    }

    /// Whether the answer to an attempt before the last was malformed.
    pub fn was_malformed_before(&self) -> bool {
        let malformed = AttemptEnd::Failed(Failure::MalformedAnswer);
        let before = self.attempts.iter().rev().skip(1);
        before.filter_map(|attempt| attempt.end).any(|(_, end)| end == malformed)
    }

    /// Whether an endpoint may get the request that has not had it yet.
    pub fn has_another_endpoint(&self) -> bool {
        self.upstream().has_another(&self.turn, &self.attempts, Instant::now())
    }
}

/// A request may end without an end of its attempt, as when its task ends. An endpoint on trial must learn of it.
impl Drop for Forwarding {
    fn drop(&mut self) {
        if self.attempts.last().is_some_and(|attempt| attempt.end.is_none()) {
            self.end_attempt(AttemptEnd::Abandoned, Instant::now());
        }
        if !self.attempts.is_empty() {
            self.settle(Instant::now());
        }
        self.upstream().request_ended(&self.turn);
    }
}
