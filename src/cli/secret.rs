//! `tollgate secret`: a fresh secret for signing tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Failure;
use crate::base::secret::Secret;

/// 384 bits: enough for HS256 and HS384, and base64 of it needs no padding.
const SECRET_BYTES: usize = 48;

/// A line with a secret of 384 bits from the operating system's generator, in base64 (RFC 4648
/// section 4).
///
/// # Errors
/// [`Failure::Internal`] when the operating system has no randomness.
pub fn run() -> Result<String, Failure> {
    Ok(format!("{}\n", generate()?.expose()))
}

/// A secret of 384 bits from the operating system's generator, in base64.
///
/// # Errors
/// [`Failure::Internal`] when the operating system has no randomness.
pub fn generate() -> Result<Secret, Failure> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        Failure::Internal(format!("the operating system gave no random bytes: {error}"))
    })?;
    Ok(Secret::new(STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_384_bits_and_differs_each_time() {
        let line = run().unwrap();
        assert_eq!(STANDARD.decode(line.trim_end()).unwrap().len(), 48);
        assert_eq!(line.len(), 65, "64 characters and the end of the line");
        assert_ne!(line, run().unwrap());
    }
}
