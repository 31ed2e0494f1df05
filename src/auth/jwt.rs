//! JSON Web Tokens (RFC 7519), verified by the practice of RFC 8725: the configured key fixes the
//! algorithm, `exp` is required, and nothing a token says chooses how it is checked.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::Deserialize;
use serde_json::Value;

use super::record::{RateRule, patterns, rate_rule, time};
use crate::clock::UnixTime;
use crate::route::pattern::PathPatterns;

/// Longest `api_key` that a token may name, in bytes.
const MAX_API_KEY: usize = 256;

/// Memory for verified tokens, in bytes of token text and a fixed share for each entry.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
const CACHE_ENTRY_BYTES: u64 = 400;
const CACHE_ENTRIES: usize = 100_000;

/// Why a token is refused. The caller is told no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Form, key, signature or a claim is wrong, or the token is not valid yet.
    #[error("the token is not valid")]
    Invalid,
    /// The signature is right and `exp` has passed.
    #[error("the token has expired")]
    Expired,
}

/// A key and the one algorithm it is used with.
pub struct VerificationKey {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The key's id.
    pub kid: Option<String>,
    /// The key.
    pub key: DecodingKey,
}

/// What a verifier demands besides a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// The `iss` a token must have.
    pub issuer: Option<String>,
    /// The `aud` a token must name.
    pub audience: Option<String>,
    /// Clock difference that is forgiven on `exp` and `nbf`.
    pub leeway: Duration,
}

/// The claims of a token whose signature is right.
#[derive(Debug, PartialEq)]
pub struct VerifiedClaims {
    /// Whose record applies.
    pub api_key: Arc<str>,
    /// When the token ends (RFC 7519 section 4.1.4).
    pub exp: UnixTime,
    /// When it begins (section 4.1.5).
    pub nbf: Option<UnixTime>,
    /// Limits, where the record has none.
    pub rate: Option<RateRule>,
    /// When the grant ends, where the record does not say.
    pub expires_at: Option<UnixTime>,
    /// Permitted paths, where the record has none.
    pub allowed_routes: Option<PathPatterns>,
}

#[derive(Deserialize)]
struct RawClaims {
    api_key: String,
    exp: Value,
    nbf: Option<Value>,
    iss: Option<Value>,
    aud: Option<Value>,
    rate_limit: Option<Value>,
    expires_at: Option<Value>,
    allowed_routes: Option<Value>,
}

#[derive(Clone)]
struct ByteWeight;

impl Weighter<Arc<str>, Arc<VerifiedClaims>> for ByteWeight {
    fn weight(&self, token: &Arc<str>, _: &Arc<VerifiedClaims>) -> u64 {
        token.len() as u64 + CACHE_ENTRY_BYTES
    }
}

/// Verifies tokens, and remembers those it has verified, by their whole text.
pub struct JwtVerifier {
    keys: Vec<VerificationKey>,
    expectations: Expectations,
    verified: Cache<Arc<str>, Arc<VerifiedClaims>, ByteWeight>,
}

impl std::fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtVerifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl JwtVerifier {
    /// A verifier with `keys`, of which at most one has no `kid`.
    pub fn new(keys: Vec<VerificationKey>, expectations: Expectations) -> Self {
        let verified = Cache::with_weighter(CACHE_ENTRIES, CACHE_BYTES, ByteWeight);
        Self { keys, expectations, verified }
    }

    /// The claims of `token` if it is valid at `now`.
    ///
    /// # Errors
    /// [`JwtError`]; expiry is only reported of a token whose signature is right.
    pub fn verify(&self, token: &str, now: UnixTime) -> Result<Arc<VerifiedClaims>, JwtError> {
        let claims = match self.verified.get(token) {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.verify_signature(token)?);
                if claims.exp + self.expectations.leeway > now {
                    self.verified.insert(token.into(), Arc::clone(&claims));
                }
                claims
            }
        };
        if claims.exp + self.expectations.leeway <= now {
            return Err(JwtError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now + self.expectations.leeway) {
            return Err(JwtError::Invalid);
        }
        Ok(claims)
    }

    fn verify_signature(&self, token: &str) -> Result<VerifiedClaims, JwtError> {
        let header = decode_header(token).map_err(|_| JwtError::Invalid)?;
        // An extension that must be understood and is not: RFC 7515 section 4.1.11.
        if header.crit.is_some() {
            return Err(JwtError::Invalid);
        }
        let key = self.key_for(header.kid.as_deref()).ok_or(JwtError::Invalid)?;
        let mut validation = Validation::new(key.algorithm);
        // The times, issuer and audience are checked here, with time passed in and types strict.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims: RawClaims =
            decode(token, &key.key, &validation).map_err(|_| JwtError::Invalid)?.claims;
        self.check(claims)
    }

    /// The key with this `kid`, else the one without any; a token without `kid` fits an only key.
    fn key_for(&self, kid: Option<&str>) -> Option<&VerificationKey> {
        let named = self.keys.iter().find(|key| kid.is_some() && key.kid.as_deref() == kid);
        named.or_else(|| self.keys.iter().find(|key| key.kid.is_none())).or_else(|| {
            match (&self.keys[..], kid) {
                ([only], None) => Some(only),
                _ => None,
            }
        })
    }

    fn check(&self, raw: RawClaims) -> Result<VerifiedClaims, JwtError> {
        if raw.api_key.is_empty() || raw.api_key.len() > MAX_API_KEY {
            return Err(JwtError::Invalid);
        }
        if let Some(issuer) = &self.expectations.issuer
            && raw.iss.as_ref().and_then(Value::as_str) != Some(issuer)
        {
            return Err(JwtError::Invalid);
        }
        if let Some(audience) = &self.expectations.audience
            && !names_audience(raw.aud.as_ref(), audience)
        {
            return Err(JwtError::Invalid);
        }
        let invalid = |_| JwtError::Invalid;
        Ok(VerifiedClaims {
            api_key: raw.api_key.into(),
            exp: numeric_date(&raw.exp)?,
            nbf: raw.nbf.as_ref().map(numeric_date).transpose()?,
            rate: raw
                .rate_limit
                .map(|value| rate_rule("rate_limit", value))
                .transpose()
                .map_err(invalid)?,
            expires_at: raw
                .expires_at
                .map(|value| time("expires_at", value))
                .transpose()
                .map_err(invalid)?,
            allowed_routes: raw
                .allowed_routes
                .map(|value| patterns("allowed_routes", value))
                .transpose()
                .map_err(invalid)?,
        })
    }
}

/// `aud` is one name or several (RFC 7519 section 4.1.3).
fn names_audience(aud: Option<&Value>, wanted: &str) -> bool {
    match aud {
        Some(Value::String(name)) => name == wanted,
        Some(Value::Array(names)) => names.iter().any(|name| name.as_str() == Some(wanted)),
        _ => false,
    }
}

/// A NumericDate (RFC 7519 section 2): seconds since the epoch, perhaps with a fraction; never text.
fn numeric_date(value: &Value) -> Result<UnixTime, JwtError> {
    /// The year 9999; what lies beyond is a mistake or an attack.
    const LATEST: f64 = 253_402_300_799.0;
    match value.as_f64() {
        Some(seconds) if (0.0..=LATEST).contains(&seconds) => {
            Ok(UnixTime::from_micros((seconds * 1e6) as u64))
        }
        _ => Err(JwtError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"a secret that is long enough for every algorithm, all of its 64 bytes";
    const NOW: UnixTime = UnixTime::from_secs(1_000_000);

    fn key(algorithm: Algorithm, kid: Option<&str>, secret: &[u8]) -> VerificationKey {
        VerificationKey {
            algorithm,
            kid: kid.map(Into::into),
            key: DecodingKey::from_secret(secret),
        }
    }

    fn verifier() -> JwtVerifier {
        JwtVerifier::new(vec![key(Algorithm::HS256, None, SECRET)], Expectations::default())
    }

    fn sign(header: &Header, claims: &Value, secret: &[u8]) -> String {
        encode(header, claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn hs256(claims: Value) -> String {
        sign(&Header::new(Algorithm::HS256), &claims, SECRET)
    }

    fn unsigned(header: Value, claims: Value, signature: &str) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{signature}", part(header), part(claims))
    }

    #[test]
    fn a_valid_token_gives_its_claims_first_and_from_memory() {
        let verifier = verifier();
        let token = hs256(json!({"api_key": "k", "exp": 1_000_060, "rate_limit": 5,
            "allowed_routes": ["/a"], "expires_at": "2030-01-01T00:00:00Z"}));
        let first = verifier.verify(&token, NOW).unwrap();
        assert_eq!(&*first.api_key, "k");
        assert_eq!(first.rate, Some(RateRule::Bare(5)));
        assert!(Arc::ptr_eq(&first, &verifier.verify(&token, NOW).unwrap()));
        let later = UnixTime::from_secs(1_000_060);
        assert_eq!(verifier.verify(&token, later), Err(JwtError::Expired));
    }

    #[test]
    fn claims_are_checked_strictly() {
        use JwtError::*;
        for (claims, expected) in [
            (json!({"api_key": "k", "exp": 1_000_001}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_000.5}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_000}), Err(Expired)),
            (json!({"api_key": "k", "exp": 1}), Err(Expired)),
            (json!({"api_key": "k"}), Err(Invalid)),
            (json!({"api_key": "k", "exp": "1000060"}), Err(Invalid)),
            (json!({"api_key": "k", "exp": -1}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1e300}), Err(Invalid)),
            (json!({"api_key": "k", "exp": null}), Err(Invalid)),
            (json!({"exp": 1_000_060}), Err(Invalid)),
            (json!({"api_key": "", "exp": 1_000_060}), Err(Invalid)),
            (json!({"api_key": "k".repeat(257), "exp": 1_000_060}), Err(Invalid)),
            (json!({"api_key": 7, "exp": 1_000_060}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": 1_000_000}), Ok(())),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": 1_000_001}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1_000_060, "nbf": "1"}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1_000_060, "rate_limit": 0}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1_000_060, "allowed_routes": "*"}), Err(Invalid)),
            (json!({"api_key": "k", "exp": 1_000_060, "expires_at": "soon"}), Err(Invalid)),
        ] {
            let result = verifier().verify(&hs256(claims.clone()), NOW).map(|_| ());
            assert_eq!(result, expected, "{claims}");
        }
    }

    #[test]
    fn the_key_fixes_the_algorithm() {
        let claims = json!({"api_key": "k", "exp": 1_000_060});
        let refused = [
            sign(&Header::new(Algorithm::HS512), &claims, SECRET),
            sign(&Header::new(Algorithm::HS256), &claims, b"another secret"),
            unsigned(json!({"alg": "none"}), claims.clone(), ""),
            unsigned(json!({"alg": "HS256"}), claims.clone(), ""),
            unsigned(json!({"alg": "RS256"}), claims.clone(), "AAAA"),
            unsigned(json!({"typ": "JWT"}), claims.clone(), "AAAA"),
            "a.b.c".to_owned(),
            "..".to_owned(),
        ];
        for token in &refused {
            assert_eq!(verifier().verify(token, NOW), Err(JwtError::Invalid), "{token}");
        }
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let keys = vec![key(algorithm, None, SECRET)];
            let token = sign(&Header::new(algorithm), &claims, SECRET);
            JwtVerifier::new(keys, Expectations::default()).verify(&token, NOW).unwrap();
        }
    }

    #[test]
    fn a_critical_extension_is_refused() {
        let header = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
        let token = sign(&header, &json!({"api_key": "k", "exp": 1_000_060}), SECRET);
        assert_eq!(verifier().verify(&token, NOW), Err(JwtError::Invalid));
    }

    #[test]
    fn kid_selects_the_key() {
        let other = b"the secret of another key, which is long enough";
        let claims = json!({"api_key": "k", "exp": 1_000_060});
        let token = |kid: Option<&str>, secret| {
            let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
            sign(&header, &claims, secret)
        };
        let two = JwtVerifier::new(
            vec![key(Algorithm::HS256, Some("a"), SECRET), key(Algorithm::HS256, Some("b"), other)],
            Expectations::default(),
        );
        assert!(two.verify(&token(Some("a"), SECRET), NOW).is_ok());
        assert!(two.verify(&token(Some("b"), other), NOW).is_ok());
        assert!(two.verify(&token(Some("b"), SECRET), NOW).is_err());
        assert!(two.verify(&token(Some("c"), SECRET), NOW).is_err());
        assert!(two.verify(&token(None, SECRET), NOW).is_err());
        let one = JwtVerifier::new(
            vec![key(Algorithm::HS256, Some("a"), SECRET)],
            Expectations::default(),
        );
        assert!(one.verify(&token(None, SECRET), NOW).is_ok());
        assert!(one.verify(&token(Some("c"), SECRET), NOW).is_err());
    }

    #[test]
    fn issuer_audience_and_leeway_are_honoured() {
        let strict = || {
            let expectations = Expectations {
                issuer: Some("us".into()),
                audience: Some("api".into()),
                leeway: Duration::from_secs(5),
            };
            JwtVerifier::new(vec![key(Algorithm::HS256, None, SECRET)], expectations)
        };
        for (iss, aud, exp, good) in [
            (json!("us"), json!("api"), 1_000_060, true),
            (json!("us"), json!(["x", "api"]), 1_000_060, true),
            (json!("us"), json!("api"), 999_996, true),
            (json!("us"), json!("api"), 999_995, false),
            (json!("them"), json!("api"), 1_000_060, false),
            (json!(null), json!("api"), 1_000_060, false),
            (json!(["us"]), json!("api"), 1_000_060, false),
            (json!("us"), json!("other"), 1_000_060, false),
            (json!("us"), json!(null), 1_000_060, false),
        ] {
            let claims = json!({"api_key": "k", "exp": exp, "iss": iss, "aud": aud});
            assert_eq!(strict().verify(&hs256(claims.clone()), NOW).is_ok(), good, "{claims}");
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let token = hs256(json!({"api_key": "k", "exp": 1_000_060}));
        let verifier = verifier();
        for at in 0..token.len() * 8 {
            let mut bytes = token.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(verifier.verify(&text, NOW).is_err(), "bit {at}");
            }
        }
    }

    #[test]
    fn a_claim_that_comes_twice_is_refused() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let claims = URL_SAFE_NO_PAD.encode(r#"{"api_key":"a","api_key":"b","exp":1000060}"#);
        let message = format!("{header}.{claims}");
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &EncodingKey::from_secret(SECRET),
            Algorithm::HS256,
        )
        .unwrap();
        let token = format!("{message}.{signature}");
        assert_eq!(verifier().verify(&token, NOW), Err(JwtError::Invalid));
    }
}
