//! The timers of a client connection.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is kept over many waits, because registering a timer for each wait is expensive. The timer
/// is moved only when it goes off before the deadline of the present wait, or would go off after it. Nearly
/// every request ends before its deadline, and moves no timer.
pub struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    /// A timer that is set to `limit` from now.
    pub fn new(limit: Duration) -> Self {
        Self(Box::pin(sleep_until(Instant::now() + limit)))
    }

    /// Waits for `future`; `None` when it is not ready within `limit`.
    pub async fn within<F: Future>(&mut self, limit: Duration, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut deadline = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            // The clock is read only when the future is not ready at once. A head nearly always is.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
            if self.0.deadline() > deadline {
                self.0.as_mut().reset(deadline);
            }
            while self.0.as_mut().poll(cx).is_ready() {
                if self.0.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                self.0.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether `due` has passed. The timer is moved only when it would be late, or has been early.
pub fn poll_deadline(
    timer: &mut Option<Pin<Box<Sleep>>>,
    due: Instant,
    cx: &mut Context<'_>,
) -> bool {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
    if timer.deadline() > due {
        timer.as_mut().reset(due);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if timer.deadline() >= due {
            return true;
        }
        timer.as_mut().reset(due);
    }
    false
}
