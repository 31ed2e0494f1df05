//! Signing JWTs (RFC 7519) with the secrets that a gateway verifies with, and reading the claims of JWTs that were
//! signed with them.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::auth::issuer::{IssuerKey, IssuerRules, KeyMaterial};
use crate::base::clock::UnixTime;
use crate::base::secret::Secret;
use crate::record::field::is_claim;

/// The shortest secret HS256 may have, in bytes (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// Why no JWT can be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// No secret is known.
    #[error("there is no key to sign with")]
    NoKey,
    /// The secret is too short for HS256.
    #[error("the secret is shorter than {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    /// The library failed.
    #[error("signing the token: {0}")]
    Failed(String),
}

/// The keys that sign JWTs. Only secrets can sign: public keys verify the tokens of other issuers.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The key that signs.
    first: SigningKey,
    /// Other keys whose tokens are believed.
    rest: Vec<SigningKey>,
    issuer: Option<String>,
    audience: Option<String>,
}

#[derive(Clone, Debug)]
struct SigningKey {
    algorithm: Algorithm,
    secret: Secret,
    kid: Option<String>,
}

impl Signer {
    /// Signs by HS256 with `secret`, for no issuer and no audience.
    ///
    /// # Errors
    /// [`SignerError::ShortSecret`].
    pub fn hs256(secret: Secret) -> Result<Self, SignerError> {
        if secret.expose().len() < MIN_SECRET_BYTES {
            return Err(SignerError::ShortSecret);
        }
        let first = SigningKey { algorithm: Algorithm::HS256, secret, kid: None };
        Ok(Self { first, rest: Vec::new(), issuer: None, audience: None })
    }

    /// Signs as the first of `issuers` that has a secret.
    pub fn configured(issuers: &[IssuerRules]) -> Option<Self> {
        issuers.iter().find_map(|issuer| {
            let mut keys = issuer.keys.iter().filter_map(signing_key);
            Some(Self {
                first: keys.next()?,
                rest: keys.collect(),
                issuer: issuer.name.clone(),
                audience: issuer.audience.clone(),
            })
        })
    }

    /// The same, with the issuer and audience of `other`.
    pub fn in_the_name_of(self, other: Self) -> Self {
        Self { issuer: other.issuer, audience: other.audience, ..self }
    }

    /// A JWT that names `api_key` and claims `grant`.
    ///
    /// # Errors
    /// [`SignerError::Failed`].
    pub fn sign(
        &self,
        api_key: &str,
        grant: &Map<String, Value>,
        issued: UnixTime,
        expires: UnixTime,
    ) -> Result<Secret, SignerError> {
        let mut header = Header::new(self.first.algorithm);
        header.kid.clone_from(&self.first.kid);
        let claims = Claims {
            api_key,
            iat: issued.as_secs(),
            exp: expires.as_secs(),
            iss: self.issuer.as_deref(),
            aud: self.audience.as_deref(),
            grant,
        };
        let key = EncodingKey::from_secret(self.first.secret.expose().as_bytes());
        jsonwebtoken::encode(&header, &claims, &key)
            .map(Secret::new)
            .map_err(|error| SignerError::Failed(error.to_string()))
    }

    /// The claims of `jwt` that grant something, so that another token can claim the same; `None` when none of these
    /// keys has signed it. Anyone can write a JWT, so the claims of a JWT of unknown origin count for nothing.
    pub fn granted(&self, jwt: &Secret) -> Option<Map<String, Value>> {
        let mut keys = std::iter::once(&self.first).chain(&self.rest);
        let claims = keys.find_map(|key| {
            let mut validation = Validation::new(key.algorithm);
            // The expiry and the audience of the JWT do not change its grants.
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            let key = DecodingKey::from_secret(key.secret.expose().as_bytes());
            jsonwebtoken::decode::<Map<String, Value>>(jwt.expose(), &key, &validation).ok()
        });
        let mut granted = claims?.claims;
        granted.retain(|name, _| is_claim(name));
        Some(granted)
    }
}

fn signing_key(key: &IssuerKey) -> Option<SigningKey> {
    let KeyMaterial::Secret(secret) = key.material() else { return None };
    let algorithm = key.algorithm().name().parse().ok()?;
    Some(SigningKey { algorithm, secret: secret.clone(), kid: key.kid().map(str::to_owned) })
}

/// The claims of a token (RFC 7519 section 4.1).
#[derive(Serialize)]
struct Claims<'a> {
    api_key: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(flatten)]
    grant: &'a Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;
    use crate::auth::verification;
    use crate::base::clock::{Clock as _, SystemClock};

    const NOW: UnixTime = UnixTime::from_secs(1_700_000_000);

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn signer(kid: Option<&str>, issuer: Option<&str>) -> Signer {
        let algorithm = verification::Algorithm::Hs256;
        let material = KeyMaterial::Secret(Secret::new(KEY));
        let keys = vec![IssuerKey::new(algorithm, kid.map(str::to_owned), material).unwrap()];
        let issuer =
            IssuerRules { keys, name: issuer.map(str::to_owned), ..IssuerRules::default() };
        Signer::configured(&[IssuerRules::default(), issuer]).unwrap()
    }

    #[test]
    fn the_credential_verifies_and_says_what_the_configuration_asks_for() {
        let now = SystemClock::default().now();
        let expires = UnixTime::from_secs(now.as_secs() + 60);
        let credential =
            signer(Some("2026"), Some("me")).sign("k1", &Map::new(), now, expires).unwrap();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&["me"]);
        let key = DecodingKey::from_secret(KEY.as_bytes());
        let token = jsonwebtoken::decode::<Value>(credential.expose(), &key, &validation).unwrap();
        assert_eq!(token.header.kid.as_deref(), Some("2026"));
        assert_eq!(token.claims["api_key"], "k1");
        assert_eq!(token.claims["exp"], now.as_secs() + 60);
        assert_eq!(token.claims["iat"], now.as_secs());
    }

    #[test]
    fn claims_nobody_asked_for_are_absent() {
        let credential = signer(None, None).sign("k1", &Map::new(), NOW, NOW).unwrap();
        let part =
            |n| URL_SAFE_NO_PAD.decode(credential.expose().split('.').nth(n).unwrap()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&part(0)).unwrap(),
            json!({"alg":"HS256","typ":"JWT"})
        );
        assert_eq!(
            serde_json::from_slice::<Value>(&part(1)).unwrap(),
            json!({"api_key":"k1","exp":1_700_000_000,"iat":1_700_000_000})
        );
    }

    #[test]
    fn only_what_was_signed_with_these_keys_is_believed() {
        let grant = json!({ "plan": "basic", "role": "admin" });
        let grant = grant.as_object().unwrap();
        let signer = signer(None, None);
        let jwt = signer.sign("k1", grant, NOW, NOW).unwrap();
        assert_eq!(signer.granted(&jwt), json!({ "plan": "basic" }).as_object().cloned());
        let other = Signer::hs256(Secret::new("f".repeat(32))).unwrap();
        assert_eq!(other.granted(&jwt), None);
        let named = other.in_the_name_of(Signer { issuer: Some("me".into()), ..signer.clone() });
        assert_eq!(named.issuer.as_deref(), Some("me"));
        assert_eq!(signer.granted(&named.sign("k1", grant, NOW, NOW).unwrap()), None);
    }

    #[test]
    fn a_short_secret_is_refused() {
        let refused = Signer::hs256(Secret::new("short")).unwrap_err();
        assert_eq!(refused, SignerError::ShortSecret);
        assert!(Signer::configured(&[IssuerRules::default()]).is_none());
    }
}
