//! The deadlines of a request that is being forwarded: how long each of its steps may take, and when all of it must end.
//!
//! Pingora has a timeout for each connection, read and write. A deadline over several of them is kept by the client's
//! stream, which fails Pingora's next read or write. This file says when, and what the end of an attempt by a deadline
//! means. A request without such deadlines asks no clock here.

use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;

use super::forwarding::Forwarding;
use crate::listener::end::{RequestDeadline, RequestEnd};
use crate::upstream::attempt::{AttemptEnd, Failure};

/// How much later than a deadline the timeouts of Pingora end what the client's stream should have ended: Pingora takes an
/// HTTP/2 connection out of use after a timeout.
const LATER: Duration = Duration::from_millis(25);

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The connection is made, or the request is being sent.
    Sending,
    /// The request was sent whole, and the answer has not begun.
    Waiting,
    /// The answer has begun.
    Answering,
    /// The answer has begun, and may be quiet for long.
    Streaming,
}

impl Forwarding {
    /// Whether there is a deadline over several steps.
    pub fn has_deadlines(&self) -> bool {
        self.due.is_some() || self.deadlines.first_byte.is_some()
    }

    /// When the request ends if the attempt is still at this `step`, and why.
    pub fn deadline(&self, step: Step) -> Option<RequestDeadline> {
        let of = |due: Instant, reason| RequestDeadline { due: due.into(), reason };
        let total = self.due.map(|due| of(due, RequestEnd::Deadline));
        let own = match (step, self.deadlines.first_byte) {
            (Step::Waiting, Some(first)) => {
                Some(of(Instant::now() + first, RequestEnd::FirstByteLate))
            }
            // Pingora's timeout is longer then.
            (Step::Answering, _) if self.has_deadline_of_pauses() => {
                let read = self.permit().upstream().rules().timeouts.read;
                Some(of(Instant::now() + read, RequestEnd::UpstreamSilent))
            }
            _ => None,
        };
        own.into_iter().chain(total).min_by_key(|deadline| deadline.due)
    }

    /// Whether a pause of the answer has a deadline that each part of the answer moves.
    pub fn has_deadline_of_pauses(&self) -> bool {
        let read = self.permit().upstream().rules().timeouts.read;
        self.deadlines.first_byte.is_some_and(|first| first + LATER > read)
    }

    /// Whether the time for all attempts has not run out.
    pub fn has_time(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() < due)
    }

    /// Lets no step with `peer` take longer than the request may.
    pub(super) fn limit(&self, peer: &mut HttpPeer, now: Instant) {
        let options = &mut peer.options;
        if let (Some(first), Some(read)) = (self.deadlines.first_byte, options.read_timeout) {
            options.read_timeout = Some(read.max(first + LATER));
        }
        let Some(due) = self.due else { return };
        let left = due.saturating_duration_since(now).max(Duration::from_millis(1));
        for timeout in [&mut options.connection_timeout, &mut options.total_connection_timeout] {
            *timeout = timeout.map(|timeout| timeout.min(left));
        }
        for timeout in [&mut options.read_timeout, &mut options.write_timeout] {
            *timeout = timeout.map(|timeout| timeout.min(left + LATER));
        }
    }

    /// The end of the present attempt when the time for all attempts has run out. The endpoint is at fault when it had the
    /// whole request for most of that time, and did not begin its answer.
    pub fn end_by_deadline(&self, was_sent: bool) -> AttemptEnd {
        let whole = self.deadlines.total.unwrap_or_default();
        let had_time = self.attempts().last().is_some_and(|attempt| {
            attempt.status.is_none() && attempt.started.elapsed() * 2 >= whole
        });
        match was_sent && had_time {
            true => AttemptEnd::Failed(Failure::Deadline),
            false => AttemptEnd::Abandoned,
        }
    }
}
