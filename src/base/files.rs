//! Files that people name in a configuration: read whole, up to a bound.

use std::fs::File;
use std::io::{Error, Read as _, Result};
use std::path::Path;

/// The text of the file at `path`.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, or is larger than `max_bytes`.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let mut text = String::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_string(&mut text)?;
    match text.len() as u64 > max_bytes {
        true => Err(Error::other(format!("more than {max_bytes} bytes"))),
        false => Ok(text),
    }
}
