//! The credential of a request, told apart by its form. Where it stands in the request is known in
//! [`sources`](super::sources) alone.

use memchr::memchr_iter;

use crate::record::key::MAX_KEY;

/// Longest credential that is looked at, in bytes.
pub const MAX_CREDENTIAL: usize = MAX_KEY;

/// A credential as it was sent, not yet verified. It cannot be printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// Three parts with dots between them.
    Jwt(&'a str),
    /// Anything else.
    Opaque(&'a str),
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jwt(_) => "Jwt(***)",
            Self::Opaque(_) => "Opaque(***)",
        })
    }
}

/// Why the credential fields of a request cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The request holds different credentials.
    #[error("two different credentials")]
    Ambiguous,
    /// `Authorization` has no scheme that ends with a space.
    #[error("malformed Authorization field")]
    Field,
    /// The credential is empty, too long, or holds bytes that no credential has.
    #[error("malformed credential")]
    Malformed,
}

impl<'a> Credential<'a> {
    /// Reads the credential itself.
    ///
    /// # Errors
    /// [`CredentialError::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CredentialError> {
        // A loop that does not stop at the first fault reads many bytes at a time.
        let visible =
            bytes.iter().fold(true, |visible, byte| visible & (0x21..=0x7e).contains(byte));
        if bytes.is_empty() || bytes.len() > MAX_CREDENTIAL || !visible {
            return Err(CredentialError::Malformed);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| CredentialError::Malformed)?;
        Ok(if memchr_iter(b'.', bytes).count() == 2 { Self::Jwt(text) } else { Self::Opaque(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_told_apart_or_refused() {
        let long = "x".repeat(MAX_CREDENTIAL + 1);
        for (text, expected) in [
            ("a.b.c", Ok(Credential::Jwt("a.b.c"))),
            ("abc", Ok(Credential::Opaque("abc"))),
            ("a.b", Ok(Credential::Opaque("a.b"))),
            ("", Err(CredentialError::Malformed)),
            ("a b", Err(CredentialError::Malformed)),
            ("a\u{e9}", Err(CredentialError::Malformed)),
            (&long, Err(CredentialError::Malformed)),
        ] {
            assert_eq!(Credential::parse(text.as_bytes()), expected, "{text}");
        }
    }
}
