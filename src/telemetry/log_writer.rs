//! The thread that writes log lines to standard output, so that a slow reader never stops a worker.
//!
//! Threads put lines into buffers. The writing thread is woken by the first line, gathers others for [`GATHER`] unless a line is
//! urgent, and writes each buffer at once: many lines cost one system call, and one of many wakes the thread. This file must not know what
//! a line looks like.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use log::LevelFilter;
use parking_lot::Mutex;

use super::metrics::METRICS;

/// How long lines wait for others.
const GATHER: Duration = Duration::from_millis(25);

/// So many bytes in a buffer do not wait for others.
const LARGE: usize = 128 << 10;

/// A buffer with so many bytes takes no further line; such lines are lost and counted.
const FULL: usize = 1 << 20;

/// How long the process waits for lines to be written before it ends.
const DRAIN: Duration = Duration::from_secs(1);

/// Lines that wait for the writing thread.
#[derive(Debug, Default)]
pub(super) struct Buffer(Mutex<Vec<u8>>);

/// The state that the threads of the process share.
struct Queue {
    /// Whether a line waits.
    waits: AtomicBool,
    /// Whether lines must be written at once.
    is_urgent: AtomicBool,
    ends: AtomicBool,
    buffers: Mutex<Vec<Arc<Buffer>>>,
    thread: OnceLock<Thread>,
}

static QUEUE: Queue = Queue {
    waits: AtomicBool::new(false),
    is_urgent: AtomicBool::new(false),
    ends: AtomicBool::new(false),
    buffers: Mutex::new(Vec::new()),
    thread: OnceLock::new(),
};

impl Buffer {
    /// A new buffer, which is written until nobody else has it.
    pub(super) fn new() -> Arc<Self> {
        let buffer = Arc::new(Self::default());
        QUEUE.buffers.lock().push(Arc::clone(&buffer));
        buffer
    }

    /// Adds the whole line that `write` appends, or counts a loss. An urgent line does not wait for others.
    pub(super) fn push(&self, is_urgent: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let length = {
            let mut lines = self.0.lock();
            if lines.len() >= FULL {
                METRICS.log_lines_dropped.inc();
                return;
            }
            write(&mut lines);
            lines.len()
        };
        QUEUE.tell(is_urgent || length >= LARGE);
    }
}

impl Queue {
    /// Wakes the writing thread, unless it is awake.
    fn tell(&self, is_urgent: bool) {
        let raise =
            |flag: &AtomicBool| !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::AcqRel);
        let begins = raise(&self.waits);
        if ((is_urgent && raise(&self.is_urgent)) || begins)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn write_to(&self, out: &mut impl Write) {
        let mut lines = Vec::new();
        loop {
            while !self.waits.load(Ordering::Acquire) {
                thread::park();
            }
            self.gather();
            let ends = self.ends.load(Ordering::Acquire);
            // A line that comes from here on wakes the thread again.
            self.is_urgent.store(false, Ordering::Release);
            self.waits.store(false, Ordering::Release);
            // The lock of the list is not held while a slow reader takes its time.
            let mut at = 0;
            while let Some(buffer) = self.buffer(&mut at) {
                std::mem::swap(&mut lines, &mut *buffer.0.lock());
                // A gateway goes on serving when its standard output is closed.
                let _ = out.write_all(&lines);
                lines.clear();
            }
            if ends {
                return;
            }
        }
    }

    /// Waits for further lines, unless they are urgent.
    fn gather(&self) {
        let until = Instant::now() + GATHER;
        while !self.is_urgent.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// The next buffer from `at` on. Those of threads that have ended are forgotten once they are empty.
    fn buffer(&self, at: &mut usize) -> Option<Arc<Buffer>> {
        let mut buffers = self.buffers.lock();
        while let Some(buffer) = buffers.get(*at) {
            if Arc::strong_count(buffer) > 1 || !buffer.0.lock().is_empty() {
                *at += 1;
                return Some(Arc::clone(buffer));
            }
            buffers.swap_remove(*at);
        }
        None
    }
}

/// Writes the lines that wait when it is dropped.
pub struct LogGuard {
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        log::set_max_level(LevelFilter::Off);
        QUEUE.ends.store(true, Ordering::Release);
        QUEUE.tell(true);
        let finished = self.done.recv_timeout(DRAIN);
        if finished != Err(RecvTimeoutError::Timeout)
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start() -> io::Result<LogGuard> {
    let (finished, done) = sync_channel(1);
    // A descriptor of its own: the thread must not hold the lock of `io::stdout()` while a reader of the log
    // is slow, because the end of the process takes that lock.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let thread = thread::Builder::new().name("log".into()).spawn(move || {
        QUEUE.write_to(&mut out);
        let _ = finished.send(());
    })?;
    let _ = QUEUE.thread.set(thread.thread().clone());
    QUEUE.tell(false);
    Ok(LogGuard { done, thread: Some(thread) })
}
