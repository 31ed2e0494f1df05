//! Notices that a client has left while the upstream takes no more of its upload.
//!
//! Pingora reads no more bytes of a client then, so it would learn of the end only after its write timeout. This file
//! watches the client's socket without reading, and ends the connection to the upstream. It must not know requests.

use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How a client has closed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It sends no more bytes than these, which wait in the kernel. It may still read.
    Sending {
        /// How many bytes wait.
        waiting: u64,
    },
    /// It has left, or the connection is broken.
    Whole,
}

/// An upload whose client may leave.
pub struct StalledUpload {
    closed: Option<Pin<Box<dyn Future<Output = Closed> + Send>>>,
    upstream: OwnedFd,
}

impl StalledUpload {
    /// Watches the socket `client`, whose upload goes to the socket `upstream`. Both must be open.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn new(client: RawFd, upstream: RawFd) -> io::Result<Self> {
        let client = TcpStream::from_std(duplicate(client)?.into())?;
        Ok(Self { closed: Some(Box::pin(closed(client))), upstream: duplicate(upstream)? })
    }

    /// Waits until the client closes, and tells it once.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let Some(waiting) = &mut self.closed else { return Poll::Pending };
        let closed = std::task::ready!(waiting.as_mut().poll(cx));
        self.closed = None;
        Poll::Ready(closed)
    }

    /// Ends the connection to the upstream, so that Pingora's write fails.
    pub fn stop(&self) {
        // An error means that it has ended already.
        let _ = rustix::net::shutdown(&self.upstream, Shutdown::Both);
    }
}

/// A descriptor of its own for the socket of an open `fd`.
#[expect(unsafe_code, reason = "Pingora gives sockets as numbers")]
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller's connection is open, so that nothing closes `fd` during this call.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

async fn closed(client: TcpStream) -> Closed {
    // PRIORITY wakes when the client closes, and not for each byte that arrives. No client sends urgent data.
    let closing = Interest::PRIORITY | Interest::ERROR;
    match client.ready(closing).await {
        Ok(ready) if ready.is_read_closed() && !ready.is_error() && !ready.is_write_closed() => {
            let waiting = rustix::io::ioctl_fionread(&client).unwrap_or(0);
            Closed::Sending { waiting }
        }
        _ => Closed::Whole,
    }
}
