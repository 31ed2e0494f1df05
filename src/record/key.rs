//! Opaque keys: how they are made, told from mistypes, and named without being kept.
//!
//! Stores, configurations, caches and logs only see the SHA-256 of a key. Keys are looked up and compared by this hash
//! too, so that the time of a comparison tells nothing about a key.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use crate::base::hex;
use crate::base::secret::Secret;

/// The prefix of keys made here, for secret scanners to find.
const PREFIX: &str = "tg_";

/// Random characters of a key: 190 bits.
const RANDOM: usize = 32;

/// Characters of the checksum: the CRC-32 of the characters before it, in base 62.
const CHECKSUM: usize = 6;

/// Digits of base 62, by value.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Hexadecimal digits of a SHA-256.
const HASH_DIGITS: usize = 64;

/// Hexadecimal digits of a key's public id.
pub const PUBLIC_DIGITS: usize = 16;

/// The longest key that is accepted, in bytes.
pub const MAX_KEY: usize = 8 * 1024;

/// Why a text cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No request could carry it.
    #[error("is not 1 to {MAX_KEY} visible ASCII characters")]
    Form,
    /// The gateway would take it for a JWT.
    #[error("has two dots, as only a JWT has")]
    Jwt,
    /// The text starts as keys made here do, and its checksum is wrong.
    #[error("starts with {PREFIX} and its checksum is wrong")]
    Checksum,
}

/// Makes a key: `tg_`, 32 random characters of base 62, 6 of checksum.
///
/// # Errors
/// When the system has no randomness.
pub fn generate() -> Result<Secret, getrandom::Error> {
    /// The largest multiple of 62 in a byte. Larger bytes would make some digits likelier.
    const FAIR: u8 = 248;
    let mut key = PREFIX.to_owned();
    while key.len() < PREFIX.len() + RANDOM {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes)?;
        let digits = bytes.iter().filter(|byte| **byte < FAIR);
        let wanted = PREFIX.len() + RANDOM - key.len();
        key.extend(digits.take(wanted).map(|byte| char::from(DIGITS[usize::from(byte % 62)])));
    }
    let checksum = checksum(&key);
    key.extend(checksum.map(char::from));
    Ok(Secret::new(key))
}

/// The hexadecimal SHA-256 of `key`, which its record is stored under: `token:<hash>`.
///
/// # Errors
/// [`KeyError`] when the text cannot be a key: no record needs to be looked up then.
pub fn hash(key: &str) -> Result<Arc<str>, KeyError> {
    if key.starts_with(PREFIX) && !is_whole(key) {
        return Err(KeyError::Checksum);
    }
    let mut text = [0; HASH_DIGITS];
    for (pair, byte) in text.chunks_exact_mut(2).zip(digest(&SHA256, key.as_bytes()).as_ref()) {
        hex::write(u64::from(*byte), pair);
    }
    // Hexadecimal digits are text.
    Ok(std::str::from_utf8(&text).unwrap_or_default().into())
}

/// The [hash] of a key that a person or a file gives. A key that a request carries has been checked already.
///
/// # Errors
/// [`KeyError`] when no request could carry the text as a key.
pub fn hash_of_written(key: &str) -> Result<Arc<str>, KeyError> {
    let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    match key.bytes().filter(|byte| *byte == b'.').count() {
        _ if !visible || !(1..=MAX_KEY).contains(&key.len()) => Err(KeyError::Form),
        2 => Err(KeyError::Jwt),
        _ => hash(key),
    }
}

/// Whether `text` looks like a key made here, even a mistyped one, or like a JWT: the Base64 of `{"` begins with `eyJ`.
pub fn is_credential(text: &str) -> bool {
    let key = text.starts_with(PREFIX) && text.len() > RANDOM;
    key || (text.starts_with("eyJ") && text.matches('.').count() == 2)
}

/// Whether the record that is stored under `id` is that of an opaque key.
pub fn is_hash(id: &str) -> bool {
    id.len() == HASH_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The public id of the token whose record is stored under `id`: for a JWT the id itself, for a key the first 16 digits
/// of its hash.
pub fn public_id(id: &str) -> &str {
    if is_hash(id) { &id[..PUBLIC_DIGITS] } else { id }
}

/// Whether a key made here has its right length, digits and checksum.
fn is_whole(key: &str) -> bool {
    let Some((body, end)) = key.split_at_checked(PREFIX.len() + RANDOM) else { return false };
    let base62 = body[PREFIX.len()..].bytes().all(|byte| byte.is_ascii_alphanumeric());
    // The checksum is not secret, so this comparison may end early.
    base62 && *end.as_bytes() == checksum(body)
}

fn checksum(body: &str) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(body.as_bytes());
    let mut digits = [0; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_key_made_here_is_whole_and_one_wrong_character_shows() {
        let key = generate().unwrap();
        let key = key.expose();
        assert_eq!(key.len(), 41);
        assert!(hash(key).is_ok());
        for at in PREFIX.len()..key.len() {
            for other in
                DIGITS.map(char::from).into_iter().filter(|c| key.as_bytes()[at] != *c as u8)
            {
                let mut wrong = key.to_owned();
                wrong.replace_range(at..=at, other.encode_utf8(&mut [0; 4]));
                assert_eq!(hash(&wrong), Err(KeyError::Checksum), "{at} {other}");
            }
            assert_eq!(hash(&key[..at]), Err(KeyError::Checksum));
        }
        assert_eq!(hash(&format!("{key}0")), Err(KeyError::Checksum));
        assert_eq!(hash("tg_"), Err(KeyError::Checksum));
        assert_eq!(hash(&format!("tg_{}", "\u{e9}".repeat(19))), Err(KeyError::Checksum));
    }

    #[test]
    fn keys_differ_and_use_every_digit() {
        let keys: BTreeSet<String> =
            (0..1_000).map(|_| generate().unwrap().expose().to_owned()).collect();
        assert_eq!(keys.len(), 1_000);
        let used: BTreeSet<u8> = keys.iter().flat_map(|key| key[PREFIX.len()..].bytes()).collect();
        assert_eq!(used.len(), DIGITS.len());
    }

    #[test]
    fn the_checksum_does_not_change_between_versions() {
        let body = "tg_0123456789ABCDEFGHIJKLMNOPQRSTUV";
        assert_eq!(checksum(body), *b"10DJZz");
    }

    #[test]
    fn keys_of_any_shape_are_known_by_their_sha_256() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(&*hash_of_written("abc").unwrap(), abc);
        assert!(is_hash(abc));
        assert_eq!(public_id(abc), "ba7816bf8f01cfea");
        for id in ["k", &abc[1..], &abc.to_uppercase()] {
            assert!(!is_hash(id));
            assert_eq!(public_id(id), id);
        }
        for (text, error) in [
            ("", KeyError::Form),
            ("a b", KeyError::Form),
            ("caf\u{e9}", KeyError::Form),
            ("a.b.c", KeyError::Jwt),
            ("tg_abc", KeyError::Checksum),
        ] {
            assert_eq!(hash_of_written(text), Err(error), "{text:?}");
        }
    }
}
