//! The limits of tokens: their own, their plan's, or the default ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use parking_lot::Mutex;
use prometheus::IntCounter;
use quick_cache::sync::Cache;

use crate::auth::Principal;
use crate::config::UnknownPlan;
use crate::quota::Algorithm;
use crate::quota::rule::{Group, LimitRule, LimitSet, groups};
use crate::record::RateRule;
use crate::telemetry::configured::plan_requests;

/// Bare rates (`rate_limit: N`) whose limits are kept, at most.
const BARE_RATES: usize = 10_000;

/// Plans that are not configured and whose names are logged, at most.
const LOGGED_PLANS: usize = 100;

/// A token has no limits of its own, and its plan is not configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has no plan `{0}`")]
pub struct MissingPlan(String);

/// The limits of tokens.
#[derive(Debug)]
pub(super) struct TokenLimits {
    plans: HashMap<String, Plan>,
    /// Counts requests under plans that are not configured.
    other_plans: IntCounter,
    default: Arc<[Group]>,
    unknown_plan: UnknownPlan,
    /// Names of plans that are not configured and were logged: once for each policy.
    logged: Mutex<BTreeSet<String>>,
    algorithm: Algorithm,
    bare_window: Duration,
    bare: Cache<u64, Arc<[Group]>>,
}

/// One plan, ready to use.
#[derive(Debug)]
struct Plan {
    limits: Arc<[Group]>,
    requests: IntCounter,
}

impl TokenLimits {
    /// The limits of `plans`, of tokens without plan (`default`), and of bare rates, which count in
    /// `bare_window`. Limits of tokens count by `algorithm` where they do not name one themselves.
    pub fn new(
        plans: &BTreeMap<String, LimitSet>,
        default: &LimitSet,
        unknown_plan: UnknownPlan,
        algorithm: Algorithm,
        bare_window: Duration,
    ) -> Self {
        let plan = |(name, limits): (&String, &LimitSet)| {
            let limits = Arc::clone(limits.groups());
            (name.clone(), Plan { limits, requests: plan_requests(name) })
        };
        Self {
            plans: plans.iter().map(plan).collect(),
            other_plans: plan_requests("other"),
            default: Arc::clone(default.groups()),
            unknown_plan,
            logged: Mutex::default(),
            algorithm,
            bare_window,
            bare: Cache::new(BARE_RATES),
        }
    }

    /// The token's own limits; `None` where the token states none.
    pub fn own(&self, principal: &Principal) -> Option<Arc<[Group]>> {
        principal.rate_rule().map(|rule| match rule {
            RateRule::Limits(limits) => limits.groups(self.algorithm),
            RateRule::Bare(quota) => self.bare(*quota),
        })
    }

    /// The limits of a token without own limits: those of its plan, or the default where it has no plan.
    ///
    /// # Errors
    /// [`MissingPlan`] when the plan is not configured, and such tokens are refused.
    pub fn of_plan(&self, principal: &Principal) -> Result<&[Group], MissingPlan> {
        let Some(name) = principal.plan() else { return Ok(&self.default) };
        match self.plans.get(name.as_str()) {
            Some(plan) => Ok(&plan.limits),
            None => self.of_unknown_plan(name.as_str(), principal.record().id()),
        }
    }

    fn of_unknown_plan(&self, name: &str, token: &str) -> Result<&[Group], MissingPlan> {
        let consequence = match self.unknown_plan {
            UnknownPlan::Refuse => "tokens with it are refused",
            UnknownPlan::Default => "the default limits apply",
        };
        let mut logged = self.logged.lock();
        if logged.len() < LOGGED_PLANS && !logged.contains(name) {
            logged.insert(name.to_owned());
            warn!("no plan `{name}` is configured, which token {token} has: {consequence}");
        }
        drop(logged);
        match self.unknown_plan {
            UnknownPlan::Refuse => Err(MissingPlan(name.to_owned())),
            UnknownPlan::Default => Ok(&self.default),
        }
    }

    /// Counts a request under its token's plan; a plan that is not configured counts as `other`.
    pub fn count_by_plan(&self, principal: &Principal) {
        if let Some(name) = principal.plan() {
            let plan = self.plans.get(name.as_str());
            plan.map_or(&self.other_plans, |plan| &plan.requests).inc();
        }
    }

    fn bare(&self, quota: u64) -> Arc<[Group]> {
        if let Some(limits) = self.bare.get(&quota) {
            return limits;
        }
        // A record with a quota out of range cannot be read.
        let rules: Vec<_> = LimitRule::per(quota, self.bare_window).into_iter().collect();
        let limits = groups(&rules, self.algorithm, false);
        self.bare.insert(quota, Arc::clone(&limits));
        limits
    }
}
