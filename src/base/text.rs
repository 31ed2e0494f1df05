//! Short text that is kept where its owner is: what every request looks at should not have to be fetched from elsewhere.

use std::fmt;
use std::ops::Deref;

use arrayvec::ArrayString;

/// As much as `token:` and a UUID take, in bytes.
const HERE: usize = 48;

/// Text of any length, of which the usual lengths need no memory of their own.
#[derive(Clone)]
pub struct Text(Place);

#[derive(Clone)]
enum Place {
    Here(ArrayString<HERE>),
    Elsewhere(Box<str>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let here = ArrayString::from(text).map(Place::Here);
        Self(here.unwrap_or_else(|_| Place::Elsewhere(text.into())))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Place::Here(text) => text,
            Place::Elsewhere(text) => text,
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
        for length in [0, 1, HERE, HERE + 1, 1000] {
            let text = "x".repeat(length);
            assert_eq!(*Text::from(text.as_str()), *text);
            assert_eq!(Text::from(text.as_str()).clone(), Text::from(text.as_str()));
        }
        assert_eq!(size_of::<Text>(), HERE + 8);
    }
}
