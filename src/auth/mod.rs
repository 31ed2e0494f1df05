//! Who a request is from: credential, signature, record, principal.
//!
//! This room knows neither Pingora nor the configuration. On doubt about identity it refuses.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join;
use http::HeaderMap;

use crate::base::clock::{Clock, UnixTime};
use crate::record::key;
use crate::record::{Grant, HeaderText, RateRule, TokenRecord};
use crate::store::StoreError;

pub mod cache;
pub mod claims;
pub mod credential;
pub mod guard;
pub mod issuer;
pub mod jwks;
pub mod jwt;
pub mod verification;
pub mod verified;

use cache::{RecordCache, RevocationCache};
use claims::Stateless;
use credential::{Credential, CredentialError};
use jwt::{JwtError, JwtVerifier};
use verified::VerifiedToken;

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
    /// Nothing is known about the token because its issuer's keys could not be fetched.
    #[error("the issuer's keys are unavailable")]
    KeysUnavailable,
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
            JwtError::KeysUnavailable => Self::KeysUnavailable,
        }
    }
}

/// A verified token with its record: what the rest of the gateway knows of the caller.
#[derive(Clone, Debug)]
pub struct Principal {
    record: Arc<TokenRecord>,
    /// `None` for an opaque key.
    claims: Option<VerifiedToken>,
}

impl Principal {
    /// The token's record.
    pub fn record(&self) -> &TokenRecord {
        &self.record
    }

    /// Whether the token may use the canonical `path`.
    pub fn may(&self, path: &str) -> bool {
        let patterns = self.granted(|grant| grant.allowed_routes.as_ref());
        patterns.is_none_or(|patterns| patterns.permit(path))
    }

    /// The plan.
    pub fn plan(&self) -> Option<&HeaderText> {
        self.granted(|grant| grant.plan.as_ref())
    }

    /// The organization.
    pub fn organization_id(&self) -> Option<&HeaderText> {
        self.granted(|grant| grant.organization_id.as_ref())
    }

    /// The limits that the record or else the claims state; `None` leaves it to plan and default.
    pub fn rate_rule(&self) -> Option<&RateRule> {
        match &self.record.grant {
            Grant { rate: None, plan: Some(_), .. } => None,
            _ => self.granted(|grant| grant.rate.as_ref()),
        }
    }

    fn expires_at(&self) -> Option<UnixTime> {
        self.granted(|grant| grant.expires_at.as_ref()).copied()
    }

    /// What the record says, or else the claims.
    fn granted<'a, T>(&'a self, member: impl Fn(&'a Grant) -> Option<&'a T>) -> Option<&'a T> {
        let claimed = || self.claims.as_ref()?.grant.as_deref();
        member(&self.record.grant).or_else(|| member(claimed()?))
    }
}

/// A credential that holds, before its record is known.
enum Verified {
    Jwt(VerifiedToken),
    /// An opaque key, by its id.
    Key(Arc<str>),
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
    store: Option<Stored>,
}

/// What the store says of tokens.
pub struct Stored {
    /// Their records.
    pub records: Arc<RecordCache>,
    /// Those that are revoked of tokens without records.
    pub revocations: Arc<RevocationCache>,
}

impl Authenticator {
    /// Asks `store` about what the rules do not hold; `None` when there is no such store.
    pub fn new(store: Option<Stored>) -> Self {
        Self { store }
    }

    /// The principal of a request with these `headers`, which came at `now` by this clock.
    ///
    /// # Errors
    /// [`AuthError`]: anything but a verified, known, unexpired, enabled token.
    pub async fn authenticate(
        &self,
        rules: &AuthRules,
        headers: &HeaderMap,
        now: UnixTime,
        clock: &dyn Clock,
    ) -> Result<Principal, AuthError> {
        let sent = Credential::sent(headers)?.ok_or(AuthError::Missing)?;
        let mut now = now;
        let verified = match rules.jwt.remembered(sent, now) {
            Some(claims) => Verified::Jwt(claims?),
            None => match Credential::parse(sent)? {
                Credential::Jwt(token) => {
                    // Boxed, lest what is rare makes every request's future large.
                    let claims = Box::pin(rules.jwt.verify(token, clock)).await?;
                    now = clock.now();
                    Verified::Jwt(claims)
                }
                Credential::Opaque(key) => {
                    Verified::Key(key::hash(key).map_err(|_| AuthError::Invalid)?)
                }
            },
        };
        let (id, claims) = match &verified {
            Verified::Jwt(claims) => (&claims.api_key, Some(claims)),
            Verified::Key(id) => (id, None),
        };
        let stateless = claims.and_then(|claims| claims.stateless.as_deref());
        if let Some(stateless) = stateless {
            Box::pin(self.must_not_be_revoked(id, stateless)).await?;
            now = clock.now();
        }
        let record = match (rules.records.get(id), stateless, &self.store) {
            (Some(record), ..) => Arc::clone(record),
            (None, Some(stateless), _) => Arc::clone(&stateless.record),
            (None, None, None) => return Err(AuthError::Invalid),
            (None, None, Some(store)) => {
                let record = match store.records.recall(id, claims.map(|claims| &claims.memo)) {
                    Some(record) => record,
                    None => {
                        let record = Box::pin(store.records.fetch(id)).await;
                        now = clock.now();
                        record.map_err(AuthError::StoreUnavailable)?
                    }
                };
                record.ok_or(AuthError::Invalid)?
            }
        };
        let claims = match verified {
            Verified::Jwt(claims) => Some(claims),
            Verified::Key(_) => None,
        };
        if record.disabled {
            return Err(AuthError::Revoked);
        }
        let principal = Principal { record, claims };
        match principal.expires_at() {
            Some(at) if at <= now => Err(AuthError::Expired),
            _ => Ok(principal),
        }
    }

    /// Refuses the token if it, or every token of its api_key, is revoked.
    async fn must_not_be_revoked(
        &self,
        api_key: &Arc<str>,
        stateless: &Stateless,
    ) -> Result<(), AuthError> {
        let Some(store) = &self.store else { return Ok(()) };
        let of_token = async {
            match &stateless.jti {
                Some(jti) => store.revocations.get(jti).await,
                None => Ok(false),
            }
        };
        match join(of_token, store.revocations.get(api_key)).await {
            // What one of them knows counts although the other knows nothing.
            (Ok(true), _) | (_, Ok(true)) => Err(AuthError::Revoked),
            (Err(error), _) | (_, Err(error)) => Err(AuthError::StoreUnavailable(error)),
            (Ok(false), Ok(false)) => Ok(()),
        }
    }
}
