//! The gateway's own answers: the only place where a [`Rejection`] is written as HTTP (RFC 9457). It does
//! not tell the client a rejection's cause.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use pingora_core::Result;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use serde::Serialize;
use tokio::time::timeout;

use super::context::{End, RequestContext, fresh_request_id};
use super::grpc;
use super::headers::rate::{set_rate_fields, whole_seconds};
use super::headers::route::{set_fields_of_others, set_route_fields};
use super::headers::seen::content_length;
use crate::admission::Rejection;
use crate::limit::ledger::Decision;
use crate::telemetry::metrics::METRICS;

/// A body up to this size is read to its end, so that the connection stays usable.
const DRAIN_BYTES: usize = 64 * 1024;

/// This much of a larger body is read after the answer. Unread bytes would make the kernel reset the connection, and
/// the reset could overtake the answer.
const LINGER_BYTES: usize = 1024 * 1024;

/// The longest time for reading the rest of a body.
const DRAIN_TIME: Duration = Duration::from_secs(1);

impl Rejection {
    fn decision(&self) -> Option<&Decision> {
        match self {
            Self::RateLimited(decision) => Some(decision),
            _ => None,
        }
    }

    /// What the client is told in words.
    pub fn detail(&self) -> String {
        let limit = self.decision().and_then(|decision| decision.limits.get(decision.tightest()?));
        match limit {
            Some(limit) => {
                let per = match limit.window.as_secs() {
                    1 => "second".into(),
                    60 => "minute".into(),
                    3_600 => "hour".into(),
                    86_400 => "day".into(),
                    seconds => format!("{seconds} seconds"),
                };
                format!("{} requests per {per} used up", limit.quota)
            }
            None => self.to_string(),
        }
    }

    /// The challenge of RFC 6750 section 3, with its error code.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::MissingToken => Some(r#"Bearer realm="tollgate""#),
            Self::InvalidToken(_) | Self::ExpiredToken(_) | Self::RevokedToken(_) => {
                Some(r#"Bearer realm="tollgate", error="invalid_token""#)
            }
            Self::RouteNotPermitted => {
                Some(r#"Bearer realm="tollgate", error="insufficient_scope""#)
            }
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited(decision) => {
                let state = decision.states.get(decision.tightest()?)?;
                Some(whole_seconds(state.reset_after).max(1))
            }
            Self::TooManyFailures { wait, .. } => Some(whole_seconds(*wait).max(1)),
            Self::UpstreamUnavailable(reason) if !reason.wait().is_zero() => {
                Some(whole_seconds(reason.wait()))
            }
            // A random wait spreads the retries over several seconds.
            Self::TooManyInFlight(_)
            | Self::StoreUnavailable(_)
            | Self::NotReady
            | Self::KeysUnavailable
            | Self::UpstreamUnavailable(_)
            | Self::Draining => Some(fastrand::u64(1..=3)),
            _ => None,
        }
    }
}

/// A problem document (RFC 9457 section 3), its members in the order that people read them.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
    request_id: &'a str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<UsedUp<'a>>,
}

/// The limit that refused.
#[derive(Serialize)]
struct UsedUp<'a> {
    name: &'a str,
    quota: u64,
    window_seconds: u64,
    remaining: u64,
    reset_at: String,
    retry_after: u64,
}

/// The body of the answer to a request of this `age`.
#[expect(clippy::disallowed_methods, reason = "the answer is dated; no decision depends on it")]
fn problem(rejection: &Rejection, request_id: &HeaderValue, age: Duration) -> Bytes {
    let (status, code) = rejection.status_and_code();
    let now = Utc::now();
    let problem = Problem {
        r#type: "about:blank",
        title: title(status),
        status: status.as_u16(),
        code,
        detail: rejection.detail(),
        request_id: request_id.to_str().unwrap_or_default(),
        timestamp: now.to_rfc3339_opts(SecondsFormat::Millis, true),
        // A busy thread may be late. The decision counted from a moment since the request began.
        limit: rejection.decision().and_then(|decision| UsedUp::new(decision, now - age)),
    };
    // Texts and numbers always serialize.
    serde_json::to_vec(&problem).unwrap_or_default().into()
}

/// The reason phrase, in the words of RFC 9110 (section 15.5.14).
fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => "Content Too Large",
        status => status.canonical_reason().unwrap_or_default(),
    }
}

impl<'a> UsedUp<'a> {
    fn new(decision: &'a Decision, now: DateTime<Utc>) -> Option<Self> {
        let tightest = decision.tightest()?;
        let (limit, state) = (decision.limits.get(tightest)?, decision.states.get(tightest)?);
        // Rounded up to whole seconds: windows end on them.
        let reset_at = now + TimeDelta::from_std(state.reset_after).ok()?;
        let reset_at = reset_at + TimeDelta::milliseconds(999);
        Some(Self {
            name: &limit.name,
            quota: limit.quota,
            window_seconds: limit.window.as_secs(),
            remaining: state.remaining,
            reset_at: reset_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            retry_after: whole_seconds(state.reset_after).max(1),
        })
    }
}

fn response_header(
    rejection: &Rejection,
    request_id: &HeaderValue,
    length: usize,
) -> Result<ResponseHeader> {
    let (status, _) = rejection.status_and_code();
    let mut response = ResponseHeader::build_no_case(status, Some(12))?;
    response.insert_header("Content-Type", "application/problem+json")?;
    response.insert_header("Content-Length", length)?;
    response.insert_header("Cache-Control", "no-store")?;
    response.insert_header("X-Request-ID", request_id)?;
    if let Some(challenge) = rejection.challenge() {
        response.insert_header("WWW-Authenticate", challenge)?;
    }
    if let Some(seconds) = rejection.retry_after() {
        response.insert_header("Retry-After", seconds)?;
    }
    if let Rejection::MethodNotAllowed(methods) = rejection {
        response.insert_header("Allow", methods.as_str())?;
    }
    Ok(response)
}

/// Answers with `rejection`. The connection stays usable when the request's body is small enough to
/// read to its end; when it is not, the answer says that the connection ends.
///
/// # Errors
/// When writing to the client fails.
pub async fn respond(
    session: &mut Session,
    ctx: &mut RequestContext,
    rejection: Rejection,
) -> Result<()> {
    let request_id = ctx.request_id.get_or_insert_with(fresh_request_id);
    let body = problem(&rejection, request_id, ctx.started.elapsed());
    let mut response = response_header(&rejection, request_id, body.len())?;
    let detail = ctx.is_grpc.then(|| rejection.detail());
    ctx.end = End::Refused(rejection);
    response = with_own_fields(response, session, ctx)?;
    if let Some(detail) = detail {
        let answer = HttpTask::Header(Box::new(grpc::trailers_only(response, &detail)?), true);
        return session.write_response_tasks(vec![answer]).await.map(|_| ());
    }
    send(session, response, body).await
}

/// An answer of the gateway's own with the fields that every answer carries: about limits, and of the route.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn with_own_fields(
    response: ResponseHeader,
    session: &Session,
    ctx: &RequestContext,
) -> Result<ResponseHeader> {
    let mut parts = http::response::Parts::from(response);
    set_rate_fields(&mut parts.headers, &ctx.findings, ctx.policy.rate_headers)?;
    if let Some(route) = &ctx.findings.route {
        set_route_fields(&mut parts.headers, route, &session.req_header().headers);
    }
    let others = &ctx.findings.other_routes;
    set_fields_of_others(&mut parts.headers, others, &session.req_header().headers);
    Ok(parts.into())
}

/// Sends a whole answer of the gateway's own.
///
/// # Errors
/// When writing to the client fails.
pub async fn send(session: &mut Session, response: ResponseHeader, body: Bytes) -> Result<()> {
    // The answer does not wait for a body that is announced to be larger.
    let announced = content_length(&session.req_header().headers);
    let small = announced.is_none_or(|length| length <= DRAIN_BYTES as u64);
    // The end of a stream of HTTP/2 tells the client to send no more, and harms no other request.
    let is_stream = session.req_header().version == Version::HTTP_2;
    let drained =
        is_stream || session.is_body_done() || (small && drain(session, DRAIN_BYTES).await);
    if !drained {
        session.set_keepalive(None);
    }
    let without_body = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(response), without_body).await?;
    match without_body {
        false => session.write_response_body(Some(body), true).await?,
        true => session.finish_body().await?,
    }
    if !drained {
        drain(session, LINGER_BYTES).await;
    }
    Ok(())
}

/// Reads the rest of the request's body, up to `bound` bytes and for at most [`DRAIN_TIME`]; `true` when it ended.
async fn drain(session: &mut Session, bound: usize) -> bool {
    if session.is_body_done() {
        return true;
    }
    // A client that waits for leave to send a body (RFC 9110 section 10.1.1) sends none when refused.
    if session.req_header().headers.contains_key(header::EXPECT) {
        return false;
    }
    let all = timeout(DRAIN_TIME, async {
        let mut read = 0;
        while read <= bound {
            match session.downstream_session.read_request_body().await {
                Ok(Some(bytes)) => read += bytes.len(),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    });
    all.await.unwrap_or(false)
}

/// The bytes of a whole answer, after which the connection ends. It answers a message that never became a request,
/// and so has no outcome.
pub fn closing_response(rejection: &Rejection) -> Vec<u8> {
    let (status, code) = rejection.status_and_code();
    METRICS.rejections.with_label_values(&[code]).inc();
    let (response, body) = refusal(rejection);
    let mut bytes = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), title(status)).into_bytes();
    if let Ok(response) = response {
        response.header_to_h1_wire(&mut bytes);
    }
    bytes.extend_from_slice(b"Connection: close\r\n\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

/// The answer to a request of HTTP/2 whose head is not acceptable, and which has no outcome for that reason.
pub fn refusal_answer(
    rejection: &Rejection,
    fields: &HeaderMap,
) -> Option<(ResponseHeader, Bytes)> {
    METRICS.rejections.with_label_values(&[rejection.status_and_code().1]).inc();
    let (response, body) = refusal(rejection);
    let mut response = response.ok()?;
    response.insert_header(header::DATE, get_cached_date()).ok()?;
    match grpc::has_media_type(fields) {
        true => Some((grpc::trailers_only(response, &rejection.detail()).ok()?, Bytes::new())),
        false => Some((response, body)),
    }
}

/// The header and the body of an answer to a message that is no request.
fn refusal(rejection: &Rejection) -> (Result<ResponseHeader>, Bytes) {
    let request_id = fresh_request_id();
    let body = problem(rejection, &request_id, Duration::ZERO);
    (response_header(rejection, &request_id, body.len()), body)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::limit::ledger::LimitState;
    use crate::quota::Limit;

    fn limited() -> Rejection {
        let limits: Arc<[Limit]> =
            ["100/minute", "1000/day"].map(|text| Limit::parse(text).unwrap()).into();
        let state = |remaining, millis| LimitState {
            remaining,
            reset_after: Duration::from_millis(millis),
        };
        let states = [state(0, 44_001), state(800, 10_000_000)].into_iter().collect();
        let mut decision = Decision::unknown(&limits);
        (decision.admitted, decision.states) = (false, states);
        Rejection::RateLimited(Box::new(decision))
    }

    #[test]
    fn a_refusal_by_a_limit_says_which_and_until_when() {
        let body: Value = serde_json::from_slice(&problem(
            &limited(),
            &HeaderValue::from_static("id"),
            Duration::ZERO,
        ))
        .unwrap();
        assert_eq!(body["status"], 429);
        assert_eq!(body["code"], "rate_limited");
        assert_eq!(body["detail"], "100 requests per minute used up");
        assert_eq!(body["request_id"], "id");
        assert_eq!(body["limit"]["name"], "minute");
        assert_eq!(body["limit"]["remaining"], 0);
        assert_eq!(body["limit"]["retry_after"], 45, "rounded up");
    }

    #[test]
    fn an_answer_on_bytes_is_whole() {
        let bytes = closing_response(&Rejection::BadRequest("why".into()));
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.to_lowercase().contains(&format!("content-length: {}", body.len())));
        assert!(head.ends_with("Connection: close"), "{head}");
        assert!(body.contains(r#""detail":"why""#));
    }
}
