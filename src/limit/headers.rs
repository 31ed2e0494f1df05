//! Which header fields tell a client how its limits stand. How the fields are written is not known here.

/// The rate fields that answers carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateHeaders {
    /// `RateLimit-Policy` and `RateLimit`.
    Standard,
    /// `X-RateLimit-*`.
    Legacy,
    /// Standard and legacy.
    Both,
    /// Neither.
    None,
}
