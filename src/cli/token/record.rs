//! One record, as programs and people read it.

use serde_json::{Value, json};

use super::fields::{plain, printable};
use crate::record::key;
use crate::tokens::{CredentialKind, FoundRecord, KeptIn, storage_key};

/// The record for programs.
pub fn to_json(found: &FoundRecord) -> Value {
    json!({
        "api_key": key::public_id(&found.id),
        "kind": CredentialKind::of(&found.id).name(),
        "storage_key": storage_key(&found.id),
        "kept_in": kept_in(found),
        "record": found.fields,
    })
}

/// The token's public id.
pub fn public_id(found: &FoundRecord) -> String {
    printable(key::public_id(&found.id))
}

/// Where the record is, in one word.
pub fn kept_in(found: &FoundRecord) -> &'static str {
    match found.kept_in {
        KeptIn::Configuration => "configuration",
        KeptIn::Store => "redis",
        KeptIn::Claims => "claims",
        KeptIn::Nowhere => "nowhere",
    }
}

/// A field as people read it; empty when the record does not have it.
pub fn text(found: &FoundRecord, field: &str) -> String {
    found.fields.get(field).map(plain).unwrap_or_default()
}
