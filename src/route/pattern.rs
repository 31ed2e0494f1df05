//! The paths a token may use: `allowed_routes` of its record or claims.

/// A set of path patterns. Empty means every path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPatterns(Vec<String>);

impl PathPatterns {
    /// Wraps the patterns as written: exact, with a trailing `*` for "and whatever follows", or `*`.
    pub fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|pattern| size_of::<String>() + pattern.capacity()).sum()
    }

    /// Whether a pattern matches the canonical `path`.
    pub fn permit(&self, path: &str) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path == pattern,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_permit_what_they_say() {
        let permit = |patterns: &[&str], path| {
            PathPatterns::new(patterns.iter().map(ToString::to_string).collect()).permit(path)
        };
        assert!(permit(&[], "/anything"));
        assert!(permit(&["*"], "/anything"));
        assert!(permit(&["/a"], "/a"));
        assert!(!permit(&["/a"], "/a/"));
        assert!(!permit(&["/a"], "/ab"));
        assert!(permit(&["/a/*"], "/a/b/c"));
        assert!(permit(&["/a/*"], "/a/"));
        assert!(!permit(&["/a/*"], "/a"));
        assert!(permit(&["/a*"], "/ab"));
        assert!(permit(&["/x", "/a*"], "/a"));
    }
}
