//! One attempt to get an answer from an endpoint: its times, and the cause of its failure.
//!
//! The proxy records attempts, tells the upstream of each when it ends, and keeps all of them for the
//! request's outcome. This file knows nothing of requests, statuses or answers.

use std::time::{Duration, Instant};

use pingora_core::{Error, ErrorSource, ErrorType};

use super::breaker::Pass;

/// One attempt. Times are counted from [`started`](Self::started).
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The endpoint's place in the upstream's list; `None` when no endpoint could get the request.
    pub endpoint: Option<usize>,
    /// How the attempt passed the endpoint's breaker.
    pub pass: Pass,
    /// When the endpoint was chosen.
    pub started: Instant,
    /// When the connection was established; zero for a kept connection.
    pub connected: Option<Duration>,
    /// When the header of the answer arrived; an informational one does not count.
    pub first_byte: Option<Duration>,
    /// The status of the answer, once its header has arrived.
    pub status: Option<u16>,
    /// When and how the attempt ended; `None` while it goes on.
    pub end: Option<(Duration, AttemptEnd)>,
    /// Whether the endpoint's breaker knows about the end.
    pub(super) is_judged: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The endpoint's answer arrived to its end.
    Answered,
    /// The endpoint failed.
    Failed(Failure),
    /// The connection was kept from an earlier request and had ended; the endpoint is not at fault.
    Stale,
    /// The client or the gateway ended the attempt; the endpoint is not at fault.
    Abandoned,
}

/// The step at which an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused.
    ConnectRefused,
    /// The connection, the TLS handshake included, took too long to establish.
    ConnectTimeout,
    /// The connection could not be established for another reason.
    ConnectFailed,
    /// The TLS handshake failed, or the certificate did not hold.
    TlsFailed,
    /// The endpoint sent nothing for too long.
    ReadTimeout,
    /// The endpoint did not begin its answer in time.
    FirstByteTimeout,
    /// The time for all attempts ran out.
    Deadline,
    /// Reading failed, as when the endpoint resets the connection.
    ReadFailed,
    /// The endpoint accepted no bytes for too long.
    WriteTimeout,
    /// Writing failed.
    WriteFailed,
    /// The endpoint closed the connection before its answer was complete.
    Closed,
    /// The answer is not HTTP, or not an answer to this request.
    MalformedAnswer,
    /// Anything else.
    Other,
}

impl Attempt {
    /// An attempt at `endpoint` that has just started.
    pub fn new(endpoint: Option<usize>, pass: Pass, started: Instant) -> Self {
        Self {
            endpoint,
            pass,
            started,
            connected: None,
            first_byte: None,
            status: None,
            end: None,
            is_judged: false,
        }
    }

    /// Whether the endpoint had the request, or a part of it, and gave no answer. The request may be the cause.
    pub(super) fn may_be_of_request(&self) -> bool {
        match self.end {
            Some((_, AttemptEnd::Failed(failure))) => {
                self.status.is_none() && !failure.is_before_request()
            }
            _ => false,
        }
    }
}

impl AttemptEnd {
    /// The end of an attempt that Pingora reports as the error `e`.
    pub fn of(e: &Error) -> Self {
        match e.esource() {
            ErrorSource::Upstream => Self::Failed(Failure::of(e)),
            ErrorSource::Downstream | ErrorSource::Internal | ErrorSource::Unset => Self::Abandoned,
        }
    }
}

impl Failure {
    /// The failure that Pingora's error `e` reports; the upstream must be the source of `e`.
    pub fn of(e: &Error) -> Self {
        match e.etype() {
            ErrorType::ConnectRefused => Self::ConnectRefused,
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::ConnectTimeout,
            ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::ConnectProxyFailure
            | ErrorType::BindError
            | ErrorType::SocketError => Self::ConnectFailed,
            ErrorType::TLSHandshakeFailure
            | ErrorType::HandshakeError
            | ErrorType::InvalidCert
            | ErrorType::TLSWantX509Lookup => Self::TlsFailed,
            ErrorType::ReadTimedout => Self::ReadTimeout,
            ErrorType::ReadError => Self::ReadFailed,
            ErrorType::WriteTimedout => Self::WriteTimeout,
            ErrorType::WriteError => Self::WriteFailed,
            ErrorType::ConnectionClosed => Self::Closed,
            ErrorType::InvalidHTTPHeader
            | ErrorType::H1Error
            | ErrorType::H2Error
            | ErrorType::H2Downgrade
            | ErrorType::InvalidH2
            | ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd") => Self::MalformedAnswer,
            _ => Self::Other,
        }
    }

    /// Whether the endpoint took no connection, was silent for too long or ended the connection. Other failures may
    /// depend on the request.
    pub fn is_of_connection(self) -> bool {
        !matches!(self, Self::MalformedAnswer | Self::Other)
    }

    /// Whether no connection was made, so that the endpoint has seen nothing of the request.
    pub fn is_before_request(self) -> bool {
        matches!(
            self,
            Self::ConnectRefused | Self::ConnectTimeout | Self::ConnectFailed | Self::TlsFailed
        )
    }

    /// Whether a deadline passed.
    pub fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout
                | Self::ReadTimeout
                | Self::FirstByteTimeout
                | Self::Deadline
                | Self::WriteTimeout
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_of_the_upstream_is_a_failure_of_the_endpoint() {
        for (etype, failure, timeout) in [
            (ErrorType::ConnectRefused, Failure::ConnectRefused, false),
            (ErrorType::ConnectTimedout, Failure::ConnectTimeout, true),
            (ErrorType::ConnectNoRoute, Failure::ConnectFailed, false),
            (ErrorType::InvalidCert, Failure::TlsFailed, false),
            (ErrorType::TLSHandshakeTimedout, Failure::ConnectTimeout, true),
            (ErrorType::ReadTimedout, Failure::ReadTimeout, true),
            (ErrorType::WriteTimedout, Failure::WriteTimeout, true),
            (ErrorType::ConnectionClosed, Failure::Closed, false),
            (ErrorType::InvalidHTTPHeader, Failure::MalformedAnswer, false),
            (ErrorType::new("InvalidChunk"), Failure::MalformedAnswer, false),
            (ErrorType::InternalError, Failure::Other, false),
        ] {
            let error = || Error::new(etype.clone());
            let upstream = AttemptEnd::of(&error().into_up());
            assert_eq!(upstream, AttemptEnd::Failed(failure), "{etype:?}");
            assert_eq!(failure.is_timeout(), timeout, "{etype:?}");
            for other in [error().into_down(), error().into_in()] {
                assert_eq!(AttemptEnd::of(&other), AttemptEnd::Abandoned, "{etype:?}");
            }
        }
    }
}
