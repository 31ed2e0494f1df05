//! The records that a gateway would see: those of its configuration, and those of Redis.
//!
//! Which come first, and how one is found by what people call it, is decided here.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Map, Value, json};

use super::fields::{plain, printable};
use super::name::Name;
use super::{Admin, unknown};
use crate::base::secret::Secret;
use crate::cli::{ConfigArguments, Failure, hidden};
use crate::config::Config;
use crate::record::stored::fields;
use crate::record::{StoredRecord, key};

/// Where records are kept; flattened into every subcommand.
#[derive(Args, Debug)]
pub struct StoreArguments {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// The Redis that holds the records, instead of the configuration's
    #[arg(long, value_name = "URL", value_parser = hidden)]
    pub redis: Option<Secret>,
}

impl StoreArguments {
    /// Reads the configuration, unless `--redis` alone says enough, and connects to Redis if there
    /// is one.
    ///
    /// # Errors
    /// [`Failure::Configuration`] and [`Failure::Usage`] as their names say.
    pub fn open(&self) -> Result<Records, Failure> {
        let config = match (&self.config.file, &self.redis) {
            (None, Some(_)) => None,
            _ => Some(self.config.load()?),
        };
        let configured = config
            .as_ref()
            .and_then(|config| config.startup.redis.as_ref())
            .map(|redis| &redis.url);
        let admin = self.redis.as_ref().or(configured).map(Admin::connect).transpose()?;
        Ok(Records { config, admin })
    }

    /// The same for what can be done without both.
    ///
    /// # Errors
    /// Whatever is wrong with what was named.
    pub fn open_if_named(&self) -> Result<Records, Failure> {
        match self.open() {
            Err(Failure::Usage(_)) if self.config.file.is_none() && self.redis.is_none() => {
                Ok(Records { config: None, admin: None })
            }
            records => records,
        }
    }
}

/// The records that a gateway would see. Those of the configuration come before those of Redis.
pub struct Records {
    /// The configuration, unless Redis was named without one.
    pub config: Option<Config>,
    /// Redis, where there is one.
    pub admin: Option<Admin>,
}

impl Records {
    /// What the record of `name` is stored under. That there is one is known only where it had to be
    /// searched, and tokens need records.
    ///
    /// # Errors
    /// [`Failure::Data`] when `name` fits none or several.
    pub fn find(&self, name: &Name) -> Result<String, Failure> {
        let wanted = match name {
            Name::Id(id) => return Ok(id.clone()),
            Name::PublicId(wanted) => wanted,
        };
        let mut ids: BTreeSet<String> =
            self.configured().into_iter().map(|entry| entry.id).collect();
        let lower = wanted.to_ascii_lowercase();
        if let Some(admin) = &self.admin {
            ids.extend(admin.ids(&lower)?);
            if admin.record(wanted)?.is_some() {
                ids.insert(wanted.clone());
            }
        }
        ids.retain(|id| {
            id == wanted || (key::is_hash(id) && (key::public_id(id) == lower || *id == lower))
        });
        match ids.pop_first() {
            None if self.are_claims() => Ok(wanted.clone()),
            None => Err(unknown(wanted)),
            Some(id) if ids.is_empty() => Ok(id),
            Some(first) => {
                let all: Vec<_> = std::iter::once(first).chain(ids).collect();
                Err(Failure::Data(format!("several tokens are called so: {}", all.join(", "))))
            }
        }
    }

    /// The record of `id` that a gateway would use.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when Redis does not answer.
    pub fn entry(&self, id: &str) -> Result<Option<Entry>, Failure> {
        if let Some(entry) = self.configured().into_iter().find(|entry| entry.id == id) {
            return Ok(Some(entry));
        }
        let Some(admin) = &self.admin else {
            return Ok(None);
        };
        Ok(admin.record(id)?.map(|record| Entry::stored(id.to_owned(), &record)))
    }

    /// Whether the claims of JWTs stand for their records.
    pub fn are_claims(&self) -> bool {
        self.config.as_ref().is_some_and(|config| !config.live.auth.jwt.rules.require_record)
    }

    /// Deletes the record of `id`, or revokes a token that needs none. One that the configuration holds
    /// can only be taken out there.
    ///
    /// # Errors
    /// [`Failure::Data`] when it is not in Redis, [`Failure::Unavailable`] when Redis does not answer.
    pub fn revoke(&self, id: &str) -> Result<(), Failure> {
        if self.is_configured(id) {
            let id = printable(id);
            let message = format!(
                "`{id}` is in auth.tokens: take it out of the configuration and reload (SIGHUP)"
            );
            return Err(Failure::Data(message));
        }
        let deleted = match &self.admin {
            Some(admin) => admin.delete(id)?,
            None => false,
        };
        match &self.admin {
            Some(admin) if self.are_claims() && !key::is_hash(id) => admin.revoke(id),
            _ if deleted => Ok(()),
            _ => Err(unknown(id)),
        }
    }

    /// Whether the record of `id` is one of the configuration.
    pub fn is_configured(&self, id: &str) -> bool {
        self.configured().iter().any(|entry| entry.id == id)
    }

    /// The records of the configuration.
    pub fn configured(&self) -> Vec<Entry> {
        let tokens = self.config.iter().flat_map(|config| &config.live.auth.tokens);
        tokens
            .map(|token| Entry {
                id: token.id.to_string(),
                place: Place::Configuration,
                record: token.fields.clone(),
            })
            .collect()
    }
}

/// A record and where it was found.
#[derive(Debug)]
pub struct Entry {
    /// What it is stored under.
    pub id: String,
    /// Where.
    pub place: Place,
    /// Its fields.
    pub record: Map<String, Value>,
}

/// Where a record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under `auth.tokens`.
    Configuration,
    /// In Redis.
    Redis,
}

impl Place {
    /// The place in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Redis => "redis",
        }
    }
}

impl Entry {
    /// A record that Redis holds.
    pub fn stored(id: String, record: &StoredRecord) -> Self {
        Self { id, place: Place::Redis, record: fields(record) }
    }

    /// The token's public id.
    pub fn public_id(&self) -> String {
        printable(key::public_id(&self.id))
    }

    /// The record for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "api_key": key::public_id(&self.id),
            "kind": kind(&self.id),
            "storage_key": storage_key(&self.id),
            "kept_in": self.place.name(),
            "record": self.record,
        })
    }

    /// A field as people read it; empty when the record does not have it.
    pub fn text(&self, field: &str) -> String {
        self.record.get(field).map(plain).unwrap_or_default()
    }
}

/// What kind of credential the record of `id` belongs to.
pub fn kind(id: &str) -> &'static str {
    if key::is_hash(id) { "key" } else { "jwt" }
}

/// The key in Redis of the record of `id`.
pub fn storage_key(id: &str) -> String {
    format!("token:{id}")
}
