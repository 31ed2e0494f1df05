//! Issuers as a configuration names them: the issuers whose tokens are accepted, and their keys.
//!
//! A key is made ready when it is read, and keeps its material, so that keys can be compared and a secret can sign. This file knows neither files nor YAML.

use super::jwks::JwksRules;
use super::verification::{Algorithm, KeyError, VerificationKey};
use crate::base::secret::Secret;

/// An issuer and its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerRules {
    /// The `iss` of its tokens. An issuer without a name is for every token that no other issuer is for.
    pub name: Option<String>,
    /// The `aud` its tokens must name.
    pub audience: Option<String>,
    /// The issuer's keys, of which a token's `kid` selects; a single key without a `kid` fits every token.
    pub keys: Vec<IssuerKey>,
    /// Where the issuer publishes keys.
    pub jwks: Option<JwksRules>,
}

/// A key of an issuer, ready to verify. The key fixes the algorithm; the token never does.
#[derive(Clone, Debug)]
pub struct IssuerKey {
    verification: VerificationKey,
    material: KeyMaterial,
}

/// The text that a key is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// A shared secret.
    Secret(Secret),
    /// A public key, in PEM or as a JWK.
    Public(String),
}

impl IssuerKey {
    /// A key for `algorithm`. A JWK without a given `kid` may bring its own.
    ///
    /// # Errors
    /// [`KeyError`] when `material` does not fit the algorithm.
    pub fn new(
        algorithm: Algorithm,
        kid: Option<String>,
        material: KeyMaterial,
    ) -> Result<Self, KeyError> {
        let verification = match &material {
            KeyMaterial::Secret(secret) => {
                VerificationKey::from_secret(algorithm, kid, secret.expose().as_bytes())?
            }
            KeyMaterial::Public(text) => VerificationKey::from_public(algorithm, kid, text)?,
        };
        Ok(Self { verification, material })
    }

    /// The key that verifies signatures.
    pub fn verification(&self) -> &VerificationKey {
        &self.verification
    }

    /// The text that the key is made from.
    pub fn material(&self) -> &KeyMaterial {
        &self.material
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.verification.algorithm()
    }

    /// The key's id.
    pub fn kid(&self) -> Option<&str> {
        self.verification.kid()
    }
}

impl PartialEq for IssuerKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm() == other.algorithm()
            && self.kid() == other.kid()
            && self.material == other.material
    }
}

impl Eq for IssuerKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_equal_when_they_are_made_of_the_same() {
        let key = |algorithm, kid: Option<&str>, secret: &str| {
            let material = KeyMaterial::Secret(Secret::new(secret.repeat(64)));
            IssuerKey::new(algorithm, kid.map(str::to_owned), material).unwrap()
        };
        let first = key(Algorithm::Hs256, Some("a"), "x");
        assert_eq!(first, first.clone());
        assert_ne!(first, key(Algorithm::Hs512, Some("a"), "x"));
        assert_ne!(first, key(Algorithm::Hs256, None, "x"));
        assert_ne!(first, key(Algorithm::Hs256, Some("a"), "y"));
        assert!(!format!("{first:?}").contains("xxxx"));
    }
}
