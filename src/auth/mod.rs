//! From the credential of a request to its principal, by signature and record.
//!
//! This room knows neither Pingora nor the configuration, nor how a client is answered. It refuses a request whose
//! identity is in doubt, and says why.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;

use crate::base::clock::{Clock, UnixTime};
use crate::record::key::{self, KeyError};
use crate::record::{Grant, HeaderText, RateRule, RecordError, TokenRecord};
use crate::store::StoreError;
use crate::tls::client::Thumbprint;

pub mod cache;
mod changes;
pub mod claims;
pub mod credential;
pub mod guard;
pub mod issuer;
pub mod jwks;
pub mod jwt;
pub mod sources;
mod turns;
pub mod verification;
pub mod verified;

use cache::{NoRecord, RecordCache, RevocationCache};
use claims::Stateless;
use credential::{Credential, CredentialError};
use guard::{GuardedClient, TooManyFailures};
use jwt::{JwtError, JwtVerifier};
use verified::VerifiedToken;

/// Why a request has no principal.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The request has no credential.
    #[error("the request has no credential")]
    Missing,
    /// The request's credential fields cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The JWT does not hold.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The client has sent too many invalid credentials for this one to be checked.
    #[error(transparent)]
    Unchecked(#[from] TooManyFailures),
    /// The opaque key is mistyped.
    #[error("the key {0}")]
    Key(#[from] KeyError),
    /// The token has no record, and needs one.
    #[error("the token has no record")]
    NoRecord,
    /// The token's record cannot be read.
    #[error("the token's record cannot be read: {0}")]
    UnreadableRecord(Arc<RecordError>),
    /// The token's record says that the token is disabled.
    #[error("the token's record is disabled")]
    Disabled,
    /// The token needs no record, and is on the list of revoked tokens.
    #[error("the token is on the list of revoked tokens")]
    Revoked,
    /// The `expires_at` of the record, or else of the claims, has passed.
    #[error("the token's expires_at has passed")]
    Expired,
    /// The store did not answer, so nothing is known about the token.
    #[error("the token store is unavailable: {0}")]
    Store(#[from] StoreError),
}

impl From<NoRecord> for AuthError {
    fn from(error: NoRecord) -> Self {
        match error {
            NoRecord::Unknown => Self::NoRecord,
            NoRecord::Unreadable(error) => Self::UnreadableRecord(error),
        }
    }
}

/// A verified token with its record: all that the rest of the gateway knows of the client.
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

    /// Whether the token may come over a connection whose client has shown this certificate. A token that is bound to a
    /// certificate may not come over any other (RFC 8705 section 3).
    pub fn holds_with(&self, certificate: Option<&Thumbprint>) -> bool {
        let bound = self.claims.as_ref().and_then(|claims| claims.certificate.as_deref());
        bound.is_none_or(|bound| certificate == Some(bound))
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

    /// When the token ends by itself; a JWT's `exp` with this `leeway`. `None` for never.
    fn ends_at(&self, leeway: Duration) -> Option<UnixTime> {
        let exp = self.claims.as_ref().map(|claims| claims.exp + leeway);
        exp.into_iter().chain(self.expires_at()).min()
    }

    /// The ids under which changes of the token are told: of its record, and of its revocations.
    pub fn ids(&self) -> Vec<Arc<str>> {
        let stateless = self.claims.as_ref().and_then(|claims| claims.stateless.as_ref());
        let jti = stateless.and_then(|stateless| stateless.jti.clone());
        [self.record_id()].into_iter().chain(jti).collect()
    }

    /// The id of the token's record.
    fn record_id(&self) -> Arc<str> {
        match &self.claims {
            Some(claims) => Arc::clone(&claims.api_key),
            None => self.record.key().into(),
        }
    }

    fn expires_at(&self) -> Option<UnixTime> {
        self.granted(|grant| grant.expires_at.as_ref()).copied()
    }

    /// The member of the record, or else of the claims.
    fn granted<'a, T>(&'a self, member: impl Fn(&'a Grant) -> Option<&'a T>) -> Option<&'a T> {
        let claimed = || self.claims.as_ref()?.grant.as_deref();
        member(&self.record.grant).or_else(|| member(claimed()?))
    }
}

/// A credential that holds and whose record is not known yet.
enum Verified {
    Jwt(VerifiedToken),
    /// An opaque key, by its id.
    Key(Arc<str>),
}

/// The rules of a policy about authentication.
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

/// The caches of the store's answers about tokens.
pub struct Stored {
    /// The records of tokens.
    pub records: Arc<RecordCache>,
    /// The revocations of tokens without records.
    pub revocations: Arc<RevocationCache>,
}

impl Authenticator {
    /// Asks `store` for records that the rules do not hold; `None` when there is no store of records.
    pub fn new(store: Option<Stored>) -> Self {
        Self { store }
    }

    /// The principal of a request of `client` with the credential `sent`, which arrived at `now` by this clock.
    ///
    /// Once the client has sent too many invalid credentials, only a credential that is or was known here is checked: a
    /// JWT that was verified before, or a key whose record is in memory, however old.
    ///
    /// # Errors
    /// [`AuthError`]: anything but a verified, known, unexpired, enabled token.
    pub async fn authenticate(
        &self,
        rules: &AuthRules,
        sent: &[u8],
        client: GuardedClient<'_>,
        now: UnixTime,
        clock: &dyn Clock,
    ) -> Result<Principal, AuthError> {
        let mut now = now;
        let verified = match rules.jwt.remembered(sent, now) {
            Some(claims) => Verified::Jwt(claims?),
            None => match Credential::parse(sent)? {
                Credential::Jwt(token) => {
                    // Boxed, because a rare path must not make every request's future large.
                    let claims = Box::pin(rules.jwt.verify(token, client, clock)).await?;
                    now = clock.now();
                    Verified::Jwt(claims)
                }
                Credential::Opaque(key) => Verified::Key(key::hash(key)?),
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
        let record = match (held(rules, id, stateless), &self.store) {
            (Some(record), _) => record,
            (None, None) => return Err(AuthError::NoRecord),
            (None, Some(store)) => {
                let record = match store.records.recall(id, claims.map(|claims| &claims.memo)) {
                    Some(record) => record,
                    None => {
                        // A key that was known a while ago is no guess.
                        if claims.is_none() && !store.records.was_known(id) {
                            client.may_try()?;
                        }
                        let record = Box::pin(store.records.fetch(id)).await;
                        now = clock.now();
                        record?
                    }
                };
                record?
            }
        };
        let claims = match verified {
            Verified::Jwt(claims) => Some(claims),
            Verified::Key(_) => None,
        };
        if record.disabled {
            return Err(AuthError::Disabled);
        }
        let principal = Principal { record, claims };
        match principal.expires_at() {
            Some(at) if at <= now => Err(AuthError::Expired),
            _ => Ok(principal),
        }
    }

    /// Whether a token that was authenticated still holds, by its record, its revocation and its time; and when it ends by
    /// itself, by its present record.
    ///
    /// # Errors
    /// [`AuthError`] when it does not, or when the store does not say.
    pub async fn still_holds(
        &self,
        rules: &AuthRules,
        principal: &Principal,
        clock: &dyn Clock,
    ) -> Result<Option<UnixTime>, AuthError> {
        let (id, claims) = (principal.record_id(), principal.claims.as_ref());
        let stateless = claims.and_then(|claims| claims.stateless.as_deref());
        if let Some(stateless) = stateless {
            self.must_not_be_revoked(&id, stateless).await?;
        }
        let record = match (held(rules, &id, stateless), &self.store) {
            (Some(record), _) => record,
            (None, None) => return Err(AuthError::NoRecord),
            (None, Some(store)) => store.records.get(&id).await??,
        };
        if record.disabled {
            return Err(AuthError::Disabled);
        }
        let present = Principal { record, claims: principal.claims.clone() };
        match present.ends_at(rules.jwt.leeway()) {
            Some(end) if end <= clock.now() => Err(AuthError::Expired),
            end => Ok(end),
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
            // One answer that the token is revoked counts, although the other question has no answer.
            (Ok(true), _) | (_, Ok(true)) => Err(AuthError::Revoked),
            (Err(error), _) | (_, Err(error)) => Err(AuthError::Store(error)),
            (Ok(false), Ok(false)) => Ok(()),
        }
    }
}

/// The record of a token that needs no store: the configuration's, or that of claims which stand for a record.
fn held(
    rules: &AuthRules,
    id: &Arc<str>,
    stateless: Option<&Stateless>,
) -> Option<Arc<TokenRecord>> {
    rules.records.get(id).or(stateless.map(|stateless| &stateless.record)).cloned()
}
