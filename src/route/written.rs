//! Paths as people write them, in a configuration or a record.
//!
//! Prefixes and patterns are compared with canonical paths. A path that is written in another form would never match,
//! so it is refused where it is written.

use super::matched::has_parameters;
use super::path::{CanonicalPath, PathError};

/// The patterns that [`check_pattern`] allows, for messages.
pub const PATTERN: &str = "a path, a path with `*` at its end, or `*` for all";

/// Why a written path never matches a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenError {
    /// Requests are matched without their query.
    Query,
    /// A `*` stands before the end.
    Star,
    /// A segment has parameters, which take no part in matching.
    Parameters,
    /// The path has no canonical form.
    Path(PathError),
    /// The path has another spelling, which is the canonical one.
    Spelling(String),
}

impl WrittenError {
    /// The message: what is wrong, and that `allowed` may be written.
    pub fn instead(&self, allowed: &str) -> String {
        let reason = match self {
            Self::Spelling(canonical) => {
                return format!("is not in canonical form; write {canonical}");
            }
            Self::Query => "holds a query or fragment",
            Self::Parameters => "holds a `;`, which takes no part in matching",
            Self::Star => "holds a `*` before its end",
            Self::Path(PathError::NotAbsolute) => "does not start with `/`",
            Self::Path(PathError::RawByte) => "holds a character that must be percent-encoded",
            Self::Path(PathError::BrokenEscape) => "holds a `%` without two hex digits",
            Self::Path(PathError::ForbiddenEscape) => {
                "holds an encoded slash, backslash, NUL or invalid byte"
            }
            Self::Path(PathError::DotSegment) => "holds a dot segment",
        };
        format!("{reason}; write {allowed}")
    }
}

/// Checks that `path` is in the form that the paths of requests are brought into before they are matched.
///
/// # Errors
/// [`WrittenError`] where `path` has another form or none.
pub fn check_path(path: &str) -> Result<(), WrittenError> {
    if path.contains(['?', '#']) {
        return Err(WrittenError::Query);
    }
    match CanonicalPath::parse(path) {
        Ok(canonical) if canonical.as_str() != path => {
            Err(WrittenError::Spelling(canonical.as_str().to_owned()))
        }
        Ok(_) if has_parameters(path) => Err(WrittenError::Parameters),
        Ok(_) => Ok(()),
        Err(error) => Err(WrittenError::Path(error)),
    }
}

/// Checks a pattern of permitted paths: a path, a path with `*` at its end, or `*`.
///
/// # Errors
/// [`WrittenError`] where the pattern would match nothing.
pub fn check_pattern(pattern: &str) -> Result<(), WrittenError> {
    let path = pattern.strip_suffix('*').unwrap_or(pattern);
    if pattern != "*" {
        check_path(path)?;
    }
    match path.contains('*') {
        true => Err(WrittenError::Star),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_written_as_requests_arrive() {
        for text in ["*", "/*", "/api/v1/users/*", "/api/v1/users*", "/api/v1/users", "/a/"] {
            assert_eq!(check_pattern(text), Ok(()), "{text}");
        }
        for text in [
            "", "**", "/a/*/b", "api/*", "/a/../b", "/a//b", "/a b", "/%61pi", "/a?b", "/a%2fb",
            "/a%", "/a#", "/a/.*", "/\u{e9}", "/a;v=1", "/a%3B", "/{id}", "/a[",
        ] {
            assert!(check_pattern(text).is_err(), "{text}");
        }
        let spelled = check_pattern("/%61pi").unwrap_err().instead(PATTERN);
        assert_eq!(spelled, "is not in canonical form; write /api");
    }
}
