//! The one timer of a client connection.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that outlives what it limits, because registering a timer for each wait is dear. It is only
/// moved when it goes off too early or would go off too late, so that a request in time, which is nearly
/// every request, moves none.
pub struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    /// A timer that is expected to be needed after `limit`.
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
            // A future that is ready at once, as a head nearly always is, needs no look at the clock.
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
