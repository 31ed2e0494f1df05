//! The limits of tokens: their own, their plan's, or the default ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use quick_cache::sync::Cache;

use crate::auth::Principal;
use crate::quota::Algorithm;
use crate::quota::rule::{Group, LimitRule, LimitSet, groups};
use crate::record::RateRule;
use crate::telemetry::metrics::plan_requests;

/// Bare rates (`rate_limit: N`) whose limits are kept, at most.
const BARE_RATES: usize = 10_000;

/// The limits of tokens.
#[derive(Debug)]
pub(super) struct TokenLimits {
    plans: HashMap<String, Plan>,
    /// Counts requests under plans that are not configured.
    other_plans: IntCounter,
    default: Arc<[Group]>,
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

    /// The limits of a token without own limits: those of its plan, else the default.
    pub fn of_plan(&self, principal: &Principal) -> &[Group] {
        let plan = principal.plan().and_then(|plan| self.plans.get(plan.as_str()));
        plan.map_or(&self.default, |plan| &plan.limits)
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
