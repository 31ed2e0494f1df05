//! A body becomes a coded body, part by part, with little memory. This file must not know messages.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::write::GzEncoder;
use parking_lot::Mutex;

use crate::route::coding::Coding;

/// Fast rather than small: the thread serves other requests too.
const GZIP_LEVEL: u32 = 5;
const BROTLI_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 3;

/// How far back the codings look, as powers of 2: 64 KiB and 256 KiB. The memory of an encoder grows with it, and that of
/// Brotli most.
const BROTLI_WINDOW: u32 = 16;
const ZSTD_WINDOW: u32 = 18;

/// Bytes that Brotli gathers before it writes.
const BROTLI_BUFFER: usize = 4_096;

/// One coded body.
pub enum Encoder {
    /// Gzip.
    Gzip(GzEncoder<Vec<u8>>),
    /// Brotli. The encoder is large, and `None` once it has finished.
    Brotli(Box<Option<brotli::CompressorWriter<Vec<u8>>>>),
    /// Zstandard. The encoder may not be shared between threads, and nothing ever waits for the lock.
    Zstd(Mutex<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    /// The memory of an encoder for a long body, in bytes: measured, and rounded up.
    pub fn memory(coding: Coding) -> usize {
        match coding {
            Coding::Gzip => 320 << 10,
            Coding::Brotli | Coding::Zstd => 2 << 20,
        }
    }

    /// An encoder at the beginning of a body.
    ///
    /// # Errors
    /// When the library has no memory.
    pub fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => {
                Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL)))
            }
            Coding::Brotli => Self::Brotli(Box::new(Some(brotli::CompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER,
                BROTLI_LEVEL,
                BROTLI_WINDOW,
            )))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW)?;
                Self::Zstd(Mutex::new(encoder))
            }
        })
    }

    /// Takes more of the body. The result may lack bytes that a later call gives.
    ///
    /// # Errors
    /// When the library fails, which no bytes cause.
    pub fn write(&mut self, input: &[u8]) -> io::Result<Bytes> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(input)?,
            Self::Brotli(encoder) => {
                if let Some(encoder) = &mut **encoder {
                    encoder.write_all(input)?;
                }
            }
            Self::Zstd(encoder) => encoder.get_mut().write_all(input)?,
        }
        Ok(self.taken())
    }

    /// The same, and the client can read everything up to here.
    ///
    /// # Errors
    /// When the library fails, which no bytes cause.
    pub fn write_and_flush(&mut self, input: &[u8]) -> io::Result<Bytes> {
        if input.is_empty() {
            return Ok(Bytes::new());
        }
        let mut output = Vec::from(self.write(input)?);
        match self {
            Self::Gzip(encoder) => encoder.flush()?,
            Self::Brotli(encoder) => {
                if let Some(encoder) = &mut **encoder {
                    encoder.flush()?;
                }
            }
            Self::Zstd(encoder) => encoder.get_mut().flush()?,
        }
        output.extend_from_slice(&self.taken());
        Ok(output.into())
    }

    /// Takes the rest of the body.
    ///
    /// # Errors
    /// When the library fails, which no bytes cause.
    pub fn finish(&mut self, input: &[u8]) -> io::Result<Bytes> {
        let mut output = Vec::from(self.write(input)?);
        match self {
            Self::Gzip(encoder) => encoder.try_finish()?,
            Self::Brotli(encoder) => {
                // Brotli writes its end when the writer is taken apart.
                let end = encoder.take().map(brotli::CompressorWriter::into_inner);
                output.extend_from_slice(&end.unwrap_or_default());
            }
            Self::Zstd(encoder) => encoder.get_mut().do_finish()?,
        }
        output.extend_from_slice(&self.taken());
        Ok(output.into())
    }

    /// The bytes that are ready.
    fn taken(&mut self) -> Bytes {
        match self {
            Self::Gzip(encoder) => std::mem::take(encoder.get_mut()),
            Self::Brotli(encoder) => match &mut **encoder {
                Some(encoder) => std::mem::take(encoder.get_mut()),
                None => Vec::new(),
            },
            Self::Zstd(encoder) => std::mem::take(encoder.get_mut().get_mut()),
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn decoded(coding: Coding, coded: &[u8]) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut body)?,
            Coding::Brotli => brotli::Decompressor::new(coded, 4_096).read_to_end(&mut body)?,
            Coding::Zstd => zstd::stream::read::Decoder::new(coded)?.read_to_end(&mut body)?,
        };
        Ok(body)
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut random = fastrand::Rng::with_seed(8);
        for (_, coding) in Coding::NAMES {
            for size in [0, 1, 1_000, 100_000, 1_000_000] {
                let body: Vec<u8> = (0..size).map(|_| b"abcdefgh"[random.usize(..8)]).collect();
                let mut encoder = Encoder::new(coding).unwrap();
                let mut coded = Vec::new();
                let mut parts = body.chunks(30_000).peekable();
                while let Some(part) = parts.next() {
                    coded.extend_from_slice(&match (parts.peek().is_some(), random.bool()) {
                        (false, _) => encoder.finish(part).unwrap(),
                        (true, false) => encoder.write(part).unwrap(),
                        (true, true) => encoder.write_and_flush(part).unwrap(),
                    });
                }
                if body.is_empty() {
                    coded.extend_from_slice(&encoder.finish(&[]).unwrap());
                }
                assert_eq!(decoded(coding, &coded).unwrap(), body, "{coding:?} {size}");
                assert!(size < 1_000 || coded.len() < size / 2, "{coding:?} {}", coded.len());
            }
        }
    }

    #[test]
    fn a_flushed_part_can_be_read_at_once() {
        for (_, coding) in Coding::NAMES {
            let mut encoder = Encoder::new(coding).unwrap();
            let coded = encoder.write_and_flush(b"tick").unwrap();
            let mut read = [0; 4];
            match coding {
                Coding::Gzip => flate2::read::GzDecoder::new(&*coded).read_exact(&mut read),
                Coding::Brotli => brotli::Decompressor::new(&*coded, 64).read_exact(&mut read),
                Coding::Zstd => {
                    zstd::stream::read::Decoder::new(&*coded).unwrap().read_exact(&mut read)
                }
            }
            .unwrap();
            assert_eq!(&read, b"tick", "{coding:?}");
        }
    }
}
