//! Counting a request for every subject that has limits: for all of them, or for none.
//! This file must not know which requests may be made, nor how a limit is counted.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Admission;
use super::reject::Rejection;
use crate::auth::Principal;
use crate::limit::ledger::{Decision, Ledger, Terms, Weight};
use crate::limit::subject::Subject;
use crate::policy::{Policy, Route};
use crate::quota::rule::{By, Group};
use crate::record::HeaderText;

/// Decisions about one request, in the order they were made. Most requests have one.
pub type Decisions = SmallVec<[Decided; 1]>;

/// The decision of one subject's limits about a request.
#[derive(Debug)]
pub struct Decided {
    /// The decision.
    pub decision: Decision,
    /// The limits, as a list of structured items (RFC 9651).
    pub policy: Bytes,
    /// The parts of the request that name the subject.
    by: By,
    /// Whether the limits are the route's.
    of_route: bool,
}

impl Admission {
    /// Counts a request: for the limits of its token, then for those of its route. When a limit refuses, or the
    /// client leaves meanwhile, the units counted before are put back. `decisions` keeps the decisions.
    ///
    /// # Errors
    /// The [`Rejection`] of the first limit that refuses, of a plan that is not configured, or of a store that is
    /// needed and does not answer.
    pub(super) async fn count(
        &self,
        policy: &Policy,
        route: &Route,
        principal: Option<&Principal>,
        client: Option<IpAddr>,
        decisions: &mut Decisions,
    ) -> Result<(), Rejection> {
        let stated = principal.and_then(|principal| policy.own_limits(principal));
        let own: &[Group] = match (&stated, principal) {
            (Some(stated), _) => stated,
            (None, Some(principal)) => policy.limits_for(principal)?,
            (None, None) => &[],
        };
        if own.is_empty() && route.limits.is_empty() {
            return Ok(());
        }
        let record = principal.map(Principal::record);
        let subject = Subject {
            token: record.map(|record| &*record.subject),
            organization: principal.and_then(Principal::organization_id).map(HeaderText::as_str),
            client,
            route: &route.key,
        };
        let terms = Terms {
            sync: policy.sync,
            on_failure: policy.on_store_failure,
            gateways: (self.gateways)(),
        };
        let mut counting = Counting { ledger: &self.ledger, subject, decisions, passed: false };
        let of_route = route.limits.iter().map(|group| (group, true));
        for (group, of_route) in own.iter().map(|group| (group, false)).chain(of_route) {
            let name = subject.of(group.by, of_route);
            let decision = self.ledger.admit(&name, &group.limits, Weight::ONE, terms).await?;
            let refused = (!decision.admitted).then(|| Box::new(decision.clone()));
            let policy = group.policy.clone();
            counting.decisions.push(Decided { decision, policy, by: group.by, of_route });
            if let Some(decision) = refused {
                return Err(Rejection::RateLimited(decision));
            }
        }
        counting.passed = true;
        Ok(())
    }
}

/// Puts the counted units back when it is dropped before the last limit has admitted the request.
struct Counting<'a> {
    ledger: &'a Arc<Ledger>,
    subject: Subject<'a>,
    decisions: &'a mut Decisions,
    passed: bool,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        for decided in self.decisions.iter_mut().filter(|decided| decided.decision.admitted) {
            let subject = self.subject.of(decided.by, decided.of_route);
            self.ledger.put_back(&subject, &mut decided.decision);
        }
    }
}
