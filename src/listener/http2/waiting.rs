//! Which answers of a connection wait for their client, and when the requests of these answers must rest.
//!
//! Pingora reads an answer on while the answer waits for the client: up to 600 KiB, in pieces of 64 KiB, without a way to
//! say less. So no work is done on a request whose answer waits while too many answers of the connection wait. The bytes
//! that its upstream sends stay in the system's buffers then, and hold the upstream back. This file must not know frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers of one connection that may wait while the gateway reads each of them on. Clients that take several large
/// answers at once are served as fast as before: a request that rests goes on as soon as its client takes bytes.
const READ_ON: usize = 8;

/// The number of answers of a connection that wait for their client.
#[derive(Debug, Default)]
pub struct Waiting(AtomicUsize);

impl Waiting {
    /// Whether so many answers wait that their requests must rest.
    pub fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) > READ_ON
    }
}

/// An answer that waits for its client, until this is dropped.
#[derive(Debug)]
pub struct WaitingAnswer(Arc<Waiting>);

impl WaitingAnswer {
    /// An answer begins to wait.
    pub fn begin(waiting: &Arc<Waiting>) -> Self {
        waiting.0.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for WaitingAnswer {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
