//! The paths a token may use: `allowed_routes` of its record or claims.

use std::sync::Arc;

use once_cell::sync::Lazy;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// The cache of shared sets holds at most this many sets, and this many bytes.
const SHARED_SETS: usize = 1_000;
const SHARED_BYTES: u64 = 4 << 20;

/// The sets in use. Most tokens have one of a few sets: a shared set takes less memory, and stays in the processor's
/// caches.
static SHARED: Lazy<Cache<Vec<String>, PathPatterns, Size>> =
    Lazy::new(|| Cache::with_weighter(SHARED_SETS, SHARED_BYTES, Size));

#[derive(Clone)]
struct Size;

impl Weighter<Vec<String>, PathPatterns> for Size {
    fn weight(&self, _: &Vec<String>, patterns: &PathPatterns) -> u64 {
        2 * patterns.bytes() as u64 + 1
    }
}

/// A set of path patterns. Empty means every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPatterns(Arc<[String]>);

impl PathPatterns {
    /// Wraps the patterns as written: exact, with a trailing `*` for "and whatever follows", or `*`.
    pub fn new(patterns: Vec<String>) -> Self {
        SHARED.get(&patterns).unwrap_or_else(|| {
            let set = Self(patterns.clone().into());
            SHARED.insert(patterns, set.clone());
            set
        })
    }

    /// The size of the set, in bytes.
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
