//! Waits for answers up to a deadline. A process that is busy with other work reads an answer late, which is no fault of
//! the server: such a wait is told apart, and is granted its time once more. This file knows no server, only futures and
//! time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use fred::error::Error;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::{held_up, timed_out};

/// How late an event loop is that is not busy, at most.
const PUNCTUAL: Duration = Duration::from_millis(3);

/// Waits for `answer` until `deadline`. Where this process was too busy to read an answer in time, the wait is granted the
/// same time once more. `connection` is the runtime that reads the answers; `None` where that is this one.
pub(super) async fn answer_by<T>(
    deadline: Instant,
    connection: Option<&Handle>,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut answer = pin!(answer);
    let whole = deadline.saturating_duration_since(Instant::now());
    let mut due = deadline;
    for may_extend in [true, false] {
        if let Ok(answer) = timeout_at(due, answer.as_mut()).await {
            return answer;
        }
        let lateness = lateness(due, connection, whole).await;
        // The answer may have been read in the turns of the event loops that have just passed.
        if let Poll::Ready(answer) = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await {
            return answer;
        }
        if lateness < PUNCTUAL {
            return Err(timed_out());
        }
        if may_extend {
            due = Instant::now() + whole;
        }
    }
    Err(held_up())
}

/// How late the event loops are, of this task and of the connection, after a timer that was `due`. It takes `most` at most.
async fn lateness(due: Instant, connection: Option<&Handle>, most: Duration) -> Duration {
    let now = Instant::now();
    let own = now.saturating_duration_since(due);
    yield_now().await;
    let Some(connection) = connection else { return own };
    // Both halves of the turn: the loop runs its tasks, then looks at its sockets, then runs this task again.
    let _ = timeout(most, connection.spawn(yield_now())).await;
    own.max(now.elapsed())
}
#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::store::redis::errors::Cause;

    async fn outcome(answer: impl Future<Output = Result<u8, Error>>) -> Result<u8, Cause> {
        let deadline = Instant::now() + Duration::from_millis(40);
        answer_by(deadline, None, answer).await.map_err(|error| Cause::of(&error))
    }

    #[tokio::test]
    async fn an_attentive_process_waits_to_the_deadline() {
        let started = Instant::now();
        assert_eq!(outcome(pending()).await, Err(Cause::TimedOut));
        assert!(started.elapsed() >= Duration::from_millis(40));
        let soon = async {
            tokio::time::sleep(Duration::from_millis(15)).await;
            Ok(7)
        };
        assert_eq!(outcome(soon).await, Ok(7));
    }

    #[tokio::test]
    async fn a_busy_process_does_not_blame_the_server() {
        // Each turn of the event loop takes longer than a part of the wait.
        let busy = tokio::spawn(async {
            loop {
                std::thread::sleep(Duration::from_millis(25));
                yield_now().await;
            }
        });
        assert_eq!(outcome(pending()).await, Err(Cause::HeldUp));
        // An answer that comes while the process is busy is read after the deadline.
        let (sender, answer) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = sender.send(7);
        });
        assert_eq!(outcome(async { Ok(answer.await.unwrap()) }).await, Ok(7));
        busy.abort();
    }

    #[tokio::test]
    async fn a_busy_thread_of_the_connection_does_not_blame_the_server() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let connection = runtime.handle().clone();
        let ask = async || {
            let deadline = Instant::now() + Duration::from_millis(40);
            let answer = answer_by(deadline, Some(&connection), pending::<Result<u8, Error>>());
            answer.await.map_err(|error| Cause::of(&error))
        };
        assert_eq!(ask().await, Err(Cause::TimedOut));
        let busy = connection.spawn(async {
            loop {
                std::thread::sleep(Duration::from_millis(25));
                yield_now().await;
            }
        });
        assert_eq!(ask().await, Err(Cause::HeldUp));
        busy.abort();
        runtime.shutdown_background();
    }
}
