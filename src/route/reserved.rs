//! Paths that the gateway answers itself. One list, for the proxy that answers them and for the
//! configuration, whose routes may not have them.

/// What an endpoint of the gateway's own tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The process runs.
    Alive,
    /// The process should be sent requests.
    Ready,
}

const ENDPOINTS: [(&str, Endpoint); 4] = [
    ("/health", Endpoint::Alive),
    ("/ready", Endpoint::Ready),
    ("/health/live", Endpoint::Alive),
    ("/health/ready", Endpoint::Ready),
];

/// The endpoint whose path is the canonical `path`.
pub fn endpoint(path: &str) -> Option<Endpoint> {
    ENDPOINTS.iter().find(|(own, _)| *own == path).map(|(_, endpoint)| *endpoint)
}

/// The endpoint's path that is `prefix`, or above it: such a prefix would be served in part only.
pub fn endpoint_at_or_above(prefix: &str) -> Option<&'static str> {
    let at_or_above = |own: &&str| {
        prefix.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ENDPOINTS.iter().map(|(own, _)| *own).find(at_or_above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_paths_are_answered_and_nothing_beneath_them_is_routed() {
        for (own, endpoint_of_own) in ENDPOINTS {
            assert_eq!(endpoint(own), Some(endpoint_of_own), "{own}");
            assert!(endpoint_at_or_above(own).is_some(), "{own}");
            let beneath = format!("{own}/other");
            assert_eq!(endpoint(&beneath), None, "{beneath}");
            assert!(endpoint_at_or_above(&beneath).is_some(), "{beneath}");
            let longer = format!("{own}z");
            assert_eq!(endpoint(&longer), None, "{longer}");
        }
        for free in ["/", "/healthz", "/readyz", "/a/health", "/api"] {
            assert_eq!((endpoint(free), endpoint_at_or_above(free)), (None, None), "{free}");
        }
        assert_eq!(endpoint_at_or_above("/health/live"), Some("/health"), "the shortest is named");
    }
}
