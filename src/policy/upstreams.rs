//! The upstreams of a policy. An upstream that has not changed is kept, with its addresses, its connections
//! and its place in the rotation.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::upstream::pool::{Upstream, UpstreamRules};

/// Upstreams by their names.
#[derive(Debug, Default)]
pub(super) struct Upstreams(HashMap<String, Arc<Upstream>>);

impl Upstreams {
    /// The upstreams of `rules`. Unchanged ones are taken over from `previous`.
    pub fn new(rules: &BTreeMap<String, Arc<UpstreamRules>>, previous: Option<&Self>) -> Self {
        let upstream = |(name, rules): (&String, &Arc<UpstreamRules>)| {
            let kept = previous.and_then(|previous| previous.0.get(name));
            let kept = kept.filter(|kept| kept.rules() == &**rules).cloned();
            let upstream = kept.unwrap_or_else(|| Arc::new(Upstream::new(Arc::clone(rules))));
            (name.clone(), upstream)
        };
        Self(rules.iter().map(upstream).collect())
    }

    /// The upstream of `rules`, which is made if it is not there yet.
    pub fn of(&mut self, rules: &Arc<UpstreamRules>) -> Arc<Upstream> {
        let upstream = self.0.entry(rules.name.clone());
        Arc::clone(upstream.or_insert_with(|| Arc::new(Upstream::new(Arc::clone(rules)))))
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
    use crate::upstream::pool::{EndpointRules, Timeouts};

    fn rules(port: u16) -> Arc<UpstreamRules> {
        let second = Duration::from_secs(1);
        Arc::new(UpstreamRules {
            name: "users".into(),
            endpoints: vec![EndpointRules {
                host: "127.0.0.1".into(),
                port,
                tls: false,
                weight: 1,
            }],
            retries: 0,
            timeouts: Timeouts { connect: second, read: second, write: second, idle: second },
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
