//! Gives memory back to the system after a flood.
//!
//! The allocator returns what a thread has freed while that thread allocates. A gateway that has gone idle after
//! ten thousand connections would keep their memory until the next requests.

use std::hint::black_box;
use std::time::Duration;

use tokio::time::sleep;

/// How often the allocator gets the occasion.
const PERIOD: Duration = Duration::from_secs(5);

/// The size of the allocation: so large that no cached block serves.
const BYTES: usize = 1 << 20;

/// Allocates and frees now and then, for ever, on the runtime that serves requests.
pub async fn give_back() {
    loop {
        sleep(PERIOD).await;
        drop(black_box(Vec::<u8>::with_capacity(BYTES)));
    }
}
