//! How a policy checks tokens. A verifier and sets of keys that have not changed are kept, with the tokens
//! that were verified and the keys that were fetched.

use std::sync::Arc;

use super::Policy;
use crate::auth::AuthRules;
use crate::auth::guard::{FailureGuard, FailureRate};
use crate::auth::issuer::{IssuerKey, IssuerRules};
use crate::auth::jwks::{Jwks, JwksRules};
use crate::auth::jwt::{Issuer, JwtVerifier};
use crate::config::{Jwt, StaticToken};
use crate::telemetry::metrics::METRICS;

/// The rules of `jwt` and `tokens`.
pub(super) fn rules(jwt: &Jwt, tokens: Vec<StaticToken>, previous: Option<&Policy>) -> AuthRules {
    let unchanged = previous.filter(|previous| previous.jwt == *jwt);
    AuthRules {
        jwt: match unchanged {
            Some(unchanged) => Arc::clone(&unchanged.auth.jwt),
            None => Arc::new(verifier(jwt, previous)),
        },
        records: tokens.into_iter().map(|token| (token.id, token.record)).collect(),
    }
}

fn verifier(jwt: &Jwt, previous: Option<&Policy>) -> JwtVerifier {
    let mut sets: Vec<Arc<Jwks>> = Vec::new();
    let issuer = |issuer: &IssuerRules| Issuer {
        name: issuer.name.clone(),
        audience: issuer.audience.clone(),
        keys: issuer.keys.iter().map(IssuerKey::verification).cloned().collect(),
        jwks: issuer.jwks.as_ref().map(|rules| {
            let same = sets.iter().find(|set| set.rules() == rules);
            let set = same.cloned().unwrap_or_else(|| key_set(rules, previous));
            sets.push(Arc::clone(&set));
            set
        }),
    };
    JwtVerifier::new(jwt.issuers.iter().map(issuer).collect(), jwt.rules)
}

/// The previous set where its source is the same: the keys that were fetched stay good.
fn key_set(rules: &JwksRules, previous: Option<&Policy>) -> Arc<Jwks> {
    let mut sets = previous.into_iter().flat_map(|policy| policy.auth.jwt.key_sets());
    match sets.find(|set| set.rules().source == rules.source) {
        Some(set) if set.rules() == rules => Arc::clone(set),
        Some(set) => Arc::new(set.with_rules(rules.clone())),
        None => Arc::new(Jwks::new(rules.clone(), |fetched| METRICS.key_fetch(fetched))),
    }
}

/// The guard that allows `rate`: the previous one, with its counts, unless the rate has changed.
pub(super) fn failure_guard(
    rate: Option<FailureRate>,
    previous: Option<&Policy>,
) -> Option<Arc<FailureGuard>> {
    let rate = rate?;
    let kept = previous.and_then(|policy| policy.failures.as_ref());
    let kept = kept.filter(|guard| guard.allowed() == rate);
    Some(kept.cloned().unwrap_or_else(|| Arc::new(FailureGuard::new(rate))))
}
