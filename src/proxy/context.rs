//! What is known of one request from its header to its log line.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::headers::Seen;
use crate::admission::{Findings, Permit, Rejection};
use crate::policy::Policy;
use crate::telemetry::metrics::METRICS;
use crate::upstream::pool::Turn;

/// The context of one request.
pub struct RequestContext {
    /// When its header was complete.
    pub started: Instant,
    /// Which fields the request has.
    pub seen: Seen,
    /// `X-Request-ID`, once the header has been looked at.
    pub request_id: Option<HeaderValue>,
    /// The policy it is judged by, from beginning to end.
    pub policy: Arc<Policy>,
    /// The client, as far as it can be believed.
    pub client_ip: Option<IpAddr>,
    /// Whether the peer is a proxy whose forwarding fields are believed.
    pub trusted_peer: bool,
    /// The canonical path, where it differs from what was sent.
    pub canonical_path: Option<String>,
    /// What was found out on the way.
    pub findings: Findings,
    /// Proof that it may pass.
    pub permit: Option<Permit>,
    /// Its place in the upstream's rotation.
    pub turn: Turn,
    /// When the present attempt began.
    pub attempt_started: Option<Instant>,
    /// Time to the header of the upstream's answer.
    pub upstream_duration: Option<Duration>,
    /// Body bytes seen so far.
    pub body_seen: u64,
    /// Why a hook ended the request; `fail_to_proxy` answers with it.
    pub rejection: Option<Rejection>,
    /// The code of an answer of the gateway's own.
    pub code: Option<&'static str>,
    _in_flight: InFlight,
}

impl RequestContext {
    /// The context of a request that is judged by `policy`.
    pub fn new(policy: Arc<Policy>) -> Self {
        METRICS.in_flight.inc();
        Self {
            started: Instant::now(),
            seen: Seen::ANYTHING,
            request_id: None,
            policy,
            client_ip: None,
            trusted_peer: false,
            canonical_path: None,
            findings: Findings::default(),
            permit: None,
            turn: Turn::default(),
            attempt_started: None,
            upstream_duration: None,
            body_seen: 0,
            rejection: None,
            code: None,
            _in_flight: InFlight,
        }
    }
}

/// A request that is being served, in the gauge.
struct InFlight;

impl Drop for InFlight {
    fn drop(&mut self) {
        METRICS.in_flight.dec();
    }
}
