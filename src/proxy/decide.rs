//! The decision about a request, as Pingora's hook asks for it: what the gateway answers itself, and what `admission`
//! decides.

use std::sync::atomic::Ordering;

use http::Method;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::context::RequestContext;
use super::headers::seen::content_length;
use super::headers::{client, ids, request};
use super::own::{self, HTTPS};
use super::{Proxy, connection, problem, target};
use crate::admission::{Admission, Permit, Rejection, Request};
use crate::base::net;
use crate::listener::connection::peer_ip;
use crate::route::matched::matched;
use crate::route::path::CanonicalPath;
use crate::route::reserved::{Probe, probe};

impl Proxy {
    /// Decides about a request. `None`: the request was for the gateway itself, and is answered.
    pub(super) async fn decide(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<Option<Permit>, Rejection> {
        let peer = peer_ip(session.client_addr());
        let request = session.req_header();
        let now = self.admission.now();
        ctx.request_id = Some(ids::request_id(&request.headers, ctx.seen, now));
        let trusted = &ctx.policy.trusted_proxies;
        ctx.trusted_peer = peer.is_some_and(|peer| net::contain(trusted, peer));
        let (client, is_certain) = match (ctx.trusted_peer, peer) {
            (true, Some(peer)) => client::client_ip(peer, &request.headers, trusted),
            _ => (peer, true),
        };
        ctx.client_ip = client;
        let path = CanonicalPath::parse(request.uri.path())?;
        if path.was_rewritten() {
            ctx.canonical_path = Some(path.as_str().to_owned());
        }
        if let Some(probe) = probe(&matched(path.as_str(), false)) {
            // Boxed, because a rare path must not make every request's future large.
            return Box::pin(self.answer_probe(session, ctx, probe)).await.map(|()| None);
        }
        if ctx.policy.redirects
            && let Some(listener) = connection::redirect_to(session, &ctx.policy)
        {
            let port = self.ports.get(listener).copied().unwrap_or(HTTPS);
            return Box::pin(own::redirect(session, ctx, port)).await.map(|()| None);
        }
        if ctx.policy.asks_for_certificates {
            ctx.certificate = connection::certificate(session, &ctx.policy, now)?;
        }
        if request.method == Method::OPTIONS {
            ctx.max_forwards = request::max_forwards(&request.headers)?;
        }
        let asked = Request {
            now,
            path: &path,
            method: request.method.as_str(),
            headers: &request.headers,
            query: target::query(request),
            client: ctx.client_ip,
            is_client_certain: is_certain,
            certificate: ctx.certificate.as_ref().map(|certificate| certificate.thumbprint()),
            content_length: match ctx.seen.content_length {
                true => content_length(&request.headers),
                false => None,
            },
        };
        if let Some(route) = Admission::preflight(&ctx.policy, &asked, &mut ctx.findings)? {
            // A write error means that the client has gone.
            let _ = Box::pin(own::answer_preflight(session, ctx, &route)).await;
            return Ok(None);
        }
        self.admission.admit(&ctx.policy, &asked, &mut ctx.findings).await.map(Some)
    }

    async fn answer_probe(
        &self,
        session: &mut Session,
        ctx: &RequestContext,
        probe: Probe,
    ) -> Result<(), Rejection> {
        if !matches!(session.req_header().method, Method::GET | Method::HEAD) {
            return Err(Rejection::MethodNotAllowed("GET, HEAD".into()));
        }
        let status = match probe {
            Probe::Ready => {
                if self.readiness.draining.load(Ordering::Relaxed) {
                    return Err(Rejection::Draining);
                }
                if !(self.readiness.store_serves)(&ctx.policy) {
                    return Err(Rejection::NotReady);
                }
                "ready"
            }
            Probe::Alive => "alive",
        };
        let body = format!("{{\"status\":\"{status}\"}}\n");
        let answer = async {
            let mut response = ResponseHeader::build(200, Some(4))?;
            response.insert_header("Content-Type", "application/json")?;
            response.insert_header("Content-Length", body.len())?;
            response.insert_header("Cache-Control", "no-store")?;
            problem::send(session, response, body.into()).await
        };
        // A write error means that the client has gone.
        answer.await.or(Ok(()))
    }
}
