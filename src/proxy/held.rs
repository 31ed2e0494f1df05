//! Holds the head of an upgrade request back until Pingora waits for the answer.
//!
//! Pingora hands the empty body of such a request on beside the head. If the upstream answers 101 before Pingora has looked
//! at that body, Pingora takes the end of the body for the end of the tunnel. The kernel holds the head's bytes back, so
//! that no upstream is that fast. This file must not know what a tunnel carries.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::net::sockopt::set_tcp_cork;

use crate::base::descriptor::duplicate;
use crate::base::task::detach;

/// The socket of an upstream that sends no more than full packets. The kernel sends what it holds after 200 ms at the
/// latest.
#[derive(Debug)]
pub struct HeldSocket(OwnedFd);

impl HeldSocket {
    /// Holds back what is written to `upstream`, the socket of an open connection.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors or when the socket is none of TCP.
    pub fn hold(upstream: RawFd) -> io::Result<Self> {
        let socket = duplicate(upstream)?;
        set_tcp_cork(&socket, true)?;
        Ok(Self(socket))
    }

    /// Sends what was held back, once the present task waits. Each worker has one thread, so that another task runs only
    /// then.
    pub fn release(self) {
        detach(async move {
            // An error means that the connection has ended.
            let _ = set_tcp_cork(&self.0, false);
        });
    }
}
