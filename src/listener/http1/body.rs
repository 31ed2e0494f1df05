//! How far one request reaches after its head (RFC 9112 section 6.3).

use super::chunks::{ChunkError, ChunkedBody};

/// What of a request's body has not passed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0 for no body.
    Bytes(u64),
    /// The rest of a chunked body.
    Chunked(ChunkedBody),
    /// Everything that comes: the connection may become a tunnel, should the upgrade that was asked for
    /// happen.
    Everything,
}

impl Body {
    /// No body, or one that has passed.
    pub const OVER: Self = Self::Bytes(0);

    /// How many of `bytes`, which come next on the connection, belong to the request. They count as passed.
    ///
    /// # Errors
    /// [`ChunkError`] at a byte that may not stand where it stands.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        match self {
            Self::Everything => Ok(bytes.len()),
            Self::Bytes(left) => {
                let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= passed as u64;
                Ok(passed)
            }
            Self::Chunked(body) => body.pass(bytes),
        }
    }

    /// Whether all of the body has passed.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Everything => false,
            Self::Bytes(left) => *left == 0,
            Self::Chunked(body) => body.is_done(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_body_does_not_belong_to_it() {
        let next = b"GET / HTTP/1.1\r\n";
        for (mut body, bytes) in [
            (Body::OVER, &b""[..]),
            (Body::Bytes(3), b"abc"),
            (Body::Chunked(ChunkedBody::default()), b"3\r\nabc\r\n0\r\n\r\n"),
        ] {
            assert_eq!(body.is_over(), bytes.is_empty());
            assert_eq!(body.pass(&[bytes, next].concat()), Ok(bytes.len()));
            assert!(body.is_over());
            assert_eq!(body.pass(next), Ok(0));
        }
        let mut tunnel = Body::Everything;
        assert_eq!(tunnel.pass(next), Ok(next.len()));
        assert!(!tunnel.is_over());
    }
}
