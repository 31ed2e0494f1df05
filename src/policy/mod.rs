//! One immutable snapshot of a configuration, ready to be used by requests. A request sees one policy from
//! beginning to end; counters, caches and connections live outside it and outlast it.
//!
//! Nothing here can fail: a configuration that exists is valid.

use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;

use crate::auth::guard::FailureGuard;
use crate::auth::sources::Sources;
use crate::auth::{AuthRules, Principal};
use crate::config::{self, ClientTimeouts, Jwt, ListenerRules, LiveConfig};
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::rule::Group;
use crate::route::table::RouteTable;
use crate::upstream::pool::Upstream;

mod auth;
mod limits;
mod listeners;
mod routes;
mod upstreams;

pub use limits::MissingPlan;
use limits::TokenLimits;
pub use routes::{Route, RouteMirror};
use upstreams::Upstreams;

/// The rules that requests are judged by.
#[derive(Debug)]
pub struct Policy {
    /// Counts policies since the start of the process; the first is 1.
    pub generation: u64,
    /// The routes, by the requests that they match.
    pub routes: RouteTable<Arc<Route>>,
    /// How tokens are checked.
    pub auth: AuthRules,
    /// Watches addresses that send invalid credentials.
    pub failures: Option<Arc<FailureGuard>>,
    /// How limits are decided while the store is away.
    pub on_store_failure: FailurePolicy,
    /// Whether the store decides about limits, or this process.
    pub sync: SyncMode,
    /// Which rate fields answers carry.
    pub rate_headers: RateHeaders,
    /// Whether a listener sends its clients to https.
    pub redirects: bool,
    /// Whether a listener asks clients for certificates.
    pub asks_for_certificates: bool,
    /// The rules of the listeners, in the order in which they were configured at the start.
    pub listeners: Vec<ListenerRules>,
    /// Deadlines towards the client.
    pub timeouts: ClientTimeouts,
    /// Client connections open at the same time.
    pub max_connections: usize,
    /// Client connections that one client may have open at the same time; `None` for any number.
    pub max_connections_per_client: Option<isize>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Fields of requests that pass although the gateway would remove them.
    pub pass_fields: Vec<HeaderName>,
    /// The places of a request in which a credential may stand.
    pub credentials: Sources,
    /// Most requests of one token at the same time, in this process.
    pub max_in_flight: Option<isize>,
    /// Whether each request gets a log line.
    pub access_log: bool,
    limits: TokenLimits,
    upstreams: Upstreams,
    jwt: Jwt,
}

impl Policy {
    /// Compiles `config`. Parts that have not changed since `previous` are taken over from it, and with them
    /// the tokens that were verified and the names that were resolved.
    pub fn compile(config: LiveConfig, previous: Option<&Self>) -> Self {
        // Without `..`: a new key does not compile until it is used here.
        let LiveConfig {
            // The log belongs to the process: its level is set where the policy is put into effect.
            log_level: _,
            access_log,
            listeners,
            timeouts,
            max_body,
            max_connections,
            max_connections_per_client,
            trusted_proxies,
            pass_fields,
            fold_paths,
            auth,
            plans,
            limits,
            upstreams,
            routes,
        } = config;
        let kept_upstreams = previous.map(|policy| &policy.upstreams);
        let mut upstreams = Upstreams::new(&upstreams, kept_upstreams);
        let config::Auth { jwt, tokens, max_failures, sources: credentials } = auth;
        let config::Limits {
            default,
            algorithm,
            window,
            sync,
            on_store_failure,
            headers: rate_headers,
            max_in_flight,
            unknown_plan,
        } = limits;
        Self {
            generation: previous.map_or(1, |policy| policy.generation + 1),
            routes: routes::table(routes, fold_paths, max_body, &mut upstreams),
            auth: auth::rules(&jwt, tokens, previous),
            failures: auth::failure_guard(max_failures, previous),
            on_store_failure,
            sync,
            rate_headers,
            redirects: listeners.iter().any(|listener| listener.redirect_to.is_some()),
            asks_for_certificates: listeners::ask_for_certificates(&listeners),
            listeners: listeners::after(listeners, previous),
            timeouts,
            max_connections,
            max_connections_per_client,
            trusted_proxies,
            pass_fields,
            credentials,
            max_in_flight,
            access_log,
            limits: TokenLimits::new(&plans, &default, unknown_plan, algorithm, window),
            upstreams,
            jwt,
        }
    }

    /// The token's own limits; `None` where the token states none.
    pub fn own_limits(&self, principal: &Principal) -> Option<Arc<[Group]>> {
        self.limits.own(principal)
    }

    /// The limits of a token without own limits: those of its plan, or the default where it has no plan.
    ///
    /// # Errors
    /// [`MissingPlan`] when the plan is not configured, and such tokens are refused.
    pub fn limits_for(&self, principal: &Principal) -> Result<&[Group], MissingPlan> {
        self.limits.of_plan(principal)
    }

    /// Counts a request under its token's plan; a plan that is not configured counts as `other`.
    pub fn count_by_plan(&self, principal: &Principal) {
        self.limits.count_by_plan(principal);
    }

    /// The upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str, previous: Option<&Policy>) -> Policy {
        let environment = std::iter::empty::<(String, String)>().collect();
        Policy::compile(config::parse(text, "t.yaml", &environment).unwrap().live, previous)
    }

    #[test]
    fn a_policy_keeps_the_parts_that_have_not_changed() {
        let text = |leeway: &str, failures: &str, port: u16| {
            format!(
                "auth:
  max_failures: {failures}
  jwt: {{ keys: [ {{ algorithm: HS256, secret: 0123456789abcdef0123456789abcdef }} ], leeway: {leeway} }}
  tokens: [ {{ api_key: a, rate_limit: 7 }} ]
upstreams: {{ up: {{ endpoints: [ \"http://127.0.0.1:{port}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]"
            )
        };
        let first = policy(&text("1s", "5/minute", 1), None);
        let upstream = |policy: &Policy| {
            policy.routes.iter().map(|route| Arc::clone(route.upstreams.get(0))).next().unwrap()
        };
        let guard = |policy: &Policy| policy.failures.clone().unwrap();
        for (leeway, failures, port) in [
            ("1s", "5/minute", 1),
            ("2s", "5/minute", 1),
            ("1s", "6/minute", 1),
            ("1s", "5/minute", 2),
        ] {
            let next = policy(&text(leeway, failures, port), Some(&first));
            assert_eq!(next.generation, 2);
            assert_eq!(Arc::ptr_eq(&next.auth.jwt, &first.auth.jwt), leeway == "1s");
            assert_eq!(Arc::ptr_eq(&guard(&next), &guard(&first)), failures == "5/minute");
            assert_eq!(Arc::ptr_eq(&upstream(&next), &upstream(&first)), port == 1);
            assert_eq!(next.upstreams().count(), 1);
            assert!(next.auth.records.contains_key("a"));
        }
    }
}
