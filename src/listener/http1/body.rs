//! Where the body of a request ends (RFC 9112 section 6.3).

use super::chunks::{ChunkError, ChunkedBody};

/// The part of a request's body that has not been read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes; 0 for no body.
    Bytes(u64),
    /// The rest of a chunked body.
    Chunked(ChunkedBody),
    /// Every byte until the connection ends: the request asks for an upgrade, after which the connection is
    /// a tunnel.
    Everything,
}

impl Body {
    /// No body, or a body that was read to its end.
    pub const OVER: Self = Self::Bytes(0);

    /// How many of `bytes`, the next on the connection, belong to the body. These count as read.
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

    /// Whether the body was read to its end.
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
    fn bytes_after_a_body_do_not_belong_to_it() {
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
