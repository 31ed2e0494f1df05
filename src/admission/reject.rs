//! Why the gateway answers a request itself, with an error: what the client is told, and the cause behind it.
//!
//! The one place that maps the errors of the other rooms to an answer (status and code) and to a reason (for
//! the operator). A client learns the answer alone: every invalid token gets the same. This file must not know how an
//! answer is written, which `proxy::problem` does.

use std::time::Duration;

use http::StatusCode;

use crate::auth::AuthError;
use crate::auth::claims::ClaimError;
use crate::auth::credential::CredentialError;
use crate::auth::guard::TooManyFailures;
use crate::auth::jwt::JwtError;
use crate::limit::ledger::Decision;
use crate::policy::MissingPlan;
use crate::route::path::PathError;
use crate::store::StoreError;
use crate::upstream::attempt::Failure;
use crate::upstream::endpoint::Unusable;

/// Longest text of an error that is logged with a request, in bytes.
const MAX_ERROR: usize = 200;

/// Why the gateway answers a request itself. The text is what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The request's shape: head, target, path, credential fields, body.
    #[error(transparent)]
    BadRequest(BadRequest),
    /// The header did not arrive in time.
    #[error("the request header did not arrive in time")]
    RequestTimeout,
    /// The header is too large.
    #[error("the request header is too large")]
    HeaderTooLarge,
    /// No route has this path.
    #[error("no route serves this path")]
    NoRoute,
    /// A route has this path, but not this method. Holds the methods that routes have for the path.
    #[error("this path is not served with this method")]
    MethodNotAllowed(String),
    /// The route does not serve the client's network.
    #[error("the network of the client is not permitted")]
    NetworkNotPermitted,
    /// The request has no credential.
    #[error("a token is required")]
    MissingToken,
    /// The credential is not valid.
    #[error("the token is not valid")]
    InvalidToken(AuthError),
    /// The token has expired.
    #[error("the token has expired")]
    ExpiredToken(AuthError),
    /// The token is disabled or revoked.
    #[error("the token is revoked")]
    RevokedToken(AuthError),
    /// The connection's client certificate, or its lack, does not fit the listener's present rules.
    #[error("the connection is not accepted any more; connect again")]
    Misdirected,
    /// The token may not use this path.
    #[error("the token does not permit this path")]
    RouteNotPermitted,
    /// The token's plan is not configured.
    #[error("the plan of the token is not known")]
    UnknownPlan(MissingPlan),
    /// A limit is used up. The decision says which limit, and until when.
    #[error("the limit is used up")]
    RateLimited(Box<Decision>),
    /// The body is larger than this number of bytes.
    #[error("the request body is larger than {0} bytes")]
    BodyTooLarge(u64),
    /// Too many requests of the token, or of the route, are in flight.
    #[error("too many requests at the same time")]
    TooManyInFlight(Scope),
    /// Too many invalid credentials came from the client's address.
    #[error("too many invalid tokens from this address")]
    TooManyFailures {
        /// The time that the client should wait.
        wait: Duration,
        /// Why the credential of this request is not valid.
        cause: AuthError,
    },
    /// The store is needed and does not answer.
    #[error("the gateway's store does not answer")]
    StoreUnavailable(StoreError),
    /// The gateway is asked whether it is ready, and its store does not answer.
    #[error("the gateway's store does not answer")]
    NotReady,
    /// The keys of the token's issuer are needed and cannot be fetched.
    #[error("the issuer's keys cannot be fetched")]
    KeysUnavailable,
    /// No endpoint could be reached, or the endpoint broke off.
    #[error("the upstream could not be reached")]
    UpstreamUnreachable(Failure),
    /// An endpoint's answer is not HTTP, or not an answer to this request.
    #[error("the upstream's answer is not valid")]
    UpstreamInvalid(Failure),
    /// An endpoint did not answer in time.
    #[error("the upstream did not answer in time")]
    UpstreamTimeout(Failure),
    /// No endpoint may get a request.
    #[error("the upstream has no usable endpoint")]
    UpstreamUnavailable(Unusable),
    /// The gateway is shutting down.
    #[error("the gateway is shutting down")]
    Draining,
    /// A fault of the gateway.
    #[error("the gateway failed")]
    Internal,
}

/// The fault in the shape of a request. The client is told the text.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum BadRequest {
    /// The head is malformed or ambiguous; the text says how.
    #[error("{0}")]
    Head(&'static str),
    /// The target has no canonical path.
    #[error(transparent)]
    Path(PathError),
    /// The credential fields contradict each other.
    #[error("there are two different credentials")]
    TwoCredentials,
    /// The `Authorization` field has no scheme that ends with a space.
    #[error("the Authorization field is malformed")]
    Authorization,
    /// `Max-Forwards` is not one number.
    #[error("Max-Forwards is not one number")]
    MaxForwards,
    /// The chunks of the body are malformed.
    #[error("the chunked body is malformed")]
    Chunks,
    /// The request names no host, where the answer has to name one.
    #[error("the request names no host")]
    NoHost,
    /// Pingora could not read the request.
    #[error("the request is malformed")]
    Message,
}

/// The kind of a bound on requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The requests of one token.
    Token,
    /// The requests of one route.
    Route,
}

impl From<&'static str> for BadRequest {
    fn from(how: &'static str) -> Self {
        Self::Head(how)
    }
}

impl From<PathError> for Rejection {
    fn from(error: PathError) -> Self {
        Self::BadRequest(BadRequest::Path(error))
    }
}

impl From<AuthError> for Rejection {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => Self::MissingToken,
            AuthError::Credential(CredentialError::Ambiguous) => {
                Self::BadRequest(BadRequest::TwoCredentials)
            }
            AuthError::Credential(CredentialError::Field) => {
                Self::BadRequest(BadRequest::Authorization)
            }
            AuthError::Jwt(JwtError::KeysUnavailable) => Self::KeysUnavailable,
            AuthError::Store(error) => Self::StoreUnavailable(error),
            AuthError::Unchecked(TooManyFailures { wait }) => {
                Self::TooManyFailures { wait, cause: error }
            }
            AuthError::Jwt(JwtError::Expired) | AuthError::Expired => Self::ExpiredToken(error),
            AuthError::Disabled | AuthError::Revoked => Self::RevokedToken(error),
            AuthError::Credential(CredentialError::Malformed)
            | AuthError::Jwt(_)
            | AuthError::Key(_)
            | AuthError::NoRecord
            | AuthError::UnreadableRecord(_) => Self::InvalidToken(error),
        }
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable(error)
    }
}

impl From<MissingPlan> for Rejection {
    fn from(plan: MissingPlan) -> Self {
        Self::UnknownPlan(plan)
    }
}

impl From<Failure> for Rejection {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::MalformedAnswer => Self::UpstreamInvalid(failure),
            failure if failure.is_timeout() => Self::UpstreamTimeout(failure),
            failure => Self::UpstreamUnreachable(failure),
        }
    }
}

impl From<Unusable> for Rejection {
    fn from(reason: Unusable) -> Self {
        Self::UpstreamUnavailable(reason)
    }
}

impl Rejection {
    /// The status of the answer (RFC 9110 section 15) and its code, which programs rely on.
    pub fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            Self::HeaderTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header_too_large")
            }
            Self::NoRoute => (StatusCode::NOT_FOUND, "no_route"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NetworkNotPermitted => (StatusCode::FORBIDDEN, "network_not_permitted"),
            Self::MissingToken => (StatusCode::UNAUTHORIZED, "missing_token"),
            Self::InvalidToken(_) => (StatusCode::UNAUTHORIZED, "invalid_token"),
            Self::ExpiredToken(_) => (StatusCode::UNAUTHORIZED, "expired_token"),
            Self::RevokedToken(_) => (StatusCode::UNAUTHORIZED, "revoked_token"),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
            Self::RouteNotPermitted => (StatusCode::FORBIDDEN, "route_not_permitted"),
            Self::UnknownPlan(_) => (StatusCode::FORBIDDEN, "unknown_plan"),
            Self::RateLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::TooManyInFlight(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_in_flight"),
            Self::TooManyFailures { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_failures"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::StoreUnavailable(_) | Self::NotReady => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            }
            Self::KeysUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
            Self::UpstreamUnreachable(_) => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
            Self::UpstreamInvalid(_) => (StatusCode::BAD_GATEWAY, "upstream_invalid"),
            Self::UpstreamTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::UpstreamUnavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable")
            }
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// The cause, as a word of the access log. `None` where the code has only one cause.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::BadRequest(error) => Some(bad_request_reason(*error)),
            Self::InvalidToken(cause)
            | Self::ExpiredToken(cause)
            | Self::RevokedToken(cause)
            | Self::TooManyFailures { cause, .. } => auth_reason(cause),
            Self::TooManyInFlight(Scope::Token) => Some("token"),
            Self::TooManyInFlight(Scope::Route) => Some("route"),
            Self::StoreUnavailable(error) => Some(error.outcome()),
            Self::KeysUnavailable => Some(jwt_reason(JwtError::KeysUnavailable)),
            Self::UpstreamUnreachable(failure)
            | Self::UpstreamInvalid(failure)
            | Self::UpstreamTimeout(failure) => Some(failure_reason(*failure)),
            Self::UpstreamUnavailable(Unusable::NoAddress(_)) => Some("no_address"),
            Self::UpstreamUnavailable(Unusable::Unhealthy(_)) => Some("unhealthy"),
            Self::UpstreamUnavailable(Unusable::BreakerOpen(_)) => Some("breaker_open"),
            Self::RequestTimeout
            | Self::HeaderTooLarge
            | Self::NoRoute
            | Self::MethodNotAllowed(_)
            | Self::NetworkNotPermitted
            | Self::MissingToken
            | Self::Misdirected
            | Self::RouteNotPermitted
            | Self::UnknownPlan(_)
            | Self::RateLimited(_)
            | Self::BodyTooLarge(_)
            | Self::NotReady
            | Self::Draining
            | Self::Internal => None,
        }
    }

    /// The text of the cause, where it says more than the [reason](Self::reason): of a bounded length, and
    /// without bytes that the client sent.
    pub fn error(&self) -> Option<String> {
        let text = match self {
            Self::InvalidToken(cause)
            | Self::ExpiredToken(cause)
            | Self::RevokedToken(cause)
            | Self::TooManyFailures { cause, .. } => cause.to_string(),
            Self::BadRequest(error) => error.to_string(),
            Self::StoreUnavailable(error) => error.to_string(),
            Self::UnknownPlan(plan) => plan.to_string(),
            _ => return None,
        };
        Some(bounded(text))
    }
}

/// `text`, cut off where it is too long.
fn bounded(mut text: String) -> String {
    let end = text.floor_char_boundary(MAX_ERROR);
    if end < text.len() {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn bad_request_reason(error: BadRequest) -> &'static str {
    match error {
        BadRequest::Head(_) => "head",
        BadRequest::Path(_) => "path",
        BadRequest::TwoCredentials => "two_credentials",
        BadRequest::Authorization => "authorization",
        BadRequest::MaxForwards => "max_forwards",
        BadRequest::Chunks => "chunks",
        BadRequest::NoHost => "no_host",
        BadRequest::Message => "message",
    }
}

fn auth_reason(error: &AuthError) -> Option<&'static str> {
    Some(match error {
        AuthError::Missing => return None,
        AuthError::Credential(CredentialError::Ambiguous) => "two_credentials",
        AuthError::Credential(CredentialError::Field) => "authorization",
        AuthError::Credential(CredentialError::Malformed) => "malformed",
        AuthError::Jwt(error) => jwt_reason(*error),
        AuthError::Unchecked(_) => "unchecked",
        AuthError::Key(_) => "checksum",
        AuthError::NoRecord => "no_record",
        AuthError::UnreadableRecord(_) => "unreadable_record",
        AuthError::Disabled => "disabled",
        AuthError::Revoked => "revoked",
        AuthError::Expired => "expired",
        AuthError::Store(error) => error.outcome(),
    })
}

fn jwt_reason(error: JwtError) -> &'static str {
    match error {
        JwtError::Malformed | JwtError::Claim(ClaimError::Form) => "malformed",
        JwtError::Critical => "crit",
        JwtError::Type => "typ",
        JwtError::Algorithm => "algorithm",
        JwtError::Issuer => "issuer",
        JwtError::UnknownKid => "unknown_kid",
        JwtError::MissingKid => "missing_kid",
        JwtError::Signature => "signature",
        JwtError::Audience => "audience",
        JwtError::Claim(ClaimError::Missing(_)) => "missing_claim",
        JwtError::Claim(ClaimError::Wrong(_)) => "wrong_claim",
        JwtError::Certificate => "certificate",
        JwtError::NotYetValid => "not_yet_valid",
        JwtError::Expired => "expired",
        JwtError::KeysUnavailable => "fetch_failed",
    }
}

fn failure_reason(failure: Failure) -> &'static str {
    match failure {
        Failure::ConnectRefused => "connect_refused",
        Failure::ConnectTimeout => "connect_timeout",
        Failure::ConnectFailed => "connect_failed",
        Failure::TlsFailed => "tls_failed",
        Failure::ReadTimeout => "read_timeout",
        Failure::FirstByteTimeout => "first_byte_timeout",
        Failure::Deadline => "deadline",
        Failure::ReadFailed => "read_failed",
        Failure::WriteTimeout => "write_timeout",
        Failure::WriteFailed => "write_failed",
        Failure::Closed => "closed",
        Failure::MalformedAnswer => "malformed_answer",
        Failure::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_error_is_bounded() {
        let failed = |text: String| Rejection::StoreUnavailable(StoreError::Failed(text)).error();
        assert_eq!(failed("short".into()).as_deref(), Some("short"));
        for long in ["x".repeat(10_000), "é".repeat(10_000), format!("x{}", "€".repeat(10_000))]
        {
            let text = failed(long).unwrap();
            assert!((MAX_ERROR - 4..=MAX_ERROR + 4).contains(&text.len()), "{}", text.len());
            assert!(text.ends_with('…'));
        }
    }
}
