//! Answers of the gateway's own that are no refusals: to OPTIONS requests that may go no further, to preflights, and to
//! requests that belong to https.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::context::{RequestContext, fresh_request_id};
use super::problem::{send, with_own_fields};
use crate::admission::{BadRequest, Rejection};
use crate::policy::Route;
use crate::route::host::without_port;

/// The port of https.
pub const HTTPS: u16 = 443;

/// Answers an OPTIONS request that may go no further (RFC 9110 sections 7.6.2 and 9.3.7).
///
/// # Errors
/// When writing to the client fails.
pub async fn answer_options(session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
    let request_id = ctx.request_id.get_or_insert_with(fresh_request_id);
    let mut response = ResponseHeader::build_no_case(StatusCode::OK, Some(8))?;
    response.insert_header("Content-Length", 0)?;
    response.insert_header("X-Request-ID", &*request_id)?;
    let response = with_own_fields(response, session, ctx)?;
    send(session, response, Bytes::new()).await
}

/// Answers a preflight for `route`.
///
/// # Errors
/// When writing to the client fails.
pub async fn answer_preflight(
    session: &mut Session,
    ctx: &mut RequestContext,
    route: &Route,
) -> Result<()> {
    let request_id = ctx.request_id.get_or_insert_with(fresh_request_id);
    let mut response = ResponseHeader::build_no_case(StatusCode::NO_CONTENT, Some(8))?;
    response.insert_header("X-Request-ID", &*request_id)?;
    let mut parts = http::response::Parts::from(response);
    if let Some(cors) = &route.cors {
        cors.set_preflight(&mut parts.headers, &session.req_header().headers);
    }
    if let Some(deprecated) = &route.deprecated {
        deprecated.set(&mut parts.headers);
    }
    send(session, parts.into(), Bytes::new()).await
}

/// Sends the client to https at `port`, with the host that it asked for, and with path and query as they were sent.
///
/// # Errors
/// When the request names no host.
pub async fn redirect(
    session: &mut Session,
    ctx: &mut RequestContext,
    port: u16,
) -> std::result::Result<(), Rejection> {
    let location = https_location(session.req_header(), port);
    let location = location.ok_or(Rejection::BadRequest(BadRequest::NoHost))?;
    let request_id = ctx.request_id.get_or_insert_with(fresh_request_id);
    let answer = async {
        let mut response = ResponseHeader::build_no_case(StatusCode::PERMANENT_REDIRECT, Some(4))?;
        response.insert_header("Location", location)?;
        response.insert_header("Content-Length", 0)?;
        response.insert_header("Cache-Control", "no-store")?;
        response.insert_header("X-Request-ID", &*request_id)?;
        send(session, response, Bytes::new()).await
    };
    // A write error means that the client has gone.
    answer.await.or(Ok(()))
}

/// The same target at https. `Host` is canonical already.
fn https_location(request: &RequestHeader, port: u16) -> Option<HeaderValue> {
    let host = without_port(request.headers.get(header::HOST)?.to_str().ok()?);
    let mut location = format!("https://{host}").into_bytes();
    if port != HTTPS {
        location.extend_from_slice(format!(":{port}").as_bytes());
    }
    location.extend_from_slice(origin_form(request.raw_path())?);
    HeaderValue::from_bytes(&location).ok()
}

/// Path and query of a target, which may be in absolute form (RFC 9112 section 3.2.2).
fn origin_form(target: &[u8]) -> Option<&[u8]> {
    if target.first() == Some(&b'/') {
        return Some(target);
    }
    let after = memchr::memmem::find(target, b"://")? + 3;
    let path = memchr::memchr(b'/', &target[after..])? + after;
    Some(&target[path..])
}
