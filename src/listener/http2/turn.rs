//! How much a task reads of an answer in one turn.
//!
//! Pingora's two halves of a request are one task: the half that reads goes on in the same turn in which the other half
//! finds that the client takes nothing. tokio stops a task when its budget is used up: no socket and no channel is ready
//! then, and the task gets another turn.

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
