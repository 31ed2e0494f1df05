//! The promises of every store, a file for each group of traits. The suites are run against memory and against a real
//! Redis, and must not know either.

pub mod membership;
pub mod records;

use std::time::{Duration, Instant};

/// How long a condition may take to come true.
pub const WAIT: Duration = Duration::from_secs(15);

/// Waits until `holds`.
pub async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    while !holds().await {
        assert!(started.elapsed() < WAIT, "in vain: {what}");
        pause.tick().await;
    }
}
