//! Whether a request may pass: the order of decisions, and the permit that proves they were made.

use std::sync::Arc;

use http::HeaderMap;

use crate::auth::{AuthError, Authenticator, Principal};
use crate::clock::Clock;
use crate::limit::ledger::{Decision, Ledger, Terms};
use crate::policy::{Policy, Route};
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
    /// The store is needed and does not answer.
    #[error("the gateway's store does not answer")]
    StoreUnavailable,
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
    /// The host, without port.
    pub host: Option<&'a str>,
    /// The path.
    pub path: &'a CanonicalPath<'a>,
    /// The method.
    pub method: &'a str,
    /// The header fields.
    pub headers: &'a HeaderMap,
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
    /// What the limits said.
    pub decision: Option<Decision>,
}

/// Proof that a request passed every check. Only [`Admission::admit`] makes one.
#[derive(Debug)]
pub struct Permit {
    route: Arc<Route>,
    principal: Option<Principal>,
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
}

impl Admission {
    /// Judges with these; `gateways` tells how many processes share the limits.
    pub fn new(
        authenticator: Authenticator,
        ledger: Arc<Ledger>,
        clock: Arc<dyn Clock>,
        gateways: impl Fn() -> u32 + Send + Sync + 'static,
    ) -> Self {
        Self { authenticator, ledger, clock, gateways: Box::new(gateways) }
    }

    /// Decides in this order: route, credential, permitted route, limits, body size. What is found
    /// out on the way is left in `findings`.
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
        let mut permit = Permit { route, principal: None };
        if permit.route.auth_required {
            let now = self.clock.now();
            let principal =
                self.authenticator.authenticate(&policy.auth, request.headers, now).await?;
            findings.principal = Some(principal.clone());
            if !principal.may(request.path.as_str()) {
                return Err(Rejection::RouteNotPermitted);
            }
            self.count(policy, &principal, findings).await?;
            permit.principal = Some(principal);
        }
        if request.content_length.is_some_and(|length| length > policy.max_body) {
            return Err(Rejection::BodyTooLarge(policy.max_body));
        }
        Ok(permit)
    }

    async fn count(
        &self,
        policy: &Policy,
        principal: &Principal,
        findings: &mut Findings,
    ) -> Result<(), Rejection> {
        let limits = policy.limits_for(principal);
        if limits.is_empty() {
            return Ok(());
        }
        let terms = Terms {
            sync: policy.sync,
            on_failure: policy.on_store_failure,
            gateways: (self.gateways)(),
        };
        let decision = self.ledger.admit(&principal.record().subject, &limits, terms).await?;
        findings.decision = Some(decision.clone());
        if decision.admitted { Ok(()) } else { Err(Rejection::RateLimited(Box::new(decision))) }
    }
}

fn find_route(policy: &Policy, request: &Request<'_>) -> Result<Arc<Route>, Rejection> {
    match policy.routes.find(request.host, request.path.as_str(), request.method) {
        // A request that TRACE would echo holds a credential (RFC 9110 section 9.3.8).
        Found::Route(_) if request.method == "TRACE" => {
            Err(Rejection::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".into()))
        }
        Found::Route(route) => Ok(Arc::clone(route)),
        Found::OtherMethods(methods) => Err(Rejection::MethodNotAllowed(methods.join(", "))),
        Found::Nothing => Err(Rejection::NoRoute),
    }
}
