//! What a JWT says (RFC 7519 section 4), read strictly: each claim once, each of its own type.

use std::sync::Arc;

use serde_json::Value;

use super::cache::Memo;
use crate::base::clock::UnixTime;
use crate::record::key::is_hash;
use crate::record::members::Members;
use crate::record::{Grant, HeaderText, TokenRecord, field};

/// Longest `api_key`, `jti` or `kid` that a token may have, in bytes.
pub const MAX_NAME: usize = 256;

/// The claims that mean something here besides those of a grant.
const OWN_CLAIMS: [&str; 6] = ["api_key", "exp", "nbf", "iss", "aud", "jti"];

/// A claim that means something: the token's own, or a field of a record that may be claimed.
fn known(name: &str) -> Option<&'static str> {
    let own = OWN_CLAIMS.into_iter().find(|own| *own == name);
    let field = || field::named(name).filter(|field| field.is_claim).map(|field| field.name);
    own.or_else(field)
}

/// The claims of a token, which may not be verified yet.
pub struct Claims(Members);

/// A claim that is missing or not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a claim is missing or wrong")]
pub struct ClaimError;

/// The claims of a token whose signature is right.
#[derive(Debug)]
pub struct VerifiedClaims {
    /// Whose record applies.
    pub api_key: Arc<str>,
    /// When the token ends (RFC 7519 section 4.1.4).
    pub exp: UnixTime,
    /// When it begins (section 4.1.5); the epoch where it does not say.
    pub nbf: UnixTime,
    /// What the token grants where its record does not say.
    pub grant: Option<Box<Grant>>,
    /// Where no record is required: what is known of the token without one.
    pub stateless: Option<Box<Stateless>>,
    /// Which issuer it was verified for, and by which set of its keys.
    pub verified_by: (u32, u32),
    /// The record of `api_key` that was found last.
    pub memo: Memo,
}

/// A token that needs no record.
#[derive(Debug)]
pub struct Stateless {
    /// A record that says nothing.
    pub record: Arc<TokenRecord>,
    /// The token's own id (section 4.1.7), by which it can be revoked.
    pub jti: Option<Arc<str>>,
}

impl Claims {
    /// Reads the JSON of a JWT's second part.
    ///
    /// # Errors
    /// [`ClaimError`] when it is no object, or holds a claim twice.
    pub fn read(json: &[u8]) -> Result<Self, ClaimError> {
        Members::read(json, known).map(Self).map_err(|_| ClaimError)
    }

    /// The claim as text, if it is that.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Whether `aud` names `wanted`: it is one name or several (RFC 7519 section 4.1.3).
    pub fn names_audience(&self, wanted: &str) -> bool {
        match self.0.get("aud") {
            Some(Value::String(name)) => name == wanted,
            Some(Value::Array(names)) => names.iter().any(|name| name.as_str() == Some(wanted)),
            _ => false,
        }
    }

    /// Reads every claim, for a token that was verified by `verified_by`.
    ///
    /// # Errors
    /// [`ClaimError`] for the first claim that is missing or wrong.
    pub fn verified(
        &self,
        require_record: bool,
        verified_by: (u32, u32),
    ) -> Result<VerifiedClaims, ClaimError> {
        let api_key: Arc<str> = self.name("api_key")?.ok_or(ClaimError)?;
        // The records of opaque keys are theirs alone; an id that is not printable can have no record, and would
        // break the lines of a log.
        if is_hash(&api_key) || !HeaderText::can_hold(&api_key) {
            return Err(ClaimError);
        }
        let exp = numeric_date(self.0.get("exp").ok_or(ClaimError)?)?;
        let nbf = self.0.get("nbf").map(numeric_date).transpose()?.unwrap_or_default();
        let grant = Grant::claimed(|name| self.0.get(name).cloned()).map_err(|_| ClaimError)?;
        let grant = (grant != Grant::default()).then(|| Box::new(grant));
        let stateless = match require_record {
            true => None,
            false => {
                let record = TokenRecord::saying_nothing(&api_key).map_err(|_| ClaimError)?;
                Some(Box::new(Stateless { record: Arc::new(record), jti: self.name("jti")? }))
            }
        };
        let memo = Memo::default();
        Ok(VerifiedClaims { api_key, exp, nbf, grant, stateless, verified_by, memo })
    }

    /// A claim that names something: text of a bounded length.
    fn name(&self, name: &str) -> Result<Option<Arc<str>>, ClaimError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if (1..=MAX_NAME).contains(&text.len()) => {
                Ok(Some(text.as_str().into()))
            }
            Some(_) => Err(ClaimError),
        }
    }
}

/// Seconds since the epoch, fractions allowed (RFC 7519 section 2). Anything but a number is refused.
fn numeric_date(value: &Value) -> Result<UnixTime, ClaimError> {
    /// The year 9999; what lies beyond is a mistake or an attack.
    const LATEST: f64 = 253_402_300_799.0;
    match value.as_f64() {
        Some(seconds) if (0.0..=LATEST).contains(&seconds) => {
            Ok(UnixTime::from_micros((seconds * 1e6) as u64))
        }
        _ => Err(ClaimError),
    }
}
