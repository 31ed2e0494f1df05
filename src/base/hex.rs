//! Hexadecimal digits (RFC 4648 section 8).

/// Fills `text` with the last digits of `number`, in lower case.
pub fn write(mut number: u64, text: &mut [u8]) {
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// The value of a digit of either case; `None` when `digit` is none.
pub fn value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
