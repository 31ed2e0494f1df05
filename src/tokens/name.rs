//! How a token that exists is named: by its id, by the public id of a key, or by the credential itself.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::auth::credential::{Credential, MAX_CREDENTIAL};
use crate::base::secret::Secret;
use crate::record::key;

/// The name of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenName {
    /// The token whose record is stored under this id.
    Id(String),
    /// The token whose id is exactly this or, if it is a key, starts so in lower case.
    PublicId(String),
}

/// Why a text names no token. Never shows the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A credential where an id is expected.
    #[error("is a credential, not an id")]
    IsCredential,
    /// No request could carry it.
    #[error("is not 1 to {MAX_CREDENTIAL} visible ASCII characters")]
    Form,
    /// It is no key.
    #[error(transparent)]
    Key(#[from] key::KeyError),
    /// It is a JWT that names no record.
    #[error("is a JWT without api_key")]
    NoApiKey,
}

impl TokenName {
    /// The token that `id` names: a JWT's `api_key`, or of a key its 16 public digits or its SHA-256.
    ///
    /// # Errors
    /// [`NameError::IsCredential`]: an id is shown and logged, which a credential must not be.
    pub fn parse(id: &str) -> Result<Self, NameError> {
        if key::is_credential(id) {
            return Err(NameError::IsCredential);
        }
        let hexadecimal = id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let of_key = id.len() == key::PUBLIC_DIGITS || key::is_hash(&id.to_ascii_lowercase());
        Ok(match hexadecimal && of_key && !key::is_hash(id) {
            // A JWT's api_key may look so too, and is told apart by how it is written.
            true => Self::PublicId(id.to_owned()),
            false => Self::Id(id.to_owned()),
        })
    }

    /// The token that `credential` belongs to, and the credential if it is a JWT. The JWT has not been verified.
    ///
    /// # Errors
    /// [`NameError`] when it is no credential, or a JWT that names no record.
    pub fn of_credential(credential: &[u8]) -> Result<(Self, Option<Secret>), NameError> {
        match Credential::parse(credential) {
            Err(_) => Err(NameError::Form),
            Ok(Credential::Opaque(key)) => {
                Ok((Self::Id(key::hash(key)?.as_ref().to_owned()), None))
            }
            Ok(Credential::Jwt(jwt)) => {
                let id = api_key(jwt).ok_or(NameError::NoApiKey)?;
                Ok((Self::Id(id), Some(Secret::new(jwt))))
            }
        }
    }
}

/// The `api_key` that a JWT claims. The JWT only names a record here, so its signature does not matter.
fn api_key(jwt: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["api_key"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn an_id_is_taken_for_what_it_is() {
        for (text, name) in [
            ("bob", TokenName::Id("bob".into())),
            ("tg_prod", TokenName::Id("tg_prod".into())),
            ("com.acme.key", TokenName::Id("com.acme.key".into())),
            (ABC, TokenName::Id(ABC.into())),
            (&ABC.to_uppercase(), TokenName::PublicId(ABC.to_uppercase())),
            (&ABC[..16], TokenName::PublicId(ABC[..16].into())),
            ("BA7816BF8F01CFEA", TokenName::PublicId("BA7816BF8F01CFEA".into())),
            (&ABC[..15], TokenName::Id(ABC[..15].into())),
            ("BOB", TokenName::Id("BOB".into())),
        ] {
            assert_eq!(TokenName::parse(text), Ok(name), "{text}");
        }
    }

    #[test]
    fn a_credential_is_no_id() {
        let key = key::generate().unwrap();
        let mistyped = &key.expose()[..40];
        for text in [key.expose(), mistyped, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"] {
            assert_eq!(TokenName::parse(text), Err(NameError::IsCredential));
        }
    }

    #[test]
    fn a_credential_names_its_token() {
        let id = |text: &str| {
            TokenName::of_credential(text.as_bytes()).map(|(name, jwt)| (name, jwt.is_some()))
        };
        assert_eq!(id("abc"), Ok((TokenName::Id(ABC.into()), false)));
        let claims = URL_SAFE_NO_PAD.encode(r#"{"api_key":"bob"}"#);
        assert_eq!(id(&format!("x.{claims}.y")), Ok((TokenName::Id("bob".into()), true)));
        for text in ["", "\n", "a b", "a\nb", "tg_abc", "a.b.c", &"x".repeat(9_000)] {
            assert!(id(text).is_err(), "{text:?}");
        }
    }
}
