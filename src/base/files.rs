//! Files that people name in a configuration: read whole, up to a bound.

use std::fs::File;
use std::io::{Error, Read as _, Result};
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
