//! Files that people name in a configuration: read whole, up to a bound.

use std::fs::File;
use std::io::{Error, Read as _, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The byte order mark.
const MARK: char = '\u{feff}';

/// The text of the file at `path`, without the byte order mark that some editors write first.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, or is larger than `max_bytes`.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let mut text = String::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        return Err(Error::other(format!("more than {max_bytes} bytes")));
    }
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

/// The bytes of the file at `path`.
///
/// # Errors
/// When the file cannot be read or is larger than `max_bytes`.
pub fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max_bytes {
        true => Err(Error::other(format!("more than {max_bytes} bytes"))),
        false => Ok(bytes),
    }
}

/// The state of a file. A file that is written again, or replaced through a link on its path, gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The state of the file at `path`; `None` when there is none.
    pub fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}
