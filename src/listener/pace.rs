//! Whether a client keeps up with its request: whether it owes a part of the body, and how long its answer has waited for
//! it. An upstream that gives such a client up is not at fault.
//!
//! State alone, which the client's streams keep. A client that keeps up costs no look at the clock.

use std::time::{Duration, Instant};

/// A client that lets its answer wait for longer than this, in sum, may be the reason that the answer ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a client keeps up with its request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    owes_body: bool,
    /// Since when the answer waits for the client.
    waits_since: Option<Instant>,
    /// How long it has waited before.
    waited: Duration,
}

impl Pace {
    /// The body was asked for, and has `arrived` or not.
    pub fn reads(&mut self, arrived: bool) {
        self.owes_body = !arrived;
    }

    /// A part of the answer was `taken`, or waits.
    pub fn writes(&mut self, taken: bool) {
        match (taken, self.waits_since) {
            (true, Some(since)) => {
                self.waits_since = None;
                self.waited += since.elapsed();
            }
            (false, None) => self.waits_since = Some(Instant::now()),
            _ => {}
        }
    }

    /// Whether the gateway waits for a part of the body.
    pub fn owes_body(&self) -> bool {
        self.owes_body
    }

    /// Whether the answer has waited for the client.
    pub fn is_behind(&self) -> bool {
        let waits = self.waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.waited + waits >= PATIENCE
    }
}
