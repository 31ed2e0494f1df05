//! Paths that the gateway answers itself. One list, for the proxy that answers them and for the
//! configuration, whose routes may not have them.

/// What a load balancer learns from a path that the gateway answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The process runs.
    Alive,
    /// The process should be sent requests.
    Ready,
}

const PROBES: [(&str, Probe); 4] = [
    ("/health", Probe::Alive),
    ("/ready", Probe::Ready),
    ("/health/live", Probe::Alive),
    ("/health/ready", Probe::Ready),
];

/// The probe whose path is the canonical `path`.
pub fn probe(path: &str) -> Option<Probe> {
    PROBES.iter().find(|(own, _)| *own == path).map(|(_, probe)| *probe)
}

/// The reserved path that equals `prefix` or is above it. The gateway would answer a part of such a prefix itself.
pub fn reserved_at_or_above(prefix: &str) -> Option<&'static str> {
    let at_or_above = |own: &&str| {
        prefix.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    PROBES.iter().map(|(own, _)| *own).find(at_or_above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_paths_are_answered_and_nothing_beneath_them_is_routed() {
        for (own, probe_of_own) in PROBES {
            assert_eq!(probe(own), Some(probe_of_own), "{own}");
            assert!(reserved_at_or_above(own).is_some(), "{own}");
            let beneath = format!("{own}/other");
            assert_eq!(probe(&beneath), None, "{beneath}");
            assert!(reserved_at_or_above(&beneath).is_some(), "{beneath}");
            let longer = format!("{own}z");
            assert_eq!(probe(&longer), None, "{longer}");
        }
        for free in ["/", "/healthz", "/readyz", "/a/health", "/api"] {
            assert_eq!((probe(free), reserved_at_or_above(free)), (None, None), "{free}");
        }
        assert_eq!(reserved_at_or_above("/health/live"), Some("/health"), "the shortest is named");
    }
}
