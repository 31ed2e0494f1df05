//! Who a request is from: credential, signature, record, principal.
//!
//! This room knows neither Pingora nor the configuration. On doubt about identity it refuses.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;

use crate::clock::UnixTime;
use crate::store::StoreError;

pub mod cache;
pub mod credential;
pub mod guard;
pub mod jwt;
pub mod key;
pub mod record;

use cache::RecordCache;
use credential::{Credential, CredentialError};
use jwt::{JwtError, JwtVerifier, VerifiedClaims};
use record::{RateRule, TokenRecord};

/// Why a request has no principal.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The request carries no credential.
    #[error("no credential")]
    Missing,
    /// The request carries credentials that contradict each other.
    #[error("two different credentials")]
    Ambiguous,
    /// The credential is malformed, unverifiable, not yet valid, or unknown.
    #[error("the credential is not valid")]
    Invalid,
    /// The credential or its record has expired.
    #[error("the credential has expired")]
    Expired,
    /// The record says that the token is disabled.
    #[error("the token is revoked")]
    Revoked,
    /// Nothing is known about the token because the store did not answer.
    #[error("the token store is unavailable: {0}")]
    StoreUnavailable(StoreError),
}

impl From<CredentialError> for AuthError {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Ambiguous => Self::Ambiguous,
            CredentialError::Malformed => Self::Invalid,
        }
    }
}

impl From<JwtError> for AuthError {
    fn from(error: JwtError) -> Self {
        match error {
            JwtError::Invalid => Self::Invalid,
            JwtError::Expired => Self::Expired,
        }
    }
}

/// A verified token with its record: what the rest of the gateway knows of the caller.
#[derive(Clone, Debug)]
pub struct Principal {
    record: Arc<TokenRecord>,
    /// `None` for an opaque key.
    claims: Option<Arc<VerifiedClaims>>,
}

impl Principal {
    /// The token's public id.
    pub fn token_id(&self) -> &Arc<str> {
        &self.record.id
    }

    /// The record, which also holds the identity fields for the upstream.
    pub fn record(&self) -> &TokenRecord {
        &self.record
    }

    /// Whether the token may use the canonical `path`. The record's routes win over the claims'.
    pub fn may(&self, path: &str) -> bool {
        let patterns = self
            .record
            .allowed_routes
            .as_ref()
            .or_else(|| self.claims.as_ref()?.allowed_routes.as_ref());
        patterns.is_none_or(|patterns| patterns.permit(path))
    }

    /// The limits that the record or else the claims state; `None` leaves it to plan and default.
    pub fn rate_rule(&self) -> Option<&RateRule> {
        self.record.rate.as_ref().or(match self.record.plan {
            Some(_) => None,
            None => self.claims.as_ref().and_then(|claims| claims.rate.as_ref()),
        })
    }
}

/// What one policy says about authentication.
#[derive(Debug)]
pub struct AuthRules {
    /// Verifies JWTs.
    pub jwt: Arc<JwtVerifier>,
    /// Records kept in the configuration, by id.
    pub records: HashMap<Arc<str>, Arc<TokenRecord>>,
}

/// Turns the credential of a request into a principal.
pub struct Authenticator {
    records: Option<Arc<RecordCache>>,
}

impl Authenticator {
    /// Looks records up in `records` when the rules hold none; `None` when there is no such store.
    pub fn new(records: Option<Arc<RecordCache>>) -> Self {
        Self { records }
    }

    /// The principal of a request with these `headers`.
    ///
    /// # Errors
    /// [`AuthError`]: anything but a verified, known, unexpired, enabled token.
    pub async fn authenticate(
        &self,
        rules: &AuthRules,
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<Principal, AuthError> {
        let (id, claims) = match Credential::from_headers(headers)? {
            None => return Err(AuthError::Missing),
            Some(Credential::Jwt(token)) => {
                let claims = rules.jwt.verify(token, now)?;
                (Arc::clone(&claims.api_key), Some(claims))
            }
            Some(Credential::Opaque(key)) => {
                (key::hash(key).map_err(|_| AuthError::Invalid)?, None)
            }
        };
        let record = match rules.records.get(&id) {
            Some(record) => Arc::clone(record),
            None => self.stored_record(&id).await?,
        };
        if record.disabled {
            return Err(AuthError::Revoked);
        }
        let expires_at = record.expires_at.or_else(|| claims.as_ref()?.expires_at);
        if expires_at.is_some_and(|at| at <= now) {
            return Err(AuthError::Expired);
        }
        Ok(Principal { record, claims })
    }

    async fn stored_record(&self, id: &Arc<str>) -> Result<Arc<TokenRecord>, AuthError> {
        let Some(records) = &self.records else {
            return Err(AuthError::Invalid);
        };
        match records.get(id).await {
            Ok(Some(record)) => Ok(record),
            Ok(None) => Err(AuthError::Invalid),
            Err(error) => Err(AuthError::StoreUnavailable(error)),
        }
    }
}
