//! The state of one request, from its header to its log line.

use std::net::IpAddr;
use std::os::unix::io::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::compression::Compression;
use super::farewell::Farewell;
use super::forwarding::Forwarding;
use super::headers::ids::new_request_id;
use super::headers::seen::Seen;
use super::held::HeldSocket;
use super::in_flight::RequestInFlight;
use super::mirror::CopyState;
use crate::admission::{Findings, Rejection};
use crate::base::clock::{Clock, SystemClock};
use crate::listener::end::RequestEnd;
use crate::policy::Policy;
use crate::tls::client::ClientCertificate;

/// The context of one request.
pub struct RequestContext {
    /// When the request's header was complete.
    pub started: Instant,
    /// The fields that the request has.
    pub seen: Seen,
    /// `X-Request-ID`, once the header has been looked at.
    pub request_id: Option<HeaderValue>,
    /// The policy that decides about the request, from beginning to end.
    pub policy: Arc<Policy>,
    /// The client's address: the peer's, or the address that trusted proxies name.
    pub client_ip: Option<IpAddr>,
    /// The certificate of the client, where the listener asks for one and its authorities vouch for it.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Whether the peer is a proxy whose forwarding fields are believed.
    pub trusted_peer: bool,
    /// The canonical path, where it differs from what was sent.
    pub canonical_path: Option<String>,
    /// Whether the request is a gRPC call.
    pub is_grpc: bool,
    /// Whether the answer may be a stream that is quiet for long: of a gRPC call, or of events.
    pub may_stream: bool,
    /// Whether the answer is such a stream.
    pub is_stream: bool,
    /// How the answer ends when the gateway drains; `None`: by itself.
    pub farewell: Option<Farewell>,
    /// When the request must be answered, as its client says.
    pub deadline: Option<Instant>,
    /// The socket of the upstream, while it holds the head of an upgrade request back.
    pub held: Option<HeldSocket>,
    /// The hops that an OPTIONS request may still take (RFC 9110 section 7.6.2).
    pub max_forwards: Option<u64>,
    /// The route, the principal and the decisions about limits.
    pub findings: Findings,
    /// The permit and the attempts, once the request may pass.
    pub forwarding: Option<Forwarding>,
    /// Why a hook ended the request; `fail_to_proxy` answers with it.
    pub rejection: Option<Rejection>,
    /// The copy of the request, where the route has copies made.
    pub copy: CopyState,
    /// The compression of the answer, where the route compresses it.
    pub compression: Option<Box<Compression>>,
    /// The socket to the upstream, between the connection and the request's header, when a body follows.
    pub upload_socket: Option<RawFd>,
    /// Whether an upstream takes the request's body.
    pub uploads: bool,
    /// How the request ended; the hooks set it when they learn it.
    pub end: End,
    _in_flight: RequestInFlight,
}

/// How a request ended.
#[derive(Debug, Default)]
pub enum End {
    /// An answer was sent to its end: the upstream's, or an answer of the gateway that is no refusal.
    #[default]
    Answered,
    /// The gateway answered with an error.
    Refused(Rejection),
    /// The answer ended early: an error came after its header was sent.
    BrokenOff(Rejection),
    /// The client left before the answer's end.
    ClientGone,
    /// The gateway ended the answer or the tunnel early.
    Cut(RequestEnd),
}

impl RequestContext {
    /// How long nothing may pass in a tunnel or a stream of the request.
    pub fn idle(&self) -> Duration {
        let route = self.findings.route.as_deref();
        route.and_then(|route| route.idle).unwrap_or(self.policy.timeouts.tunnel)
    }

    /// The context of a request that `policy` decides about.
    pub fn new(policy: Arc<Policy>, in_flight: RequestInFlight) -> Self {
        Self {
            started: Instant::now(),
            seen: Seen::ANYTHING,
            request_id: None,
            policy,
            client_ip: None,
            certificate: None,
            trusted_peer: false,
            canonical_path: None,
            is_grpc: false,
            may_stream: false,
            is_stream: false,
            farewell: None,
            deadline: None,
            held: None,
            max_forwards: None,
            findings: Findings::default(),
            forwarding: None,
            rejection: None,
            copy: CopyState::Undecided,
            compression: None,
            upload_socket: None,
            uploads: false,
            end: End::Answered,
            _in_flight: in_flight,
        }
    }
}

/// A new id for a request whose `X-Request-ID` was not read.
pub fn fresh_request_id() -> HeaderValue {
    new_request_id(SystemClock::default().now())
}
