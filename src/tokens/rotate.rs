//! Rotating a token: a new credential with the same record and the same counters, and an end to the old one.
//!
//! It takes two steps. The first writes the new record and gives back its credential; the caller passes the credential
//! on, and only then asks for the second step, which ends the old token. If a step fails, the client still holds a
//! credential that works. The claims of a JWT are in the JWT alone: a rotation that is given only the id carries over
//! no claim.

use std::time::Duration;

use serde_json::{Map, Value};

use super::create::{NewKeyError, new_jwt, new_key, put};
use super::life::{expiry, rfc3339};
use super::{CredentialKind, FindError, IssuedToken, KeptIn, SignerError, Tokens};
use crate::base::clock::UnixTime;
use crate::base::secret::Secret;
use crate::record::field::{API_KEY, COUNTS_AS, EXPIRES_AT};
use crate::record::key::{is_hash, public_id};
use crate::record::stored::fields;
use crate::record::{Grant, RecordError, TokenRecord};
use crate::store::{RecordStore, StoreError, StoredRecord};

/// How far two readings of one time may be apart.
const SLACK: Duration = Duration::from_secs(2);

/// A request for a rotation.
#[derive(Debug)]
pub struct RotationRequest<'a> {
    /// The id under which the record of the old token is stored.
    pub id: &'a str,
    /// The old JWT itself, where the caller has it: its claims are carried over.
    pub jwt: Option<&'a Secret>,
    /// How long the old token goes on working, at most; zero revokes it at once.
    pub grace: Duration,
    /// How long the new token lives, instead of until the old one would have expired.
    pub life: Option<Duration>,
}

/// A new token in place of an old one, which still works as before.
#[derive(Debug)]
#[must_use = "the old token works until it is ended"]
pub struct Rotation {
    /// The new token.
    pub issued: IssuedToken,
    /// The id of the old token.
    pub old_id: String,
    /// When the old token stops working.
    pub end: OldTokenEnd,
    /// Whether the old token may claim something that was not carried over.
    pub claims_unknown: bool,
    /// The record of the old token as it was read.
    old: StoredRecord,
}

/// When the old token stops working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTokenEnd {
    /// Now.
    AtOnce,
    /// At this time, which is earlier than before.
    At(UnixTime),
    /// At this time, as it would have anyway.
    AsBefore(UnixTime),
}

/// Why a token was not rotated: the old token works as before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RotateError {
    /// The token was not found, or cannot be changed here.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The claims of a JWT stand for its record, so there is no record that could be carried over.
    #[error("the claims of the JWT stand for its record")]
    ClaimsStand,
    /// The record cannot be read.
    #[error("the record cannot be read: {problem}")]
    Unreadable {
        /// The fault of the record.
        problem: String,
    },
    /// The record is disabled.
    #[error("the record is disabled: the new token would not work either")]
    Disabled,
    /// No key that signs here has signed the JWT.
    #[error("no key that signs here has signed the JWT, so what it claims is not believed")]
    NotBelieved,
    /// No gateway can read what the JWT claims.
    #[error("the claims cannot be read: {0}")]
    Claims(RecordError),
    /// The token has expired, and the new one was not given another life.
    #[error("the token has expired")]
    Expired,
    /// The record never expires, which a JWT must.
    #[error("the record never expires, which a JWT must")]
    NeverExpires,
    /// A JWT cannot be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] NewKeyError),
    /// The store did not take the new record. It may be written nevertheless, and its credential is lost.
    #[error("the new record was not written: {error}")]
    NotWritten {
        /// The id of the new record.
        new_id: String,
        /// The error of the store.
        error: StoreError,
    },
}

impl From<StoreError> for RotateError {
    fn from(error: StoreError) -> Self {
        Self::Find(error.into())
    }
}

/// Why the old token still works as before, beside the new one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndError {
    /// The record of the old token was changed meanwhile.
    #[error("its record was changed at the same time")]
    Changed,
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Tokens {
    /// Makes a new token with the record of an old one. The old token works as before until
    /// [`end_old`](Tokens::end_old).
    ///
    /// # Errors
    /// [`RotateError`].
    pub async fn rotate(
        &self,
        request: &RotationRequest<'_>,
        now: UnixTime,
    ) -> Result<Rotation, RotateError> {
        let store = self.rotating_store(request.id)?;
        let mut old = OldToken::read(store, request.id, now).await?;
        let claims = request.jwt.map(|jwt| self.claims_of(jwt)).transpose()?;
        let claims_unknown = claims.is_none() && !is_hash(request.id);
        let mut claims = claims.unwrap_or_default();
        // No gateway accepts a token with claims that cannot be read, such as `limits` beside `rate_limit`.
        let claimed = Grant::claimed(|name| claims.get(name).cloned());
        old.ends_as_claimed(claimed.map_err(RotateError::Claims)?.expires_at);
        claims.remove(EXPIRES_AT);
        let end = old.end(now, request.grace);

        let expires = match (request.life, old.expires) {
            (Some(life), _) => Some(expiry(now, life)),
            (None, Some(at)) if at <= now => return Err(RotateError::Expired),
            (None, at) => at,
        };
        let (id, credential) = match (CredentialKind::of(request.id), expires) {
            (CredentialKind::Key, _) => new_key()?,
            (CredentialKind::Jwt, Some(expires)) => new_jwt(self.signer()?, &claims, now, expires)?,
            (CredentialKind::Jwt, None) => return Err(RotateError::NeverExpires),
        };
        let mut record = fields(&old.stored);
        record.insert(API_KEY.into(), public_id(&id).into());
        // A rotation is no way to a second quota.
        record.insert(COUNTS_AS.into(), old.counts_as.as_str().into());
        if let Some(expires) = expires.filter(|at| old.said != Some(*at)) {
            record.insert(EXPIRES_AT.into(), rfc3339(expires).into());
        }
        if let Err(error) = put(store, &id, &record, expires).await {
            return Err(RotateError::NotWritten { new_id: id, error });
        }
        Ok(Rotation {
            issued: IssuedToken { id, record, credential, kept_in: KeptIn::Store },
            old_id: request.id.to_owned(),
            end,
            claims_unknown,
            old: old.stored,
        })
    }

    /// Ends the old token of a rotation as its [`end`](Rotation::end) says.
    ///
    /// # Errors
    /// [`EndError`]: both tokens work then.
    pub async fn end_old(&self, rotation: &Rotation) -> Result<(), EndError> {
        let Some(store) = self.store() else { return Ok(()) };
        let id = &rotation.old_id;
        match rotation.end {
            OldTokenEnd::AsBefore(_) => Ok(()),
            OldTokenEnd::AtOnce => Ok(store.delete(id).await.map(drop)?),
            OldTokenEnd::At(until) => {
                let after = expiring(&rotation.old, until);
                match store.shorten(id, until, &rotation.old, &after).await? {
                    true => Ok(()),
                    false => Err(EndError::Changed),
                }
            }
        }
    }

    /// The store, if the record of `id` is there and nowhere else.
    fn rotating_store(&self, id: &str) -> Result<&dyn RecordStore, RotateError> {
        if self.is_configured(id) {
            return Err(FindError::Configured { id: id.to_owned() }.into());
        }
        if self.claims_stand() && !is_hash(id) {
            return Err(RotateError::ClaimsStand);
        }
        Ok(self.store().ok_or_else(|| FindError::Unknown { id: id.to_owned() })?)
    }

    fn claims_of(&self, jwt: &Secret) -> Result<Map<String, Value>, RotateError> {
        self.signer()?.granted(jwt).ok_or(RotateError::NotBelieved)
    }
}

/// `record` with the expiry `until`.
fn expiring(record: &StoredRecord, until: UnixTime) -> StoredRecord {
    match record {
        StoredRecord::Fields(fields) => {
            let mut after = fields.clone();
            after.insert(EXPIRES_AT.into(), rfc3339(until));
            StoredRecord::Fields(after)
        }
        StoredRecord::Json(_) => {
            let mut after = fields(record);
            after.insert(EXPIRES_AT.into(), rfc3339(until).into());
            StoredRecord::Json(Value::Object(after).to_string())
        }
    }
}

/// The token that is replaced.
struct OldToken {
    stored: StoredRecord,
    /// The id of the token whose counters it uses.
    counts_as: String,
    /// The expiry in its record.
    said: Option<UnixTime>,
    /// When it would have expired: as its record says, or before, when the store forgets the record.
    expires: Option<UnixTime>,
}

impl OldToken {
    async fn read(store: &dyn RecordStore, id: &str, now: UnixTime) -> Result<Self, RotateError> {
        let stored = match store.record(id).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Err(FindError::Unknown { id: id.to_owned() }.into()),
            Err(StoreError::Unreadable(problem)) => {
                return Err(RotateError::Unreadable { problem });
            }
            Err(error) => return Err(error.into()),
        };
        let read = TokenRecord::read(&id.into(), &stored)
            .map_err(|error| RotateError::Unreadable { problem: error.to_string() })?;
        if read.disabled {
            return Err(RotateError::Disabled);
        }
        let said = read.grant.expires_at;
        // In whole seconds, as the new record will say it.
        let forgotten = store.kept_for(id).await?.map(|left| expiry(now + left, Duration::ZERO));
        // The two are one time, but for what passed while the store was asked.
        let forgotten = forgotten.filter(|at| said.is_none_or(|said| *at + SLACK < said));
        let counts_as = read.counts_as().to_owned();
        Ok(Self { stored, counts_as, said, expires: forgotten.or(said) })
    }

    /// Heeds the claim `expires_at`, which counts where the record says nothing.
    fn ends_as_claimed(&mut self, claimed: Option<UnixTime>) {
        let claimed = claimed.filter(|_| self.said.is_none()).map(|at| expiry(at, Duration::ZERO));
        self.expires = self.expires.into_iter().chain(claimed).min();
    }

    /// When it ends if `grace` is left to it.
    fn end(&self, now: UnixTime, grace: Duration) -> OldTokenEnd {
        let until = expiry(now, grace);
        match self.expires {
            _ if grace.is_zero() => OldTokenEnd::AtOnce,
            Some(expires) if expires <= until => OldTokenEnd::AsBefore(expires),
            _ => OldTokenEnd::At(until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_token_never_lives_longer_than_it_would_have() {
        let now = UnixTime::from_secs(1_000);
        let at = UnixTime::from_secs;
        for (expires, grace_secs, end) in [
            (None, 10, OldTokenEnd::At(at(1_010))),
            (Some(1_011), 10, OldTokenEnd::At(at(1_010))),
            (Some(1_010), 10, OldTokenEnd::AsBefore(at(1_010))),
            (Some(1_001), 10, OldTokenEnd::AsBefore(at(1_001))),
            (Some(1_001), 0, OldTokenEnd::AtOnce),
            (None, 0, OldTokenEnd::AtOnce),
        ] {
            let stored = StoredRecord::Json("{}".into());
            let counts_as = "old".to_owned();
            let old = OldToken { stored, counts_as, said: None, expires: expires.map(at) };
            assert_eq!(old.end(now, Duration::from_secs(grace_secs)), end, "{expires:?}");
        }
    }
}
