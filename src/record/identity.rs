//! The member that names the token of a written record: the `key` itself, its `key_sha256`, or the `api_key` of a JWT.
//!
//! A configuration and an import name tokens so. No message repeats a written value, which may be a credential.

use serde_json::Value;

use super::error::{RecordError, instead, is_a};
use super::field::{self, API_KEY, FIELDS, OUTER_SPACE};
use super::grant::HeaderText;
use super::key;

/// An opaque key, which is not kept.
const KEY: &str = "key";

/// The SHA-256 of an opaque key.
const KEY_SHA256: &str = "key_sha256";

/// The members that can name a token.
pub const IDENTITIES: [&str; 3] = [API_KEY, KEY, KEY_SHA256];

/// The token that a record belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The id that the record is stored under.
    pub id: String,
    /// The member that names the token.
    pub named_by: &'static str,
}

impl Identity {
    /// Reads the one member that names the token; `null` counts as absent.
    ///
    /// # Errors
    /// [`RecordError`] when there is none, when there are several, or when its value is wrong.
    pub fn read(member: impl Fn(&str) -> Option<Value>) -> Result<Self, RecordError> {
        let given =
            |name: &'static str| Some((name, member(name).filter(|value| !value.is_null())?));
        let mut given = IDENTITIES.into_iter().filter_map(given);
        match (given.next(), given.next()) {
            (None, _) => Err(RecordError::new(
                API_KEY,
                "is missing; write the api_key of a JWT, or the key or key_sha256 of an opaque key",
            )),
            (Some((named_by, value)), None) => {
                let id = match &value {
                    Value::String(text) => id(named_by, text),
                    other => Err(instead(is_a(other), allowed(named_by))),
                };
                id.map(|id| Self { id, named_by })
                    .map_err(|problem| RecordError::new(named_by, problem))
            }
            _ => Err(RecordError::of_record(
                "names more than one of api_key, key and key_sha256; write one of them",
            )),
        }
    }
}

/// A member that a written record may have: what names its token, or a field.
pub fn known(name: &str) -> Option<&'static str> {
    let identity = IDENTITIES.into_iter().find(|known| *known == name);
    let field = field::named(name).filter(|field| !field.is_of_store);
    identity.or_else(|| field.map(|field| field.name))
}

/// Every [known] member, for a message.
pub fn known_names() -> String {
    let fields = FIELDS.iter().filter(|field| !field.is_of_store);
    let fields = fields.map(|field| field.name).filter(|name| *name != API_KEY);
    IDENTITIES.into_iter().chain(fields).collect::<Vec<_>>().join(", ")
}

fn allowed(name: &str) -> &'static str {
    match name {
        API_KEY => "printable ASCII text (quote numbers)",
        _ => "text (quote numbers)",
    }
}

/// The id under which the record is stored, of the token that `text` names.
fn id(name: &str, text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    match name {
        KEY => key::hash_of_written(text)
            .map(|hash| hash.as_ref().to_owned())
            .map_err(|error| format!("{error}; `tollgate token create --kind key` makes one")),
        KEY_SHA256 if key::is_hash(&lower) => Ok(lower),
        KEY_SHA256 => {
            Err("is not a SHA-256; write its 64 hexadecimal digits, as sha256sum prints them"
                .into())
        }
        _ if key::is_hash(text) => {
            Err("is a SHA-256, under which only keys are stored; write key_sha256".into())
        }
        _ if key::is_credential(text) => {
            Err("is a credential; write a key under key, and of a JWT its api_key".into())
        }
        _ if text.is_empty() || HeaderText::read(text).is_none() => {
            Err(instead("is not printable", allowed(name)))
        }
        _ if text.starts_with(' ') || text.ends_with(' ') => {
            Err(instead(OUTER_SPACE, allowed(name)))
        }
        _ => Ok(text.to_owned()),
    }
}
