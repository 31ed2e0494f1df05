//! Follows the frames of a WebSocket (RFC 6455 section 5.2), so that the gateway can send one of its own between two of them. It
//! reads the lengths of frames and nothing else. This file must not know connections.

/// A Close frame that says 1001, "going away" (RFC 6455 section 7.4.1).
pub const GOING_AWAY: [u8; 4] = [0x80 | CLOSE, 2, 0x03, 0xE9];

/// The opcode of Close frames.
const CLOSE: u8 = 8;

/// The frames of one side.
#[derive(Debug, Default)]
pub struct Frames {
    /// The beginning of the present frame: opcode and length, without the mask.
    head: [u8; 10],
    /// How many bytes of it have passed.
    filled: usize,
    /// How many bytes of the frame are left after it.
    left: u64,
    /// Whether no frame can follow: one was a Close, or its length is none.
    is_over: bool,
}

impl Frames {
    /// Follows bytes of this side.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !self.is_over {
            let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= skipped as u64;
            let Some((byte, after)) = bytes[skipped..].split_first() else { return };
            bytes = after;
            self.head[self.filled] = *byte;
            self.filled += 1;
            if self.filled == self.head_length() {
                self.begin_payload();
            }
        }
    }

    /// Whether another frame may come now: the last one has passed whole.
    pub fn are_whole(&self) -> bool {
        !self.is_over && self.filled == 0 && self.left == 0
    }

    /// How many bytes the opcode and the length have, as far as it is known.
    fn head_length(&self) -> usize {
        match (self.filled, self.head[1] & 0x7F) {
            (..2, _) => 2,
            (_, 126) => 4,
            (_, 127) => 10,
            _ => 2,
        }
    }

    fn begin_payload(&mut self) {
        let [first, second, long @ ..] = self.head;
        let length = match second & 0x7F {
            126 => u64::from(u16::from_be_bytes([long[0], long[1]])),
            127 => u64::from_be_bytes(long),
            short => u64::from(short),
        };
        // Frames of servers have no mask, which is for their clients to judge.
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        self.is_over = first & 0x0F == CLOSE || length >> 63 == 1;
        self.left = length.saturating_add(mask);
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(random: &mut fastrand::Rng) -> Vec<u8> {
        let opcode = [0, 1, 2, 9, 10][random.usize(..5)];
        let length = [0, 1, 125, 126, 127, 300, 65_535, 65_536, 70_000][random.usize(..9)];
        let mask = if random.u8(..8) == 0 { 0x80 } else { 0 };
        let mut frame = vec![opcode | (random.u8(..2) << 7)];
        match length {
            0..126 => frame.push(mask | length as u8),
            126..65_536 => {
                frame.push(mask | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        let masked = if mask == 0 { 0 } else { 4 };
        frame.extend((0..length + masked).map(|_| random.u8(..)));
        frame
    }

    #[test]
    fn frames_are_whole_where_one_ends_and_nowhere_else() {
        let mut random = fastrand::Rng::with_seed(6455);
        for _ in 0..200 {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for _ in 0..random.usize(1..6) {
                bytes.extend(frame(&mut random));
                ends.push(bytes.len());
            }
            let (mut frames, mut at) = (Frames::default(), 0);
            while at < bytes.len() {
                let most = [1, 3, 1_000, 100_000][random.usize(..4)];
                let next = (at + random.usize(1..=most)).min(bytes.len());
                frames.pass(&bytes[at..next]);
                at = next;
                assert_eq!(frames.are_whole(), ends.contains(&at), "{at} of {ends:?}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_close_or_a_length_that_is_none() {
        for bytes in [
            &[0x88, 0][..],
            &[0x88, 2, 0x03, 0xE8],
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
            &[0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        ] {
            let mut frames = Frames::default();
            assert!(frames.are_whole());
            frames.pass(bytes);
            frames.pass(&[0; 100]);
            assert!(!frames.are_whole(), "{bytes:?}");
        }
        let mut frames = Frames::default();
        frames.pass(&GOING_AWAY);
        assert!(!frames.are_whole());
    }
}
