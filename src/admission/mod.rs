//! Whether a request may pass: the order of decisions, and the permit that proves they were made.
//! This room must not know Pingora, nor how an answer is written.

use std::cell::LazyCell;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, header};

use crate::auth::guard::GuardedClient;
use crate::auth::jwt::JwtError;
use crate::auth::{AuthError, Authenticator, Principal};
use crate::base::clock::{Clock, UnixTime};
use crate::base::net::Network;
use crate::limit::ledger::Ledger;
use crate::policy::{Policy, Route};
use crate::route::cors::asked_method;
use crate::route::host::without_port;
use crate::route::matched::matched;
use crate::route::path::CanonicalPath;
use crate::route::split;
use crate::route::table::Found;
use crate::tls::client::Thumbprint;
use crate::upstream::pool::Upstream;

mod counting;
mod reject;
mod slots;
mod token_watch;

pub use counting::{Decided, Decisions};
pub use reject::{BadRequest, Rejection, Scope};
use slots::{Bound, InFlight, Slots};
pub use token_watch::{TokenEnd, TokenWatch};

/// The parts of a request that admission decides by.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// When it came.
    pub now: UnixTime,
    /// The path.
    pub path: &'a CanonicalPath<'a>,
    /// The method.
    pub method: &'a str,
    /// The header fields; `Host` is canonical.
    pub headers: &'a HeaderMap,
    /// The query.
    pub query: Option<&'a [u8]>,
    /// The client's address: the peer's, or the address that trusted proxies name.
    pub client: Option<IpAddr>,
    /// Whether `client` is the client. Otherwise trusted proxies tell nothing that can be read, and `client` is one of them.
    pub is_client_certain: bool,
    /// The SHA-256 of the certificate that the client's connection holds by.
    pub certificate: Option<&'a Thumbprint>,
    /// The announced length of the body, where there is one.
    pub content_length: Option<u64>,
}

/// The findings of admission about a request, whether the request passes or not. Header fields and log lines are made
/// from them.
#[derive(Debug, Default)]
pub struct Findings {
    /// The route it takes.
    pub route: Option<Arc<Route>>,
    /// The routes of its host and path, where none of them serves its method.
    pub other_routes: Vec<Arc<Route>>,
    /// The principal of its token.
    pub principal: Option<Principal>,
    /// The decisions about limits, subject by subject; the last decision may be a refusal.
    pub decisions: Decisions,
}

/// Proof that a request passed every check. Only [`Admission::admit`] makes one.
pub struct Permit {
    route: Arc<Route>,
    /// The side of the route's upstreams that the request is on.
    side: usize,
    principal: Option<Principal>,
    /// The request's slots among those in flight, given up with the permit.
    _slots: Slots,
}

impl Permit {
    /// The route to take.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The upstream to take.
    pub fn upstream(&self) -> &Arc<Upstream> {
        self.route.upstreams.get(self.side)
    }

    /// The principal of the request's token; `None` on a route that needs no token.
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }
}

/// Decides about requests.
pub struct Admission {
    authenticator: Arc<Authenticator>,
    ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    gateways: Box<dyn Fn() -> u32 + Send + Sync>,
    in_flight: InFlight,
}

impl Admission {
    /// An admission that asks `authenticator` and `ledger`; `gateways` tells how many processes share the limits.
    pub fn new(
        authenticator: Arc<Authenticator>,
        ledger: Arc<Ledger>,
        clock: Arc<dyn Clock>,
        gateways: impl Fn() -> u32 + Send + Sync + 'static,
    ) -> Self {
        Self {
            authenticator,
            ledger,
            clock,
            gateways: Box::new(gateways),
            in_flight: InFlight::new(),
        }
    }

    /// The present, by the clock that admission uses.
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// Decides in this order: route, network, credential, permitted route, requests in flight, limits, body size.
    /// `findings` keeps the results of each step.
    ///
    /// # Errors
    /// The first [`Rejection`].
    pub async fn admit(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<Permit, Rejection> {
        let route = find_route(policy, request, findings)?;
        check_network(&route, request)?;
        let principal = match route.auth_required {
            true => Some(self.identify(policy, request, findings).await?),
            false => None,
        };
        let slots = self.take_slots(policy, &route, principal.as_ref())?;
        let decisions = &mut findings.decisions;
        self.count(policy, &route, principal.as_ref(), request.client, decisions).await?;
        if request.content_length.is_some_and(|length| length > route.max_body) {
            return Err(Rejection::BodyTooLarge(route.max_body));
        }
        let side = side(&route, principal.as_ref(), request.client);
        Ok(Permit { route, side, principal, _slots: slots })
    }

    /// The route of a preflight (the Fetch standard section 3.2.2) that the gateway answers itself: a preflight carries no
    /// token, so it is answered before tokens are looked at, and counts for none. `None`: the request is no preflight, or its
    /// route leaves preflights to the upstream.
    ///
    /// # Errors
    /// [`Rejection::NetworkNotPermitted`].
    pub fn preflight(
        policy: &Policy,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<Option<Arc<Route>>, Rejection> {
        if request.method != "OPTIONS" {
            return Ok(None);
        }
        // The route that the request itself will take.
        let asked = asked_method(request.headers).map(|method| Request { method, ..*request });
        let route = asked.and_then(|asked| match search(policy, &asked) {
            Found::Route(route) => Some(Arc::clone(route)),
            Found::OtherMethods { .. } | Found::Nothing => None,
        });
        let Some(route) = route.filter(|route| route.cors.is_some()) else { return Ok(None) };
        findings.route = Some(Arc::clone(&route));
        check_network(&route, request).map(|()| Some(route))
    }

    async fn identify(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<Principal, Rejection> {
        let failed = |error: AuthError| count_failure(policy, request, error);
        let sent = policy.credentials.sent(request.headers, request.query);
        let sent = sent.map_err(AuthError::from).and_then(|sent| sent.ok_or(AuthError::Missing));
        let sent = sent.map_err(failed)?;
        let client = GuardedClient { guard: policy.failures.as_deref(), client: request.client };
        let principal =
            self.authenticator.authenticate(&policy.auth, &sent, client, request.now, &*self.clock);
        let principal = principal.await.map_err(failed)?;
        // The token may have been verified on another connection, so this is not remembered with the token.
        if !principal.holds_with(request.certificate) {
            return Err(failed(JwtError::Certificate.into()));
        }
        policy.count_by_plan(&principal);
        findings.principal = Some(principal.clone());
        // Rights are compared in exact case: a token never gets more than its record writes.
        match principal.may(&matched(request.path.as_str(), false)) {
            true => Ok(principal),
            false => Err(Rejection::RouteNotPermitted),
        }
    }

    fn take_slots(
        &self,
        policy: &Policy,
        route: &Route,
        principal: Option<&Principal>,
    ) -> Result<Slots, Rejection> {
        let of_token = principal.map(|principal| Bound {
            scope: Scope::Token,
            name: &principal.record().subject,
            most: policy.max_in_flight,
        });
        let of_route = Bound { scope: Scope::Route, name: &route.key, most: route.max_in_flight };
        let slots = self.in_flight.take(of_token.into_iter().chain([of_route]));
        slots.map_err(Rejection::TooManyInFlight)
    }
}

/// Counts an invalid credential for its client's address; after too many, the client is told to wait. A token that has
/// expired or is revoked is not counted, because the client did not guess it.
fn count_failure(policy: &Policy, request: &Request<'_>, error: AuthError) -> Rejection {
    match (Rejection::from(error), &policy.failures, request.client) {
        (Rejection::InvalidToken(cause), Some(guard), Some(client)) => match guard.failed(client) {
            Some(wait) => Rejection::TooManyFailures { wait, cause },
            None => Rejection::InvalidToken(cause),
        },
        (rejection, ..) => rejection,
    }
}

/// The side of the route's upstreams that a request is on: that of its token, also after a rotation, or else of its
/// client's network.
fn side(route: &Route, principal: Option<&Principal>, client: Option<IpAddr>) -> usize {
    route.upstreams.side(|| match (principal, client) {
        (Some(principal), _) => split::hash(principal.record().subject.as_bytes()),
        (None, Some(client)) => split::hash(&Network::of(client).octets()),
        (None, None) => 0,
    })
}

/// Refuses a client that the networks of `route` do not let in, or may not let in.
fn check_network(route: &Route, request: &Request<'_>) -> Result<(), Rejection> {
    let client = request.client.filter(|_| request.is_client_certain);
    match route.networks.permit(client) {
        true => Ok(()),
        false => Err(Rejection::NetworkNotPermitted),
    }
}

fn search<'p>(policy: &'p Policy, request: &Request<'_>) -> Found<'p, Arc<Route>> {
    let host = LazyCell::new(|| host_of(request.headers));
    let path = matched(request.path.as_str(), policy.routes.folds());
    policy.routes.find(|| *host, &path, request.method)
}

/// The route of a request, which `findings` keeps.
fn find_route(
    policy: &Policy,
    request: &Request<'_>,
    findings: &mut Findings,
) -> Result<Arc<Route>, Rejection> {
    match search(policy, request) {
        // An origin would echo the request of a TRACE, with its credential (RFC 9110 section 9.3.8).
        Found::Route(_) if request.method == "TRACE" => {
            Err(Rejection::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".into()))
        }
        Found::Route(route) => Ok(Arc::clone(findings.route.insert(Arc::clone(route)))),
        Found::OtherMethods { methods, routes } => {
            findings.other_routes = routes.into_iter().cloned().collect();
            Err(Rejection::MethodNotAllowed(methods.join(", ")))
        }
        Found::Nothing => Err(Rejection::NoRoute),
    }
}

/// The host of a request, without port.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok().map(without_port)
}
