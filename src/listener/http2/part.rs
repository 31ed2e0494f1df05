//! Parts of answers on their way from h2 to a client. h2 does not tell when it has sent a part, but it reads the bytes of
//! the part then, and drops it. This file must not know requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

use super::stream::Shared;

/// The parts of one answer that h2 has not sent yet.
#[derive(Debug)]
pub struct Unsent {
    parts: AtomicUsize,
    waker: AtomicWaker,
    shared: Arc<Shared>,
}

impl Unsent {
    /// None yet, of an answer on the connection of `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { parts: AtomicUsize::new(0), waker: AtomicWaker::new(), shared }
    }

    /// Waits until the client has taken all parts, or will not.
    pub fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        match self.parts.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

/// A part of an answer.
#[derive(Debug)]
pub struct Part {
    bytes: Bytes,
    /// `None` for a part that nobody waits for.
    unsent: Option<Arc<Unsent>>,
}

impl Part {
    /// A part that belongs to `unsent`.
    pub fn of(bytes: Bytes, unsent: &Arc<Unsent>) -> Self {
        unsent.parts.fetch_add(1, Ordering::Relaxed);
        Self { bytes, unsent: Some(Arc::clone(unsent)) }
    }
}

impl From<Bytes> for Part {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, unsent: None }
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(unsent) = &self.unsent {
            unsent.shared.client_takes();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(unsent) = &self.unsent
            && unsent.parts.fetch_sub(1, Ordering::AcqRel) == 1
        {
            unsent.waker.wake();
        }
    }
}
