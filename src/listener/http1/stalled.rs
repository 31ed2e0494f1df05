//! Notices that a client has left while the upstream takes no more of its upload.
//!
//! Pingora reads no more bytes of a client then, so it would learn of the end only after its write timeout. This file
//! watches the client's socket without reading. It must not know requests.

use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::base::descriptor::duplicate;

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

/// A client that may leave during an upload.
pub struct Leaving(Option<Closing>);

impl Leaving {
    /// Watches the open socket `client`.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn new(client: RawFd) -> io::Result<Self> {
        let client = TcpStream::from_std(duplicate(client)?.into())?;
        let closing = Interest::PRIORITY | Interest::ERROR;
        let closing: Closing = Box::pin(closed(client, closing));
        Ok(Self(Some(closing)))
    }

    /// Waits until the client closes: first for sending, and then for good.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let Some(waiting) = &mut self.0 else { return Poll::Pending };
        let (client, closed_now) = ready!(waiting.as_mut().poll(cx));
        self.0 = match closed_now {
            Closed::Sending { .. } => Some(Box::pin(closed(client, Interest::ERROR))),
            Closed::Whole => None,
        };
        Poll::Ready(closed_now)
    }
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
