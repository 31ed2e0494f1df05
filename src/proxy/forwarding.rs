//! A request that has a permit: its route, and its attempts to reach an upstream.
//!
//! Pingora's hooks share one context, which exists before the permit does. They ask for the permit in
//! [`Forwarding::of`] alone, and pass it on as an argument. This file must not know what follows a failed attempt.

use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use smallvec::SmallVec;

use crate::admission::Permit;
use crate::upstream::attempt::{Attempt, AttemptEnd, Failure};
use crate::upstream::pool::Turn;

/// A request on its way to an upstream.
pub struct Forwarding {
    permit: Permit,
    turn: Turn,
    /// Most requests need one attempt.
    attempts: SmallVec<[Attempt; 1]>,
    /// Bytes of the request's body that the present attempt has been given.
    pub body_seen: u64,
}

impl Forwarding {
    /// Begins to forward the request that got `permit`.
    pub fn new(permit: Permit) -> Self {
        Self { permit, turn: Turn::default(), attempts: SmallVec::new(), body_seen: 0 }
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

    /// The attempts, the last one last.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The `host:port` of the endpoint that the present attempt goes to.
    pub fn authority(&self) -> Option<&str> {
        let endpoint = self.attempts.last()?.endpoint?;
        self.permit.upstream().endpoints().get(endpoint).map(|endpoint| &*endpoint.authority)
    }

    /// Starts the next attempt. `None` when no endpoint has an address.
    pub fn next_peer(&mut self) -> Option<Box<HttpPeer>> {
        // Each attempt sends the body from its beginning.
        self.body_seen = 0;
        let started = Instant::now();
        let picked = self.permit.upstream().pick(&mut self.turn);
        self.attempts.push(Attempt::new(picked.as_ref().map(|(endpoint, _)| *endpoint), started));
        if picked.is_none() {
            self.end_attempt(AttemptEnd::Failed(Failure::NoAddress), started);
        }
        picked.map(|(_, peer)| peer)
    }

    /// Notes that the present attempt has a connection, which was `kept` from an earlier one or is new.
    pub fn connected(&mut self, kept: bool) {
        if let Some(attempt) = self.attempts.last_mut() {
            // A kept connection is there at once, and the clock need not be asked.
            let after = if kept { Duration::ZERO } else { attempt.started.elapsed() };
            attempt.connected = Some(after);
        }
    }

    /// Notes that the header of an answer to the present attempt has arrived.
    pub fn answer_began(&mut self) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.first_byte = Some(attempt.started.elapsed());
        }
    }

    /// Notes that the present attempt ends at `now`, if it has not ended before, and tells the upstream.
    pub fn end_attempt(&mut self, end: AttemptEnd, now: Instant) {
        if let Some(attempt) = self.attempts.last_mut()
            && attempt.end.is_none()
        {
            attempt.end = Some((now.saturating_duration_since(attempt.started), end));
            self.permit.upstream().attempt_ended(attempt);
        }
    }

    /// Notes that the present attempt has no connection; whether another connection may be tried.
    pub fn may_connect_elsewhere(&mut self) -> bool {
        self.turn.connection_failed();
        self.permit.upstream().has_another_address(&self.turn) || self.may_retry()
    }

    /// Whether another attempt may follow.
    pub fn may_retry(&self) -> bool {
        self.turn.attempts() <= self.permit.upstream().rules().retries
    }
}
