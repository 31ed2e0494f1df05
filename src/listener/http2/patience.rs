//! How long a client may take for one frame, or for the frames of one head. This file must not know what is in them.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::listener::timer::poll_deadline;

/// The wait for the rest of a frame.
#[derive(Debug, Default)]
pub struct Patience {
    /// The number of the frame, and when it must be whole.
    frame: Option<(u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Whether the frame that the connection `awaits` has taken longer than `limit`; `None` while it waits for no rest of a
    /// frame. Bytes that arrive do not make the time longer. The task of `cx` is woken at the time. After the time, the
    /// frame gets as long again.
    pub fn is_over(
        &mut self,
        awaits: Option<u32>,
        limit: impl FnOnce() -> Duration,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(awaited) = awaits else {
            self.frame = None;
            return false;
        };
        let due = match self.frame {
            Some((frame, due)) if frame == awaited => due,
            _ => Instant::now() + limit(),
        };
        self.frame = Some((awaited, due));
        let is_over = poll_deadline(&mut self.timer, due, cx);
        if is_over {
            (self.frame, self.timer) = (None, None);
        }
        is_over
    }
}
