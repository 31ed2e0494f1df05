//! JWTs as a client may hold them: right, wrong, and forged. It knows nothing of the gateway's checks.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

/// The secret that the gateways under test share, long enough for every HS algorithm.
pub const SECRET: &str = "tests-only-0123456789abcdef0123456789abcdef0123456789abcdef01234567";

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A valid token of `api_key`, good for an hour.
pub fn token(api_key: &str) -> String {
    claims(json!({ "api_key": api_key, "exp": now() + 3600 }))
}

/// A token with these claims and a right signature.
pub fn claims(claims: Value) -> String {
    sign(&json!({ "alg": "HS256", "typ": "JWT" }), &claims, SECRET, Algorithm::HS256)
}

/// A token with any header and claims, signed with `algorithm` whatever the header says.
pub fn sign(header: &Value, claims: &Value, secret: &str, algorithm: Algorithm) -> String {
    let message = unsigned(header, claims);
    let signature =
        crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret.as_bytes()), algorithm)
            .unwrap();
    format!("{message}.{signature}")
}

/// The first two parts of a token.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// The value of `Authorization` for a valid token of `api_key`.
pub fn bearer(api_key: &str) -> String {
    format!("Bearer {}", token(api_key))
}
