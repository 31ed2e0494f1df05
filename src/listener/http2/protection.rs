//! Bounds against clients that make work without sending requests: floods of frames that cost the client nothing.
//!
//! h2 bounds what it must remember: streams, resets before a request was accepted, header blocks, empty and small DATA
//! frames. It does not bound frames that it only answers or ignores. [`Frames`] counts those. This file must not know
//! what becomes of a connection over a bound.

use tokio::time::Instant;

use crate::telemetry::metrics::METRICS;

/// Frames that a client may send at once although they carry nothing: settings, pings, window updates, priorities and
/// frames of unknown types. A browser sends some dozens when it connects.
const CONTROL_BURST: u32 = 1_000;

/// And how many a second.
const CONTROL_RATE: u32 = 100;

/// How many such frames each frame with a request or with a part of a body excuses: window updates, priorities and pings
/// come with them.
const EXCUSED_BY_REQUEST: u32 = 4;

/// How many such frames each part of an answer excuses. It is sent in several frames, and a client may grant windows and
/// ping for each, as gRPC clients do to measure the line.
const EXCUSED_BY_ANSWER: u32 = 16;

/// Streams that a client may reset at once. This and the rate are nghttp2's, against rapid resets (CVE-2023-44487).
const RESET_BURST: u32 = 1_000;

/// And how many a second.
const RESET_RATE: u32 = 33;

/// The length of a frame's header (RFC 9113 section 4.1).
const FRAME_HEADER: usize = 9;

/// Types of frames, and the flag of a head's last one (RFC 9113 section 6).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// The reason to end a connection, or a stream, against the client's will: a value of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Too many streams were reset.
    RapidReset,
    /// Too many streams had to be reset, because of what the client sent on them.
    ForcedReset,
    /// Too many pings.
    Ping,
    /// Too many settings.
    Settings,
    /// Too many window updates.
    WindowUpdate,
    /// Too many priorities.
    Priority,
    /// Too many frames of other types.
    OtherFrames,
    /// Too many empty or small DATA frames.
    DataFrames,
    /// Too many CONTINUATION frames.
    Continuation,
    /// A list of header fields far over the bound.
    HeaderList,
    /// Frames that break the protocol.
    ProtocolError,
    /// Too many requests with malformed heads.
    MalformedHeads,
    /// A request beyond those that are still being worked on.
    Handlers,
    /// A client that takes no more of an answer.
    WindowStall,
    /// A frame or a head that takes too long.
    SlowFrame,
}

impl Protection {
    /// Counts the protection.
    pub fn count(self) {
        METRICS.http2_protection.with_label_values(&[self.label()]).inc();
    }

    fn label(self) -> &'static str {
        match self {
            Self::RapidReset => "rapid_reset",
            Self::ForcedReset => "forced_reset",
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::WindowUpdate => "window_update",
            Self::Priority => "priority",
            Self::OtherFrames => "other_frames",
            Self::DataFrames => "data_frames",
            Self::Continuation => "continuation",
            Self::HeaderList => "header_list",
            Self::ProtocolError => "protocol_error",
            Self::MalformedHeads => "malformed_heads",
            Self::Handlers => "handlers",
            Self::WindowStall => "window_stall",
            Self::SlowFrame => "slow_frame",
        }
    }

    /// The protection of h2's whose name `sent` ends with. h2 tells the client with its last frame, and nobody else, which
    /// bound was reached.
    pub fn named_by(sent: &[u8]) -> Option<Self> {
        const NAMES: [(&[u8], Protection); 5] = [
            (b"too_many_resets", Protection::RapidReset),
            (b"too_many_internal_resets", Protection::ForcedReset),
            (b"too_many_continuations", Protection::Continuation),
            (b"header_list_way_too_large", Protection::HeaderList),
            (b"too_many_data_frames", Protection::DataFrames),
        ];
        NAMES.iter().find(|(name, _)| sent.ends_with(name)).map(|(_, protection)| *protection)
    }
}

/// A number of frames that may be taken, and that fills up with time.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    burst: u32,
    rate: u32,
    filled: Instant,
}

impl Budget {
    /// `burst` frames at once, and `rate` a second.
    pub fn new(burst: u32, rate: u32, now: Instant) -> Self {
        Self { left: burst, burst, rate, filled: now }
    }

    fn add(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(self.burst);
    }

    /// Takes one frame; `false` when none is left. `more` adds what was earned meanwhile. The clock is asked only when
    /// nothing is left.
    pub fn take(&mut self, more: impl FnOnce() -> u32) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(self.filled);
            self.add((elapsed.as_secs_f64() * f64::from(self.rate)) as u32);
            if self.left > 0 {
                self.filled = now;
            }
            self.add(more());
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

/// Follows the frames that a client sends, by their headers alone.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of the preface or of a payload that follow before the next header.
    skip: usize,
    header: [u8; FRAME_HEADER],
    /// How many bytes of the header have arrived.
    arrived: usize,
    /// Frames that have begun; those of one head count as one. The number may begin again.
    begun: u32,
    /// Whether the frames of a head go on.
    is_in_head: bool,
    control: Budget,
    resets: Budget,
    /// Window updates so far.
    windows: u32,
}

impl Frames {
    /// The frames that follow after `skip` bytes.
    pub fn after(skip: usize) -> Self {
        let now = Instant::now();
        Self {
            skip,
            header: [0; FRAME_HEADER],
            arrived: 0,
            begun: 0,
            is_in_head: false,
            control: Budget::new(CONTROL_BURST, CONTROL_RATE, now),
            resets: Budget::new(RESET_BURST, RESET_RATE, now),
            windows: 0,
        }
    }

    /// How many window updates have passed; the number may begin again.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// The number of the frame whose rest must follow, where there is one; the preface and the frames of one head are one frame. The
    /// payload of DATA may take its time: it is the body of a request, which has a deadline of its own.
    pub fn unfinished(&self) -> Option<u32> {
        let has_begun = self.arrived > 0 || self.is_in_head || self.begun == 0;
        let is_data = self.header[3] == DATA;
        (has_begun || (self.skip > 0 && !is_data)).then_some(self.begun)
    }

    /// Follows the next `bytes`. `answered` tells how many parts of answers were sent since it was asked last.
    ///
    /// # Errors
    /// [`Protection`] when the client has sent too many frames of a kind.
    pub fn pass(
        &mut self,
        mut bytes: &[u8],
        answered: &impl Fn() -> u32,
    ) -> Result<(), Protection> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (FRAME_HEADER - self.arrived).min(bytes.len());
            if self.arrived == 0 && taken > 0 && !self.is_in_head {
                self.begun = self.begun.wrapping_add(1);
            }
            self.header[self.arrived..self.arrived + taken].copy_from_slice(&bytes[..taken]);
            self.arrived += taken;
            bytes = &bytes[taken..];
            if self.arrived == FRAME_HEADER {
                self.arrived = 0;
                let [high, middle, low, kind, flags, ..] = self.header;
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.is_in_head = flags & END_HEADERS == 0;
                }
                self.frame(kind, answered)?;
            }
        }
        Ok(())
    }

    /// Judges a frame of type `kind` (RFC 9113 section 6).
    fn frame(&mut self, kind: u8, answered: &impl Fn() -> u32) -> Result<(), Protection> {
        self.windows = self.windows.wrapping_add(u32::from(kind == 0x8));
        let (budget, protection) = match kind {
            // h2 bounds DATA frames that are empty, and their length is known here.
            DATA if self.skip == 0 => return Ok(()),
            DATA | HEADERS => {
                self.control.add(EXCUSED_BY_REQUEST);
                return Ok(());
            }
            // h2 bounds CONTINUATION.
            CONTINUATION => return Ok(()),
            0x3 => (&mut self.resets, Protection::RapidReset),
            0x2 => (&mut self.control, Protection::Priority),
            0x4 => (&mut self.control, Protection::Settings),
            0x6 => (&mut self.control, Protection::Ping),
            0x8 => (&mut self.control, Protection::WindowUpdate),
            _ => (&mut self.control, Protection::OtherFrames),
        };
        let earned = || match protection {
            Protection::RapidReset => 0,
            _ => answered().saturating_mul(EXCUSED_BY_ANSWER),
        };
        if budget.take(earned) { Ok(()) } else { Err(protection) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let header = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        [&header[..], &vec![0; payload]].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_flood_has_its_name() {
        for (kind, payload, protection) in [
            (0x2, 5, Protection::Priority),
            (0x3, 4, Protection::RapidReset),
            (0x4, 0, Protection::Settings),
            (0x6, 8, Protection::Ping),
            (0x8, 4, Protection::WindowUpdate),
            (0xa, 100, Protection::OtherFrames),
        ] {
            let flood = frame(kind, payload).repeat(CONTROL_BURST as usize);
            let mut frames = Frames::after(3);
            let bytes = [b"pre", &flood[..]].concat();
            for piece in bytes.chunks(7) {
                assert_eq!(frames.pass(piece, &|| 0), Ok(()), "{kind}");
            }
            assert_eq!(frames.pass(&frame(kind, payload), &|| 0), Err(protection));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(frames.pass(&frame(kind, payload), &|| 0), Ok(()), "a second later");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_answers_excuse_frames() {
        let mut frames = Frames::after(0);
        let talk = [frame(0x1, 20), frame(0x8, 4), frame(0x6, 8), frame(0x8, 4)].concat();
        for _ in 0..10 * CONTROL_BURST {
            assert_eq!(frames.pass(&talk, &|| 0), Ok(()));
        }
        let mut frames = Frames::after(0);
        for _ in 0..10 * CONTROL_BURST {
            assert_eq!(frames.pass(&frame(0x6, 8), &|| 1), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_frame_that_stands_open_is_known_by_its_number() {
        let mut frames = Frames::after(3);
        let mut open_after = |bytes: &[u8]| {
            frames.pass(bytes, &|| 0).unwrap();
            frames.unfinished()
        };
        assert_eq!(open_after(b"pr"), Some(0), "the preface");
        assert_eq!(open_after(b"e"), Some(0), "the first frame is part of it");
        let settings = frame(0x4, 12);
        assert_eq!(open_after(&settings[..5]), Some(1));
        assert_eq!(open_after(&settings[5..20]), Some(1));
        assert_eq!(open_after(&settings[20..]), None);
        let data = frame(0x0, 100);
        assert_eq!(open_after(&data[..5]), Some(2));
        assert_eq!(open_after(&data[5..50]), None, "a body has another deadline");
        assert_eq!(open_after(&data[50..]), None);
        // A head in three frames.
        let (head, mut last) = (frame(0x1, 10), frame(0x9, 2));
        assert_eq!(open_after(&head), Some(3));
        assert_eq!(open_after(&frame(0x9, 1)), Some(3));
        last[4] = END_HEADERS;
        assert_eq!(open_after(&last[..10]), Some(3));
        assert_eq!(open_after(&last[10..]), None);
        assert_eq!(open_after(&[&frame(0x6, 8)[..], &data[..1]].concat()), Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn data_of_any_size_is_no_flood_of_frames() {
        let mut frames = Frames::after(0);
        let bytes = [frame(0x0, 16_384), frame(0x9, 0), frame(0x0, 0)].concat();
        for _ in 0..10 * CONTROL_BURST {
            assert_eq!(frames.pass(&bytes, &|| 0), Ok(()));
        }
    }
}
