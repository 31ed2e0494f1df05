//! Waits for answers up to a deadline that counts only time in which this process could have read an answer.
//!
//! A process that is busy with other work reads an answer late, which is no fault of the server. This file knows no
//! server, only futures and time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use fred::error::Error;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::{held_up, timed_out};

/// The parts of a wait. This process was busy in a part whose timer fires late.
const PARTS: u32 = 4;

/// How late a timer fires in a process that is not busy, at most.
const PUNCTUAL: Duration = Duration::from_millis(3);

/// Waits for `answer` until `deadline`. Time in which this thread was busy is waited for again, up to twice the whole time.
/// `connection` is the runtime that reads the answers; `None` where that is this one.
pub(super) async fn answer_by<T>(
    deadline: Instant,
    connection: Option<&Handle>,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut answer = pin!(answer);
    let whole = deadline.saturating_duration_since(Instant::now());
    let (part, latest) = (whole / PARTS, deadline + whole);
    let mut parts_left = PARTS;
    loop {
        let end = Instant::now() + part;
        if let Ok(answer) = timeout_at(end, answer.as_mut()).await {
            return answer;
        }
        let now = Instant::now();
        if now.saturating_duration_since(end) < PUNCTUAL {
            parts_left -= 1;
        }
        if parts_left > 0 && now < latest {
            continue;
        }
        let is_busy = parts_left > 0 || is_busy(connection, part).await;
        // The answer may have been read in this very turn of the event loop.
        yield_now().await;
        let last = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
        return match last {
            Poll::Ready(answer) => answer,
            Poll::Pending if is_busy => Err(held_up()),
            Poll::Pending => Err(timed_out()),
        };
    }
}

/// Whether the event loop of `connection` finishes no turn within `most`.
async fn is_busy(connection: Option<&Handle>, most: Duration) -> bool {
    match connection {
        Some(connection) => timeout(most, connection.spawn(yield_now())).await.is_err(),
        None => false,
    }
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
