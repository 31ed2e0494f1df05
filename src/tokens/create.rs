//! Making a token: a record, and the JWT or key that is its credential.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::life::expiry;
use super::{KeptIn, Signer, SignerError, TokenSpec, Tokens};
use crate::base::clock::UnixTime;
use crate::base::secret::Secret;
use crate::quota::RateError;
use crate::record::stored::texts;
use crate::record::{RecordError, TokenRecord};
use crate::record::{field, key};
use crate::store::{NewRecord, RecordStore, StoreError, StoredRecord};

/// Kinds of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A signed JWT that names the record.
    Jwt,
    /// A random key; stores and configurations hold its SHA-256 only.
    Key,
}

impl CredentialKind {
    /// The kind of the credential whose record is stored under `id`.
    pub fn of(id: &str) -> Self {
        if key::is_hash(id) { Self::Key } else { Self::Jwt }
    }

    /// The kind in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Key => "key",
        }
    }
}

/// A token that was made. Its credential is known here and nowhere else.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The id under which the record is stored.
    pub id: String,
    /// The record.
    pub record: Map<String, Value>,
    /// The credential, as a client sends it.
    pub credential: Secret,
    /// Where the record is.
    pub kept_in: KeptIn,
}

/// Why no token was made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateError {
    /// There is no such plan.
    #[error("there is no plan `{plan}`")]
    UnknownPlan {
        /// The plan that was asked for.
        plan: String,
        /// The plans there are.
        known: Vec<String>,
    },
    /// The limits do not go together.
    #[error(transparent)]
    Limits(#[from] RateError),
    /// No gateway could read the record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A JWT cannot be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] NewKeyError),
    /// The store did not take the record. It may be written nevertheless, and its credential is lost.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why no key was made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NewKeyError {
    /// The system has no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
    /// The new value is not a key.
    #[error("the new key {0}")]
    Form(key::KeyError),
}

impl Tokens {
    /// Makes a token and writes its record, where there is a store and the token needs one.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(
        &self,
        kind: CredentialKind,
        spec: &TokenSpec,
        now: UnixTime,
    ) -> Result<IssuedToken, CreateError> {
        self.check_plan(spec.plan.as_deref())?;
        let expires = expiry(now, spec.life);
        let in_claims = kind == CredentialKind::Jwt && self.claims_stand();
        let (id, credential) = match kind {
            CredentialKind::Jwt => {
                let claims = if in_claims { claims_of(spec.record("", now)?) } else { Map::new() };
                new_jwt(self.signer()?, &claims, now, expires)?
            }
            CredentialKind::Key => new_key()?,
        };
        let record = spec.record(key::public_id(&id), now)?;
        must_be_readable(&id, &record)?;
        let kept_in = match self.store() {
            _ if in_claims => KeptIn::Claims,
            None => KeptIn::Nowhere,
            Some(store) => {
                put(store, &id, &record, Some(expires)).await?;
                KeptIn::Store
            }
        };
        Ok(IssuedToken { id, record, credential, kept_in })
    }

    /// Refuses a plan that the configuration does not have.
    fn check_plan(&self, plan: Option<&str>) -> Result<(), CreateError> {
        match (plan, &self.rules.plans) {
            (Some(plan), Some(plans)) if !plans.contains(plan) => Err(CreateError::UnknownPlan {
                plan: plan.to_owned(),
                known: plans.iter().cloned().collect(),
            }),
            _ => Ok(()),
        }
    }
}

/// Writes the record of `id`, which the store deletes at `expires_at`.
pub(super) async fn put(
    store: &dyn RecordStore,
    id: &str,
    record: &Map<String, Value>,
    expires_at: Option<UnixTime>,
) -> Result<(), StoreError> {
    store.put(&NewRecord { id: id.to_owned(), fields: texts(record), expires_at }).await
}

/// A new id, and the JWT that names it and claims `grant`.
pub(super) fn new_jwt(
    signer: &Signer,
    grant: &Map<String, Value>,
    now: UnixTime,
    expires: UnixTime,
) -> Result<(String, Secret), SignerError> {
    let id = Uuid::now_v7().to_string();
    let credential = signer.sign(&id, grant, now, expires)?;
    Ok((id, credential))
}

/// A new key, and the hash under which its record is stored.
pub(super) fn new_key() -> Result<(String, Secret), NewKeyError> {
    let key = key::generate().map_err(NewKeyError::Randomness)?;
    let hash = key::hash_of_written(key.expose()).map_err(NewKeyError::Form)?;
    Ok((hash.as_ref().to_owned(), key))
}

/// The claims that stand for a record; `exp` says when they end.
fn claims_of(mut record: Map<String, Value>) -> Map<String, Value> {
    record.retain(|name, _| field::is_claim(name) && name != field::EXPIRES_AT);
    record
}

/// Refuses a record that no gateway could read, for example one with a name that fits no header field.
fn must_be_readable(id: &str, record: &Map<String, Value>) -> Result<(), RecordError> {
    let stored = StoredRecord::Fields(texts(record).into_iter().collect());
    TokenRecord::read(&id.into(), &stored).map(drop)
}
