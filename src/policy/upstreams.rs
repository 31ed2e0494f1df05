//! The upstreams of a policy. An upstream that has not changed is kept. Of an upstream that has changed, the endpoints
//! that are the same are kept, with their addresses and with all that is known about them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::upstream::pool::Upstream;
use crate::upstream::rules::UpstreamRules;

/// Upstreams by their names.
#[derive(Debug, Default)]
pub(super) struct Upstreams(HashMap<String, Arc<Upstream>>);

impl Upstreams {
    /// The upstreams of `rules`. What has not changed is taken over from `previous`.
    pub fn new(rules: &BTreeMap<String, Arc<UpstreamRules>>, previous: Option<&Self>) -> Self {
        let upstream = |(name, rules): (&String, &Arc<UpstreamRules>)| {
            let before = previous.and_then(|previous| previous.0.get(name));
            let upstream = match before {
                Some(before) if before.rules() == &**rules => Arc::clone(before),
                before => {
                    Arc::new(Upstream::new(Arc::clone(rules), before.map(|before| &**before)))
                }
            };
            (name.clone(), upstream)
        };
        Self(rules.iter().map(upstream).collect())
    }

    /// The upstream of `rules`, which is made if it is not there yet.
    pub fn of(&mut self, rules: &Arc<UpstreamRules>) -> Arc<Upstream> {
        let upstream = self.0.entry(rules.name.clone());
        Arc::clone(upstream.or_insert_with(|| Arc::new(Upstream::new(Arc::clone(rules), None))))
    }

    /// Every upstream, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::rules::{BreakerRules, EndpointRules, EndpointUrl, Scheme, Timeouts};

    fn rules(port: u16) -> Arc<UpstreamRules> {
        let second = Duration::from_secs(1);
        Arc::new(UpstreamRules {
            name: "users".into(),
            endpoints: vec![EndpointRules {
                url: EndpointUrl { host: "127.0.0.1".into(), port, scheme: Scheme::Http },
                weight: 1,
            }],
            balance: Default::default(),
            slow_start: second,
            connections: Default::default(),
            retries: 0,
            retry_budget: 20,
            timeouts: Timeouts {
                connect: second,
                read: second,
                write: second,
                idle: second,
                deadlines: Default::default(),
            },
            breaker: BreakerRules {
                failures: None,
                open_for: second,
                statuses: Default::default(),
            },
            resolve_every: second,
            health: None,
        })
    }

    #[test]
    fn an_upstream_is_kept_until_its_rules_change() {
        let upstreams = |rules: &Arc<UpstreamRules>, previous: Option<&Upstreams>| {
            let by_name = BTreeMap::from([(rules.name.clone(), Arc::clone(rules))]);
            Upstreams::new(&by_name, previous)
        };
        let mut first = upstreams(&rules(1), None);
        let mut same = upstreams(&rules(1), Some(&first));
        let mut changed = upstreams(&rules(2), Some(&same));
        let made = first.of(&rules(1));
        assert!(Arc::ptr_eq(&made, &same.of(&rules(1))));
        assert!(!Arc::ptr_eq(&made, &changed.of(&rules(2))));
        assert_eq!(changed.iter().count(), 1);
    }
}
