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

/// How much a task reads of an answer in one turn.
///
/// Pingora's two halves of a request are one task: the half that reads goes on in the same turn in which the other half
/// finds that the client takes nothing. tokio stops a task when its budget is used up: no socket and no channel is ready
/// then, and the task gets another turn.
pub mod turn {
    use futures_util::FutureExt as _;
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    /// The budget with which tokio begins a turn.
    const WHOLE: usize = 128;

    /// The budget of a short turn: one piece of an answer is read and passed on.
    const SHORT: usize = 4;

    /// Makes this turn a short one. It must have begun just now.
    pub fn shorten() {
        for _ in SHORT..WHOLE {
            let _ = consume_budget().now_or_never();
        }
    }

    /// Ends this turn.
    pub fn end() {
        while has_budget_remaining() && consume_budget().now_or_never().is_some() {}
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[tokio::test]
        async fn a_short_turn_is_a_turn() {
            // A task of its own begins with a whole budget.
            let left = tokio::spawn(async {
                shorten();
                let mut left = 0;
                while has_budget_remaining() {
                    let _ = consume_budget().now_or_never();
                    left += 1;
                }
                left
            });
            assert_eq!(left.await.unwrap(), SHORT, "without budget, the task would never go on");
            let is_over = tokio::spawn(async {
                end();
                !has_budget_remaining()
            });
            assert!(is_over.await.unwrap());
        }
    }
}
