//! Short text that is stored inside its owner, so that a request that reads it touches no other memory.

use std::fmt;
use std::ops::Deref;

use arrayvec::ArrayString;

/// Room for `token:` and a UUID, in bytes.
const INLINE: usize = 48;

/// Text of any length. Text of up to `INLINE` bytes needs no allocation.
#[derive(Clone)]
pub struct Text(Storage);

#[derive(Clone)]
enum Storage {
    Inline(ArrayString<INLINE>),
    Heap(Box<str>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let inline = ArrayString::from(text).map(Storage::Inline);
        Self(inline.unwrap_or_else(|_| Storage::Heap(text.into())))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Storage::Inline(text) => text,
            Storage::Heap(text) => text,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_any_length_is_kept() {
        for length in [0, 1, INLINE, INLINE + 1, 1000] {
            let text = "x".repeat(length);
            assert_eq!(*Text::from(text.as_str()), *text);
            assert_eq!(Text::from(text.as_str()).clone(), Text::from(text.as_str()));
        }
        assert_eq!(size_of::<Text>(), INLINE + 8);
    }
}
