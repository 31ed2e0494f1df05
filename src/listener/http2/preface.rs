//! Finds out whether a client speaks HTTP/2 (RFC 9113 section 3.4): by prior knowledge, without a word in TLS. This file
//! must not know either protocol beyond the preface.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::timeout;

use crate::config::ClientTimeouts;
use crate::listener::connection::Connection;
use crate::listener::http1::FIRST;

/// The bytes with which a client begins HTTP/2. They are no request of HTTP/1.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many bytes are read at a time.
const READ_SIZE: usize = 4 * 1024;

/// Whether the client of `connection` begins with the preface of HTTP/2. The bytes that were read stay in the connection's
/// buffer. `None` when the client has closed, or has sent nothing for too long.
pub async fn is_http2(
    connection: &mut Connection,
    timeouts: ClientTimeouts,
    shutdown: &ShutdownWatch,
) -> Option<bool> {
    let mut shutdown = shutdown.clone();
    let first = tokio::select! {
        biased;
        first = timeout(timeouts.idle, read_more(connection)) => Some(first),
        _ = shutdown.wait_for(|down| *down) => None,
    };
    let first = match first {
        Some(first) => first,
        // The client connected in time, and its first bytes may be on their way.
        None => timeout(FIRST, read_more(connection)).await,
    };
    if !matches!(first, Ok(Ok(1..))) {
        return None;
    }
    let rest = async {
        loop {
            if let Some(begins) = begins_with_preface(&connection.ahead) {
                return Some(begins);
            }
            if !matches!(read_more(connection).await, Ok(1..)) {
                return None;
            }
        }
    };
    timeout(timeouts.header, rest).await.ok().flatten()
}

/// Whether `bytes` begin with the preface; `None` when more bytes must tell.
fn begins_with_preface(bytes: &[u8]) -> Option<bool> {
    let length = bytes.len().min(PREFACE.len());
    match bytes[..length] == PREFACE[..length] {
        true if length < PREFACE.len() => None,
        begins => Some(begins),
    }
}

/// Reads bytes that have arrived. They are read onto the stack first, so that a connection that waits for bytes needs no
/// room for them.
async fn read_more(connection: &mut Connection) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut room = [0; READ_SIZE];
        let mut read = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut connection.bytes).poll_read(cx, &mut read))?;
        connection.ahead.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_other_byte_decides() {
        for end in 0..PREFACE.len() {
            assert_eq!(begins_with_preface(&PREFACE[..end]), None);
            let mut other = PREFACE[..=end].to_vec();
            other[end] ^= 1;
            assert_eq!(begins_with_preface(&other), Some(false));
        }
        assert_eq!(begins_with_preface(PREFACE), Some(true));
        assert_eq!(begins_with_preface(&[PREFACE, b"more"].concat()), Some(true));
        assert_eq!(begins_with_preface(b"PRI / HTTP/1.1\r\n"), Some(false));
    }
}
