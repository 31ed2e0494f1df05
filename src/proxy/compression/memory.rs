//! The memory of all encoders together. An encoder lives as long as its answer, and a client that reads slowly makes an
//! answer as long as it likes. This file must not know how bytes are coded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most memory of all encoders of the process, in bytes: about 800 encoders of gzip, or 128 of the others.
const MOST: usize = 256 << 20;

/// The memory that encoders have.
#[derive(Default)]
pub struct EncoderMemory {
    taken: AtomicUsize,
}

impl EncoderMemory {
    /// Takes so many bytes, if they are left.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= MOST);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Room { memory: Arc::clone(self), bytes })
    }
}

/// The memory of one encoder, until it is dropped.
pub(super) struct Room {
    memory: Arc<EncoderMemory>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_encoders_together_have_so_much_and_give_it_back() {
        let memory = Arc::new(EncoderMemory::default());
        let rooms: Vec<_> = (0..4).map(|_| memory.take(MOST / 4).unwrap()).collect();
        assert!(memory.take(1).is_none());
        drop(rooms);
        assert!(memory.take(MOST + 1).is_none() && memory.take(usize::MAX).is_none());
        assert!(memory.take(MOST).is_some());
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
    }
}
