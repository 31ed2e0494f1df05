//! Notices that a client has left while the upstream takes no more of its upload.
//!
//! Pingora reads no more bytes of a client then, so it would learn of the end only after its write timeout. This file
//! watches the client's socket without reading, and ends the connection to the upstream. It must not know requests.

use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How many bytes that wait in the kernel are looked at for the end of a body.
const LOOKED_AT: usize = 64 * 1024;

/// How a client has closed its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It sends no more than the bytes that wait in the kernel. It may still read.
    Sending {
        /// How many bytes wait.
        number: u64,
        /// The bytes; `None` where there are too many to look at.
        bytes: Option<Vec<u8>>,
    },
    /// It has left, or the connection is broken.
    Whole,
}

/// Waits for the client to close.
type Closing = Pin<Box<dyn Future<Output = (TcpStream, Closed)> + Send>>;

/// An upload whose client may leave.
pub struct StalledUpload {
    /// The number under which the upload was announced.
    pub number: u64,
    closing: Option<Closing>,
    upstream: OwnedFd,
}

impl StalledUpload {
    /// Watches the socket `client`, whose upload goes to the socket `upstream`. Both must be open.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn new(number: u64, client: RawFd, upstream: RawFd) -> io::Result<Self> {
        let client = TcpStream::from_std(duplicate(client)?.into())?;
        let closing = Interest::PRIORITY | Interest::ERROR;
        let closing: Closing = Box::pin(closed(client, closing));
        Ok(Self { number, closing: Some(closing), upstream: duplicate(upstream)? })
    }

    /// Waits until the client closes: first for sending, and then for good.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let Some(waiting) = &mut self.closing else { return Poll::Pending };
        let (client, closed_now) = ready!(waiting.as_mut().poll(cx));
        self.closing = match closed_now {
            Closed::Sending { .. } => Some(Box::pin(closed(client, Interest::ERROR))),
            Closed::Whole => None,
        };
        Poll::Ready(closed_now)
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

/// Waits for one of `signs` that the client closes. `PRIORITY` is one, because it wakes when the client closes and not for
/// each byte that arrives, and no client sends urgent data.
async fn closed(client: TcpStream, signs: Interest) -> (TcpStream, Closed) {
    let closed = match client.ready(signs).await {
        Ok(ready) if ready.is_read_closed() && !ready.is_error() && !ready.is_write_closed() => {
            let number = rustix::io::ioctl_fionread(&client).unwrap_or(u64::MAX);
            Closed::Sending { number, bytes: waiting(&client, number) }
        }
        _ => Closed::Whole,
    };
    (client, closed)
}

/// The bytes that wait in the kernel, so many; `None` where there are too many.
fn waiting(client: &TcpStream, number: u64) -> Option<Vec<u8>> {
    let number = usize::try_from(number).ok()?;
    if number == 0 {
        return Some(Vec::new());
    }
    let mut bytes = vec![0; (number <= LOOKED_AT).then_some(number)?];
    let (read, _) = rustix::net::recv(client, &mut bytes[..], RecvFlags::PEEK).ok()?;
    bytes.truncate(read);
    Some(bytes)
}
