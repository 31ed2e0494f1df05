//! Finds the end of a chunked body (RFC 9112 section 7.1), strictly.
//!
//! Pingora decodes the body. This file only finds its end, and refuses framing that another server might
//! read differently: empty or signed sizes, bare line feeds, extensions of any length.

/// Longest chunk extension, in bytes.
const MAX_EXTENSION: usize = 256;

/// Longest trailer section, in bytes.
const MAX_TRAILERS: usize = 8 * 1024;

/// The framing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub struct ChunkError;

/// Follows a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkedBody {
    state: State,
    /// Bytes read of the present extension, or of the trailer section.
    spent: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
        size: u64,
    },
    /// White space before the `;` of an extension.
    BeforeExtension {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
    Broken,
}

impl Default for ChunkedBody {
    fn default() -> Self {
        Self { state: State::Size { digits: 0, size: 0 }, spent: 0 }
    }
}

impl ChunkedBody {
    /// Whether the body was read to its end.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many of `bytes` belong to the body: all, or fewer when the body ends among them.
    ///
    /// # Errors
    /// [`ChunkError`] at the first byte that may not stand where it stands.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let State::Data { left } = self.state {
                let step = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += step;
                let left = left - step as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                // An error is final: a second call would go on in the middle of a chunk.
                let next = self.step(bytes[at]).inspect_err(|_| self.state = State::Broken)?;
                self.state = next;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { digits, size }, digit) if digit.is_ascii_hexdigit() && digits < 15 => {
                let value = char::from(digit).to_digit(16).unwrap_or_default();
                State::Size { digits: digits + 1, size: size << 4 | u64::from(value) }
            }
            (State::Size { digits: 1.., size }, b'\r') => State::SizeLf { size },
            (State::Size { digits: 1.., size }, b' ' | b'\t') => {
                self.spent = 0;
                State::BeforeExtension { size }
            }
            (State::BeforeExtension { size }, b' ' | b'\t') => {
                self.spend(MAX_EXTENSION)?;
                State::BeforeExtension { size }
            }
            (State::Size { digits: 1.., size } | State::BeforeExtension { size }, b';') => {
                self.spent = 0;
                State::Extension { size }
            }
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, b'\t' | b' '..=b'~') => {
                self.spend(MAX_EXTENSION)?;
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => {
                self.spent = 0;
                State::TrailerStart
            }
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, b'!'..=b'~') | (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => {
                self.spend(MAX_TRAILERS)?;
                State::Trailer
            }
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(ChunkError),
        })
    }

    fn spend(&mut self, bound: usize) -> Result<(), ChunkError> {
        self.spent += 1;
        if self.spent > bound { Err(ChunkError) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_where_it_ends_in_any_pieces() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "1;x=\"y\"\r\na\r\n00A\r\n0123456789\r\n0\r\nT: v\r\n\r\n",
            "1 ; x = y\r\na\r\n1\t;\tx\r\nb\r\n0  ;x; y\r\n\r\n",
        ] {
            let bytes = [body.as_bytes(), b"GET /"].concat();
            for cut in 0..body.len() {
                let mut chunks = ChunkedBody::default();
                assert_eq!(chunks.pass(&bytes[..cut]), Ok(cut));
                assert!(!chunks.is_done());
                assert_eq!(chunks.pass(&bytes[cut..]), Ok(body.len() - cut));
                assert!(chunks.is_done());
            }
        }
    }

    #[test]
    fn broken_framing_stays_broken() {
        let mut chunks = ChunkedBody::default();
        for bytes in ["1\r\na\r\n1g", "1\r\na\r\n0\r\n\r\n"] {
            assert_eq!(chunks.pass(bytes.as_bytes()), Err(ChunkError), "{bytes:?}");
        }
        assert!(!chunks.is_done());
    }

    #[test]
    fn broken_framing_is_refused() {
        let extension = format!("1;{}\r\n", "x".repeat(MAX_EXTENSION + 1));
        let spaces = format!("1{};x\r\n", " ".repeat(MAX_EXTENSION + 2));
        let trailers = format!("0\r\n{}", "T: v\r\n".repeat(MAX_TRAILERS));
        for bad in [
            "\r\n",
            "g\r\n",
            "+1\r\na",
            "-1\r\n",
            " 1\r\na",
            "1 \r\na",
            "1 a;x\r\n",
            "1 \n;x\r\n",
            " ;x\r\n",
            ";x\r\n",
            "0x1\r\na",
            "1\na",
            "1\r\nab",
            "1\r\na\n",
            "5\r\nhello\r\n\r\n",
            "fffffffffffffffff\r\n",
            "1;\n\r\na",
            "0\r\nT: v\n\r\n",
            "0\r\n\n",
            "0\r\n folded\r\n",
            &extension,
            &spaces,
            &trailers,
        ] {
            assert_eq!(ChunkedBody::default().pass(bad.as_bytes()), Err(ChunkError), "{bad:?}");
        }
    }
}
