//! Health checks: the gateway asks an endpoint on its own account, over a connection of the kind that requests take.
//!
//! Every check opens a connection and closes it, so that an endpoint that takes no new connections is found. All checks
//! run at the same time, each with one deadline for all of it. This file must not know what a result leads to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use once_cell::sync::OnceCell;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::pool::Upstream;
use super::rules::{Check, HealthRules, Statuses};
use crate::base::task::detach;

/// The name by which the gateway calls itself.
const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// The method of gRPC's health protocol.
const GRPC_METHOD: &[u8] = b"/grpc.health.v1.Health/Check";

/// The answer of a service that works: a message that is not compressed, of two bytes, whose field 1 is SERVING (1).
const GRPC_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";

/// Most bytes of the body of an answer that are looked at.
const MOST_BYTES: usize = 1024;

/// Why a check failed, as the log says it.
type Reason = String;

/// Makes health checks.
#[derive(Default)]
pub struct Checker {
    /// Made for the first check, because it reads the authorities of the system.
    connector: OnceCell<Connector>,
}

/// A check that is running until this is dropped.
struct Running(Arc<Endpoint>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.check_ended();
    }
}

impl Checker {
    /// Begins the checks that are due among the endpoints of `upstreams`. Each ends by itself.
    pub fn check<'a>(self: &Arc<Self>, upstreams: impl IntoIterator<Item = &'a Arc<Upstream>>) {
        let now = Instant::now();
        for upstream in upstreams {
            let Some(rules) = &upstream.rules().health else { continue };
            for endpoint in
                upstream.endpoints().filter(|endpoint| endpoint.begins_check(rules, now))
            {
                let (checker, upstream) = (Arc::clone(self), Arc::clone(upstream));
                let running = Running(Arc::clone(endpoint));
                detach(async move {
                    let Some(rules) = &upstream.rules().health else { return };
                    let result = checker.check_one(&running.0, rules).await;
                    running.0.learn_check(result, rules);
                });
            }
        }
    }

    async fn check_one(&self, endpoint: &Endpoint, rules: &HealthRules) -> Result<(), Reason> {
        let Some(mut peer) = endpoint.peer_to_check() else {
            return Err("its name has no address".into());
        };
        // The connection is for this check alone.
        peer.options.max_h2_streams = 1;
        let connector = self.connector.get_or_init(|| Connector::new(None));
        let check = async {
            let (mut session, _) = connector
                .get_http_session(&peer)
                .await
                .map_err(|error: Box<Error>| reason(&error))?;
            match &rules.check {
                Check::Connect => Ok(()),
                Check::Http { path, statuses } => {
                    ask_http(&mut session, endpoint, path, statuses).await
                }
                Check::Grpc { service } => ask_grpc(&mut session, endpoint, service).await,
            }
        };
        match timeout(rules.timeout, check).await {
            Ok(result) => result,
            Err(_late) => Err(no_answer(rules.timeout)),
        }
    }
}

fn no_answer(limit: Duration) -> Reason {
    format!("no answer within {limit:?}")
}

/// The reason of an error, without the words that Pingora adds.
fn reason(error: &Error) -> Reason {
    format!("{:?}", error.etype())
}

fn header(method: Method, path: &[u8], endpoint: &Endpoint) -> Result<RequestHeader> {
    let mut header = RequestHeader::build(method, path, Some(4))?;
    header.insert_header("Host", &endpoint.authority)?;
    header.insert_header("User-Agent", USER_AGENT)?;
    Ok(header)
}

async fn ask_http(
    session: &mut HttpSession,
    endpoint: &Endpoint,
    path: &str,
    statuses: &Statuses,
) -> Result<(), Reason> {
    let answered = async {
        let header = header(Method::GET, path.as_bytes(), endpoint)?;
        session.write_request_header(Box::new(header)).await?;
        session.finish_request_body().await?;
        loop {
            session.read_response_header().await?;
            let status = session.response_header().map_or(0, |header| header.status.as_u16());
            // Informational answers only come before the answer.
            if !(100..200).contains(&status) {
                return Ok(status);
            }
        }
    };
    match answered.await.map_err(|error: Box<Error>| reason(&error))? {
        status if statuses.contain(status) => Ok(()),
        status => Err(format!("status {status}")),
    }
}

/// Asks as gRPC's health checking protocol says (grpc.health.v1).
async fn ask_grpc(
    session: &mut HttpSession,
    endpoint: &Endpoint,
    service: &str,
) -> Result<(), Reason> {
    if session.as_http2().is_none() {
        return Err("it does not speak HTTP/2".into());
    }
    let answered = async {
        let mut header = header(Method::POST, GRPC_METHOD, endpoint)?;
        header.insert_header("Content-Type", "application/grpc")?;
        header.insert_header("TE", "trailers")?;
        session.write_request_header(Box::new(header)).await?;
        session.write_request_body(grpc_request(service), true).await?;
        session.read_response_header().await?;
        let mut body = Vec::new();
        while let Some(bytes) = session.read_response_body().await? {
            body.extend_from_slice(&bytes);
            if body.len() > MOST_BYTES {
                break;
            }
        }
        Ok(body)
    };
    match answered.await.map_err(|error: Box<Error>| reason(&error))? {
        body if body == GRPC_SERVING => Ok(()),
        _ => Err("the service does not say that it serves".into()),
    }
}

/// The message whose field 1 is the name of a service, with its length before it. A name is at most 100 bytes long, so
/// that every length is one byte.
fn grpc_request(service: &str) -> Bytes {
    let length = |bytes: usize| u8::try_from(bytes).unwrap_or(0);
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, length(service.len())]);
        message.extend(service.bytes());
    }
    let mut request = vec![0, 0, 0, 0, length(message.len())];
    request.extend(message);
    request.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grpc_request_names_the_service() {
        assert_eq!(&grpc_request("")[..], b"\0\0\0\0\0");
        assert_eq!(&grpc_request("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
    }
}
