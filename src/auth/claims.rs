//! The claims of a JWT (RFC 7519 section 4), read strictly: each claim once, each of its own type.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::cache::Memo;
use crate::base::clock::UnixTime;
use crate::record::key::is_hash;
use crate::record::members::Members;
use crate::record::{Grant, HeaderText, TokenRecord, field};
use crate::tls::client::Thumbprint;

/// Longest `api_key`, `jti` or `kid` that a token may have, in bytes.
pub const MAX_NAME: usize = 256;

/// The claims that mean something here besides those of a grant.
const OWN_CLAIMS: [&str; 7] = ["api_key", "exp", "nbf", "iss", "aud", "jti", "cnf"];

/// A claim that means something: the token's own, or a field of a record that may be claimed.
fn known(name: &str) -> Option<&'static str> {
    let own = OWN_CLAIMS.into_iter().find(|own| *own == name);
    let field = || field::named(name).filter(|field| field.is_claim).map(|field| field.name);
    own.or_else(field)
}

/// The claims of a token, which may not be verified yet.
pub struct Claims(Members);

/// Why the claims of a token cannot be used. Names a claim and never its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The claims are no JSON object, or hold a claim twice.
    #[error("the claims are not a JSON object that holds each claim once")]
    Form,
    /// A claim that is required is missing.
    #[error("the claim {0} is missing")]
    Missing(&'static str),
    /// A claim has the wrong type or is out of range.
    #[error("the claim {0} has the wrong type or is out of range")]
    Wrong(&'static str),
}

/// The claims of a token whose signature is right.
#[derive(Debug)]
pub struct VerifiedClaims {
    /// The id of the record that applies.
    pub api_key: Arc<str>,
    /// When the token ends (RFC 7519 section 4.1.4).
    pub exp: UnixTime,
    /// When the token begins (section 4.1.5); the epoch where no claim says it.
    pub nbf: UnixTime,
    /// The certificate that the token is bound to (RFC 8705 section 3.1).
    pub certificate: Option<Box<Thumbprint>>,
    /// The token's own grant, for what its record does not say.
    pub grant: Option<Box<Grant>>,
    /// Where no record is required: the token's stand-in for a record.
    pub stateless: Option<Box<Stateless>>,
    /// The number of the issuer, and the generation of its keys that verified the token.
    pub verified_by: (u32, u32),
    /// The record of `api_key` that was found last.
    pub memo: Memo,
}

/// A token that needs no record.
#[derive(Debug)]
pub struct Stateless {
    /// An empty record.
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
        Members::read(json, known).map(Self).map_err(|_| ClaimError::Form)
    }

    /// The claim as text, if it is that.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Whether `aud` names `wanted`. The claim is a name or a list of names (RFC 7519 section 4.1.3).
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
        let api_key: Arc<str> = self.name("api_key")?.ok_or(ClaimError::Missing("api_key"))?;
        // The records of opaque keys are theirs alone. An id that is not printable can have no record, and would
        // break the lines of a log.
        if is_hash(&api_key) || !HeaderText::can_hold(&api_key) {
            return Err(ClaimError::Wrong("api_key"));
        }
        let exp = self.numeric_date("exp")?.ok_or(ClaimError::Missing("exp"))?;
        let nbf = self.numeric_date("nbf")?.unwrap_or_default();
        let grant = Grant::claimed(|name| self.0.get(name).cloned())
            .map_err(|error| ClaimError::Wrong(error.field))?;
        let grant = (grant != Grant::default()).then(|| Box::new(grant));
        let stateless = match require_record {
            true => None,
            false => {
                let record = TokenRecord::saying_nothing(&api_key)
                    .map_err(|error| ClaimError::Wrong(error.field))?;
                Some(Box::new(Stateless { record: Arc::new(record), jti: self.name("jti")? }))
            }
        };
        let certificate = self.certificate()?.map(Box::new);
        let memo = Memo::default();
        Ok(VerifiedClaims { api_key, exp, nbf, certificate, grant, stateless, verified_by, memo })
    }

    /// The certificate that `cnf` binds the token to. Another kind of binding is refused: to accept such a token from
    /// anyone would undo what its issuer wanted, although RFC 7800 section 3.1 lets programs ignore what they do not know.
    fn certificate(&self) -> Result<Option<Thumbprint>, ClaimError> {
        const WRONG: ClaimError = ClaimError::Wrong("cnf");
        let Some(cnf) = self.0.get("cnf") else { return Ok(None) };
        let members = cnf.as_object().filter(|members| members.len() == 1).ok_or(WRONG)?;
        let text = members.get("x5t#S256").and_then(Value::as_str).ok_or(WRONG)?;
        let thumbprint = URL_SAFE_NO_PAD.decode(text).map_err(|_| WRONG)?;
        thumbprint.try_into().map(Some).map_err(|_| WRONG)
    }

    /// A claim that names something: text of a bounded length.
    fn name(&self, name: &'static str) -> Result<Option<Arc<str>>, ClaimError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if (1..=MAX_NAME).contains(&text.len()) => {
                Ok(Some(text.as_str().into()))
            }
            Some(_) => Err(ClaimError::Wrong(name)),
        }
    }

    /// A claim in seconds since the epoch, fractions allowed (RFC 7519 section 2). Anything but a number is
    /// refused.
    fn numeric_date(&self, name: &'static str) -> Result<Option<UnixTime>, ClaimError> {
        /// The year 9999. A later time is a mistake or an attack.
        const LATEST: f64 = 253_402_300_799.0;
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(seconds) if (0.0..=LATEST).contains(&seconds) => {
                Ok(Some(UnixTime::from_micros((seconds * 1e6) as u64)))
            }
            _ => Err(ClaimError::Wrong(name)),
        }
    }
}
