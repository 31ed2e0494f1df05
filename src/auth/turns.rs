//! Takes turns at verifying signatures, so that many tokens at once do not keep a thread from its sockets.
//!
//! A signature of a public key takes up to a millisecond. Without turns, a thread would verify one token after another
//! for as long as new tokens arrive, and read the answers of the store too late. This file knows no tokens.

use std::num::NonZero;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// The turns. Waiting requests are served in order of arrival.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    /// A turn at a time for each core.
    fn default() -> Self {
        Self(Semaphore::new(available_parallelism().map_or(1, NonZero::get)))
    }
}

impl Turns {
    /// Runs `work` when its turn has come.
    pub(super) async fn take<T>(&self, work: impl FnOnce() -> T) -> T {
        // The semaphore is never closed.
        let turn = self.0.acquire().await;
        let done = work();
        // The thread looks at its sockets before the next turn begins.
        yield_now().await;
        drop(turn);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinSet;

    use super::*;

    /// How long an echo takes at most while many tasks work for two milliseconds each.
    async fn slowest_echo(turns: Option<&'static Turns>) -> Duration {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut works = JoinSet::new();
        for _ in 0..200 {
            let work = || std::thread::sleep(Duration::from_millis(2));
            works.spawn(async move {
                match turns {
                    Some(turns) => turns.take(work).await,
                    None => work(),
                }
            });
        }
        let mut slowest = Duration::ZERO;
        while !works.is_empty() {
            let started = Instant::now();
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
            slowest = slowest.max(started.elapsed());
            while works.try_join_next().is_some() {}
        }
        slowest
    }

    #[tokio::test]
    async fn sockets_are_read_between_turns() {
        let turns: &'static Turns = Box::leak(Box::default());
        let (with, without) = (slowest_echo(Some(turns)).await, slowest_echo(None).await);
        assert!(with * 3 < without, "{with:?} with turns, {without:?} without");
    }
}
