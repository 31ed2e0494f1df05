//! One immutable, compiled snapshot of a configuration. A request sees one policy from beginning to
//! end; counters, caches and connections live outside it and outlast it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prometheus::IntCounter;
use quick_cache::sync::Cache;

use crate::auth::guard::FailureGuard;
use crate::auth::jwks::{Jwks, JwksRules};
use crate::auth::jwt::{Issuer, JwtRules, JwtVerifier};
use crate::auth::verification::KeyError;
use crate::auth::{AuthRules, Principal};
use crate::config::{
    ClientTimeouts, Config, HeaderRules, Jwt, JwtIssuer, LimitSync, OnStoreFailure, RateHeaders,
    RouteAuth,
};
use crate::limit::ledger::{FailurePolicy, Sync};
use crate::quota::Algorithm;
use crate::quota::rule::{Group, LimitRule, groups};
use crate::record::{RateRule, TokenRecord};
use crate::route::table::{Matcher, RouteTable};
use crate::telemetry::metrics::{METRICS, RouteMetrics, plan_requests};
use crate::upstream::pool::{EndpointRules, Timeouts, Upstream, UpstreamRules};

/// Distinct bare rates (`rate_limit: N`) whose limits are kept made.
const BARE_RATES: usize = 10_000;

/// What requests are judged by.
#[derive(Debug)]
pub struct Policy {
    /// Counts policies since the start of the process; the first is 1.
    pub generation: u64,
    /// Which requests go where.
    pub routes: RouteTable<Arc<Route>>,
    /// How tokens are checked.
    pub auth: AuthRules,
    /// Watches addresses that send invalid credentials.
    pub failures: Option<Arc<FailureGuard>>,
    /// What happens while the store is away.
    pub on_store_failure: FailurePolicy,
    /// Who decides about limits.
    pub sync: Sync,
    /// Which rate fields answers carry.
    pub rate_headers: RateHeaders,
    /// Deadlines towards the client.
    pub timeouts: ClientTimeouts,
    /// Largest request body, in bytes.
    pub max_body: u64,
    /// Client connections open at the same time.
    pub max_connections: usize,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Most requests of one token at the same time, in this process.
    pub max_in_flight: Option<isize>,
    /// Whether each request gets a log line.
    pub access_log: bool,
    upstreams: HashMap<String, Arc<Upstream>>,
    plans: HashMap<String, Plan>,
    other_plans: IntCounter,
    default_limits: Arc<[Group]>,
    algorithm: Algorithm,
    bare_window: Duration,
    bare_limits: Cache<u64, Arc<[Group]>>,
    jwt: Jwt,
}

/// One plan, ready to use.
#[derive(Debug)]
struct Plan {
    limits: Arc<[Group]>,
    requests: IntCounter,
}

/// One route, ready to use.
#[derive(Debug)]
pub struct Route {
    /// The host and prefix it serves, for logs and metrics.
    pub label: Arc<str>,
    /// What its limits and places are counted under: label and methods, for routes may differ in these
    /// alone.
    pub key: Arc<str>,
    /// The canonical prefix.
    pub prefix: String,
    /// Where its requests go.
    pub upstream: Arc<Upstream>,
    /// Whether a token is needed.
    pub auth_required: bool,
    /// Whether the prefix is cut off before forwarding.
    pub strip_prefix: bool,
    /// Whether the credential reaches the upstream.
    pub forward_credential: bool,
    /// Changes to the request's fields.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields.
    pub response_headers: HeaderRules,
    /// Limits that apply besides the token's.
    pub limits: Arc<[Group]>,
    /// Most requests of it at the same time, in this process.
    pub max_in_flight: Option<isize>,
    /// Its counters.
    pub metrics: RouteMetrics,
}

/// A configuration that parses and cannot be put into effect.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A key cannot verify.
    #[error("auth.jwt: a key {0}")]
    Key(#[from] KeyError),
    /// A route names an upstream that does not exist.
    #[error("route {prefix}: there is no upstream `{upstream}`")]
    Upstream {
        /// The route's prefix.
        prefix: String,
        /// The name it uses.
        upstream: String,
    },
}

impl Policy {
    /// Compiles `config`. What did not change since `previous` is taken over from it, and with it
    /// what was learned: verified tokens, resolved names.
    ///
    /// # Errors
    /// [`PolicyError`]; nothing has changed then.
    pub fn compile(config: &Config, previous: Option<&Self>) -> Result<Self, PolicyError> {
        let upstreams: HashMap<String, Arc<Upstream>> = config
            .upstreams
            .iter()
            .map(|(name, upstream)| {
                let rules = upstream_rules(name, upstream);
                let kept = previous.and_then(|policy| policy.upstreams.get(name));
                let kept = kept.filter(|kept| *kept.rules() == rules);
                let upstream = kept.cloned().unwrap_or_else(|| Arc::new(Upstream::new(rules)));
                (name.clone(), upstream)
            })
            .collect();
        let jwt = match previous {
            Some(previous) if previous.jwt == config.auth.jwt => Arc::clone(&previous.auth.jwt),
            previous => Arc::new(jwt_verifier(&config.auth.jwt, previous)?),
        };
        let algorithm = config.limits.algorithm;
        Ok(Self {
            generation: previous.map_or(1, |policy| policy.generation + 1),
            routes: routes(config, &upstreams)?,
            auth: AuthRules { jwt, records: static_records(config) },
            failures: failure_guard(config, previous),
            on_store_failure: match config.limits.on_store_failure {
                OnStoreFailure::Local => FailurePolicy::Local,
                OnStoreFailure::Allow => FailurePolicy::Allow,
                OnStoreFailure::Deny => FailurePolicy::Deny,
            },
            sync: match config.limits.sync {
                LimitSync::Exact => Sync::Exact,
                LimitSync::Leased => Sync::Leased,
            },
            rate_headers: config.limits.headers,
            timeouts: config.timeouts,
            max_body: config.max_body,
            max_connections: config.max_connections,
            trusted_proxies: config.trusted_proxies.clone(),
            access_log: config.log.access,
            upstreams,
            plans: config
                .plans
                .iter()
                .map(|(name, rules)| {
                    let limits = groups(rules, algorithm, false);
                    (name.clone(), Plan { limits, requests: plan_requests(name) })
                })
                .collect(),
            other_plans: plan_requests("other"),
            default_limits: groups(&config.limits.default, algorithm, false),
            algorithm,
            max_in_flight: config.limits.max_in_flight,
            bare_window: config.limits.window,
            bare_limits: Cache::new(BARE_RATES),
            jwt: config.auth.jwt.clone(),
        })
    }

    /// The limits of a token that states some itself.
    pub fn own_limits(&self, principal: &Principal) -> Option<Arc<[Group]>> {
        principal.rate_rule().map(|rule| match rule {
            RateRule::Limits(limits) => limits.groups(self.algorithm),
            RateRule::Bare(quota) => self.bare_limits(*quota),
        })
    }

    /// The limits of a token that states none: its plan's, else the default.
    pub fn limits_for(&self, principal: &Principal) -> &[Group] {
        let plan = principal.plan().and_then(|plan| self.plans.get(plan.as_str()));
        plan.map_or(&self.default_limits, |plan| &plan.limits)
    }

    /// Counts a request under its token's plan; one that is not configured as `other`.
    pub fn count_by_plan(&self, principal: &Principal) {
        if let Some(name) = principal.plan() {
            let plan = self.plans.get(name.as_str());
            plan.map_or(&self.other_plans, |plan| &plan.requests).inc();
        }
    }

    /// The upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.upstreams.values().map(Arc::as_ref)
    }

    fn bare_limits(&self, quota: u64) -> Arc<[Group]> {
        if let Some(limits) = self.bare_limits.get(&quota) {
            return limits;
        }
        // A record's quota is in range, or it would not have been read.
        let rules: Vec<_> = LimitRule::per(quota, self.bare_window).into_iter().collect();
        let limits = groups(&rules, self.algorithm, false);
        self.bare_limits.insert(quota, Arc::clone(&limits));
        limits
    }
}

fn routes(
    config: &Config,
    upstreams: &HashMap<String, Arc<Upstream>>,
) -> Result<RouteTable<Arc<Route>>, PolicyError> {
    let mut routes = Vec::with_capacity(config.routes.len());
    for route in &config.routes {
        let upstream = upstreams.get(&route.upstream).ok_or_else(|| PolicyError::Upstream {
            prefix: route.prefix.clone(),
            upstream: route.upstream.clone(),
        })?;
        let label = format!("{}{}", route.host.as_deref().unwrap_or_default(), route.prefix);
        let matcher = Matcher {
            prefix: route.prefix.clone(),
            host: route.host.clone(),
            methods: route.methods.clone(),
        };
        let mut methods = route.methods.clone();
        methods.sort_unstable();
        let key = match methods.as_slice() {
            [] => label.clone(),
            methods => format!("{label}[{}]", methods.join(",")),
        };
        let compiled = Route {
            key: key.into(),
            metrics: RouteMetrics::new(&label),
            label: label.into(),
            prefix: route.prefix.clone(),
            upstream: Arc::clone(upstream),
            auth_required: route.auth == RouteAuth::Required,
            strip_prefix: route.strip_prefix,
            forward_credential: route.forward_credential,
            limits: groups(&route.limits, config.limits.algorithm, true),
            max_in_flight: route.max_in_flight,
            request_headers: route.request_headers.clone(),
            response_headers: route.response_headers.clone(),
        };
        routes.push((matcher, Arc::new(compiled)));
    }
    Ok(RouteTable::new(routes))
}

fn static_records(config: &Config) -> HashMap<Arc<str>, Arc<TokenRecord>> {
    let tokens = config.auth.tokens.iter();
    tokens.map(|token| (Arc::clone(&token.id), Arc::clone(&token.record))).collect()
}

fn jwt_verifier(jwt: &Jwt, previous: Option<&Policy>) -> Result<JwtVerifier, KeyError> {
    let mut sets = Vec::new();
    let issuer = |issuer: &JwtIssuer| {
        let keys = issuer.keys.iter().map(|key| key.verification_key());
        Ok(Issuer {
            name: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            keys: keys.collect::<Result<_, _>>()?,
            jwks: issuer.jwks.as_ref().map(|rules| {
                let same = sets.iter().find(|set: &&Arc<Jwks>| set.rules() == rules);
                let set = same.cloned().unwrap_or_else(|| key_set(rules, previous));
                sets.push(Arc::clone(&set));
                set
            }),
        })
    };
    let issuers = jwt.issuers.iter().map(issuer).collect::<Result<_, _>>()?;
    let rules = JwtRules { leeway: jwt.leeway, require_record: jwt.require_record };
    Ok(JwtVerifier::new(issuers, rules))
}

/// The set of before where its source is the same: what was fetched stays good.
fn key_set(rules: &JwksRules, previous: Option<&Policy>) -> Arc<Jwks> {
    let mut sets = previous.into_iter().flat_map(|policy| policy.auth.jwt.key_sets());
    match sets.find(|set| set.rules().source == rules.source) {
        Some(set) if set.rules() == rules => Arc::clone(set),
        Some(set) => Arc::new(set.with_rules(rules.clone())),
        None => Arc::new(Jwks::new(rules.clone(), |fetched| METRICS.key_fetch(fetched))),
    }
}

/// The guard of before, unless its rule has changed.
fn failure_guard(config: &Config, previous: Option<&Policy>) -> Option<Arc<FailureGuard>> {
    let rule = config.auth.max_failures?;
    let kept = previous.and_then(|policy| policy.failures.as_ref());
    let kept = kept.filter(|guard| guard.is_for(rule.failures, rule.window));
    Some(kept.cloned().unwrap_or_else(|| Arc::new(FailureGuard::new(rule.failures, rule.window))))
}

fn upstream_rules(name: &str, upstream: &crate::config::Upstream) -> UpstreamRules {
    let endpoint = |endpoint: &crate::config::Endpoint| EndpointRules {
        host: endpoint.url.host_str().unwrap_or_default().to_owned(),
        port: endpoint.url.port_or_known_default().unwrap_or(80),
        tls: endpoint.url.scheme() == "https",
        weight: endpoint.weight,
    };
    UpstreamRules {
        name: name.to_owned(),
        endpoints: upstream.endpoints.iter().map(endpoint).collect(),
        retries: upstream.retries,
        timeouts: Timeouts {
            connect: upstream.timeouts.connect,
            read: upstream.timeouts.read,
            write: upstream.timeouts.write,
            idle: upstream.timeouts.idle,
        },
    }
}
