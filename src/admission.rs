//! Whether a request may pass: the order of decisions, and the permit that proves they were made.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use memchr::memchr;
use pingora_limits::inflight::{Guard, Inflight};
use smallvec::SmallVec;

use crate::auth::{AuthError, Authenticator, Principal};
use crate::base::clock::{Clock, UnixTime};
use crate::limit::ledger::{Decision, Ledger, Terms, Weight};
use crate::limit::subject::Subject;
use crate::policy::{Policy, Route};
use crate::record::HeaderText;
use crate::route::path::{CanonicalPath, PathError};
use crate::route::table::Found;
use crate::store::StoreError;

/// Why the gateway answers a request itself, with an error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejection {
    /// The request's shape: head, target, path.
    #[error("{0}")]
    BadRequest(String),
    /// The header did not arrive in time.
    #[error("the request header did not arrive in time")]
    RequestTimeout,
    /// The header is too large.
    #[error("the request header is too large")]
    HeaderTooLarge,
    /// No route has this path.
    #[error("no route serves this path")]
    NoRoute,
    /// A route has this path, but not this method; the methods it has.
    #[error("this path is not served with this method")]
    MethodNotAllowed(String),
    /// No credential.
    #[error("a token is required")]
    MissingToken,
    /// A credential that does not hold.
    #[error("the token is not valid")]
    InvalidToken,
    /// A credential whose time is over.
    #[error("the token has expired")]
    ExpiredToken,
    /// A disabled token.
    #[error("the token is revoked")]
    RevokedToken,
    /// The token may not use this path.
    #[error("the token does not permit this path")]
    RouteNotPermitted,
    /// A limit is used up; the decision says which and until when.
    #[error("the limit is used up")]
    RateLimited(Box<Decision>),
    /// The body is larger than so many bytes.
    #[error("the request body is larger than {0} bytes")]
    BodyTooLarge(u64),
    /// Too many requests of the token, or of the route, are under way.
    #[error("too many requests at the same time")]
    TooManyInFlight,
    /// Too many invalid credentials came from the client's address; how long it should wait.
    #[error("too many invalid tokens from this address")]
    TooManyFailures(Duration),
    /// The store is needed and does not answer.
    #[error("the gateway's store does not answer")]
    StoreUnavailable,
    /// The keys of the token's issuer are needed and cannot be fetched.
    #[error("the issuer's keys cannot be fetched")]
    KeysUnavailable,
    /// No endpoint could be reached, or it broke off.
    #[error("the upstream could not be reached")]
    UpstreamUnreachable,
    /// An endpoint did not answer in time.
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    /// No endpoint is known.
    #[error("the upstream has no usable endpoint")]
    UpstreamUnavailable,
    /// The gateway is shutting down.
    #[error("the gateway is shutting down")]
    Draining,
    /// A fault of the gateway.
    #[error("the gateway failed")]
    Internal,
}

impl From<AuthError> for Rejection {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => Self::MissingToken,
            AuthError::Ambiguous => Self::BadRequest("there are two different credentials".into()),
            AuthError::Invalid => Self::InvalidToken,
            AuthError::Expired => Self::ExpiredToken,
            AuthError::Revoked => Self::RevokedToken,
            AuthError::StoreUnavailable(_) => Self::StoreUnavailable,
            AuthError::KeysUnavailable => Self::KeysUnavailable,
        }
    }
}

impl From<PathError> for Rejection {
    fn from(error: PathError) -> Self {
        Self::BadRequest(error.to_string())
    }
}

impl From<StoreError> for Rejection {
    fn from(_: StoreError) -> Self {
        Self::StoreUnavailable
    }
}

/// What a request asks for.
pub struct Request<'a> {
    /// When it came.
    pub now: UnixTime,
    /// The path.
    pub path: &'a CanonicalPath<'a>,
    /// The method.
    pub method: &'a str,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The client's address, as far as it can be believed.
    pub client: Option<IpAddr>,
    /// The announced length of the body, where there is one.
    pub content_length: Option<u64>,
}

/// What was found out about a request, kept whether it passes or not: for fields and logs.
#[derive(Debug, Default)]
pub struct Findings {
    /// The route it takes.
    pub route: Option<Arc<Route>>,
    /// Who it is from.
    pub principal: Option<Principal>,
    /// What the limits said, subject by subject; the last one may have refused.
    pub decisions: Decisions,
    /// The limits of each decision, as a list of structured items.
    pub policies: SmallVec<[Bytes; 1]>,
}

/// Decisions about one request: nearly always one.
pub type Decisions = SmallVec<[Decision; 1]>;

/// Proof that a request passed every check. Only [`Admission::admit`] makes one.
pub struct Permit {
    route: Arc<Route>,
    principal: Option<Principal>,
    /// The request's places among those under way, given up with the permit.
    _places: SmallVec<[Guard; 2]>,
}

impl Permit {
    /// The route to take.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Who the request is from; `None` on a route that needs no token.
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }
}

/// Judges requests.
pub struct Admission {
    authenticator: Authenticator,
    ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    gateways: Box<dyn Fn() -> u32 + Send + Sync>,
    tokens_in_flight: Inflight,
    routes_in_flight: Inflight,
}

impl Admission {
    /// Judges with these; `gateways` tells how many processes share the limits.
    pub fn new(
        authenticator: Authenticator,
        ledger: Arc<Ledger>,
        clock: Arc<dyn Clock>,
        gateways: impl Fn() -> u32 + Send + Sync + 'static,
    ) -> Self {
        Self {
            authenticator,
            ledger,
            clock,
            gateways: Box::new(gateways),
            tokens_in_flight: Inflight::new(),
            routes_in_flight: Inflight::new(),
        }
    }

    /// The present, by the clock that requests are judged by.
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// Decides in this order: route, credential, permitted route, requests under way, limits, body size.
    /// What is found out on the way is left in `findings`.
    ///
    /// # Errors
    /// The first [`Rejection`].
    pub async fn admit(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<Permit, Rejection> {
        let route = find_route(policy, request)?;
        findings.route = Some(Arc::clone(&route));
        let principal = match route.auth_required {
            true => Some(self.identify(policy, request, findings).await?),
            false => None,
        };
        let places = self.take_places(policy, &route, principal.as_ref())?;
        self.count(policy, &route, principal.as_ref(), request, findings).await?;
        if request.content_length.is_some_and(|length| length > policy.max_body) {
            return Err(Rejection::BodyTooLarge(policy.max_body));
        }
        Ok(Permit { route, principal, _places: places })
    }

    async fn identify(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<Principal, Rejection> {
        let principal = self.authenticator.authenticate(
            &policy.auth,
            request.headers,
            request.now,
            &*self.clock,
        );
        let principal =
            principal.await.map_err(|error| match (&error, &policy.failures, request.client) {
                // Known tokens that have expired or are revoked are nobody's guesses.
                (AuthError::Invalid, Some(guard), Some(client)) => match guard.failed(client) {
                    Some(wait) => Rejection::TooManyFailures(wait),
                    None => error.into(),
                },
                _ => error.into(),
            })?;
        policy.count_by_plan(&principal);
        findings.principal = Some(principal.clone());
        match principal.may(request.path.as_str()) {
            true => Ok(principal),
            false => Err(Rejection::RouteNotPermitted),
        }
    }

    fn take_places(
        &self,
        policy: &Policy,
        route: &Route,
        principal: Option<&Principal>,
    ) -> Result<SmallVec<[Guard; 2]>, Rejection> {
        let mut places = SmallVec::new();
        let mut take = |most: Option<isize>, among: &Inflight, who: &str| {
            let Some(most) = most else { return Ok(()) };
            let (place, taken) = among.incr(who, 1);
            places.push(place);
            if taken > most { Err(Rejection::TooManyInFlight) } else { Ok(()) }
        };
        if let Some(principal) = principal {
            take(policy.max_in_flight, &self.tokens_in_flight, &principal.record().subject)?;
        }
        take(route.max_in_flight, &self.routes_in_flight, &route.key)?;
        Ok(places)
    }

    /// Counts the request for every subject it has limits as: the token's, then the route's. If one
    /// refuses, or the client leaves meanwhile, what the others counted is put back.
    async fn count(
        &self,
        policy: &Policy,
        route: &Route,
        principal: Option<&Principal>,
        request: &Request<'_>,
        findings: &mut Findings,
    ) -> Result<(), Rejection> {
        let stated = principal.and_then(|principal| policy.own_limits(principal));
        let own = match (&stated, principal) {
            (Some(stated), _) => stated,
            (None, Some(principal)) => policy.limits_for(principal),
            (None, None) => &[],
        };
        if own.is_empty() && route.limits.is_empty() {
            return Ok(());
        }
        let record = principal.map(Principal::record);
        let subject = Subject {
            token: record.map(|record| &*record.subject),
            organization: principal.and_then(Principal::organization_id).map(HeaderText::as_str),
            client: request.client,
            route: &route.key,
        };
        let terms = Terms {
            sync: policy.sync,
            on_failure: policy.on_store_failure,
            gateways: (self.gateways)(),
        };
        let mut counted = Counted { ledger: &self.ledger, so_far: SmallVec::new(), findings };
        let of_route = route.limits.iter().map(|group| (group, true));
        for (group, of_route) in own.iter().map(|group| (group, false)).chain(of_route) {
            let subject = subject.of(group.by, of_route);
            let decision = self.ledger.admit(&subject, &group.limits, Weight::ONE, terms).await?;
            counted.findings.decisions.push(decision);
            counted.findings.policies.push(group.policy.clone());
            let Some(decision) = counted.findings.decisions.last() else { continue };
            if !decision.admitted {
                return Err(Rejection::RateLimited(Box::new(decision.clone())));
            }
            counted.so_far.push(subject);
        }
        counted.so_far.clear();
        Ok(())
    }
}

/// What a request has been counted for before the last decision about it; put back when dropped.
struct Counted<'a> {
    ledger: &'a Arc<Ledger>,
    /// The subjects, in the order of `findings.decisions`.
    so_far: SmallVec<[Cow<'a, str>; 1]>,
    findings: &'a mut Findings,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        for (subject, decision) in self.so_far.iter().zip(&mut self.findings.decisions) {
            self.ledger.put_back(subject, decision);
        }
    }
}

fn find_route(policy: &Policy, request: &Request<'_>) -> Result<Arc<Route>, Rejection> {
    let host = LazyCell::new(|| host_of(request.headers));
    match policy.routes.find(|| *host, request.path.as_str(), request.method) {
        // A request that TRACE would echo holds a credential (RFC 9110 section 9.3.8).
        Found::Route(_) if request.method == "TRACE" => {
            Err(Rejection::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".into()))
        }
        Found::Route(route) => Ok(Arc::clone(route)),
        Found::OtherMethods(methods) => Err(Rejection::MethodNotAllowed(methods.join(", "))),
        Found::Nothing => Err(Rejection::NoRoute),
    }
}

/// The host of a request, without port.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let without_port = match host.strip_prefix('[') {
        Some(_) => host.find(']').map_or(host, |end| &host[..=end]),
        None => memchr(b':', host.as_bytes()).map_or(host, |end| &host[..end]),
    };
    Some(without_port)
}
