//! Classes of bytes, as the grammars of the RFCs list them.

/// A class of bytes: `true` for each byte that belongs to it.
pub type Class = [bool; 256];

/// ASCII letters, digits, and `signs`.
pub const fn alphanumeric_and(signs: &[u8]) -> Class {
    let mut class = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        class[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < signs.len() {
        class[signs[at] as usize] = true;
        at += 1;
    }
    class
}

/// `tchar` of RFC 9110 section 5.6.2.
pub const TOKEN: Class = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// The longest start of `bytes` that belongs to `class`, and the rest.
pub fn span<'a>(bytes: &'a [u8], class: &Class) -> (&'a [u8], &'a [u8]) {
    let end = bytes.iter().position(|&byte| !class[usize::from(byte)]);
    bytes.split_at(end.unwrap_or(bytes.len()))
}

/// Whether every byte belongs to `class`.
pub fn consists_of(bytes: &[u8], class: &Class) -> bool {
    bytes.iter().all(|&byte| class[usize::from(byte)])
}
