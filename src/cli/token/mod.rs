//! `tollgate token`: the records of tokens, in Redis and in the configuration.
//!
//! It knows how records are kept and shown; what they mean to a request is the business of `auth`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{ConfigArguments, Failure, hidden};
use crate::config::Config;
use crate::secret::Secret;
use crate::store::StoredRecord;

mod admin;
pub(super) mod create;
mod example;

pub(super) use admin::Admin;
use create::CreateArguments;

/// The subcommands of `tollgate token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and store its record
    Create(CreateArguments),
    /// List the records
    List {
        #[command(flatten)]
        store: StoreArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one record
    Show {
        /// The token's api_key
        id: String,
        #[command(flatten)]
        store: StoreArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a record: each gateway refuses the token once its copy is older than auth.cache.ttl
    Revoke {
        /// The token's api_key
        id: String,
        #[command(flatten)]
        store: StoreArguments,
    },
}

/// Runs one of the subcommands; gives back what it has to say.
///
/// # Errors
/// [`Failure::Unavailable`] when Redis does not answer, [`Failure::Data`] when the token named does
/// not exist, [`Failure::Configuration`] and [`Failure::Usage`] as their names say.
pub fn run(command: &TokenCommand) -> Result<String, Failure> {
    match command {
        TokenCommand::Create(arguments) => create::run(arguments),
        TokenCommand::List { store, json } => {
            let entries = store.open()?.entries()?;
            if *json {
                return pretty(&entries.iter().map(Entry::to_json).collect());
            }
            Ok(table(&entries))
        }
        TokenCommand::Show { id, store, json } => {
            let entry = store.open()?.entry(id)?.ok_or_else(|| unknown(id))?;
            if *json { pretty(&entry.to_json()) } else { Ok(sheet(&entry)) }
        }
        TokenCommand::Revoke { id, store } => {
            store.open()?.revoke(id)?;
            Ok(format!("revoked {}\n", printable(id)))
        }
    }
}

/// Where records are kept; flattened into every subcommand.
#[derive(Args, Debug)]
pub struct StoreArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// The Redis that holds the records, instead of the configuration's
    #[arg(long, value_name = "URL", value_parser = hidden)]
    redis: Option<Secret>,
}

impl StoreArguments {
    /// Reads the configuration, unless `--redis` alone says enough, and connects to Redis if there
    /// is one.
    fn open(&self) -> Result<Records, Failure> {
        let config = match (&self.config.file, &self.redis) {
            (None, Some(_)) => None,
            _ => Some(self.config.load()?),
        };
        let configured =
            config.as_ref().and_then(|config| config.redis.as_ref()).map(|redis| &redis.url);
        let admin = self.redis.as_ref().or(configured).map(Admin::connect).transpose()?;
        Ok(Records { config, admin })
    }
}

/// The records that a gateway would see. Those of the configuration come before those of Redis.
struct Records {
    config: Option<Config>,
    admin: Option<Admin>,
}

impl Records {
    /// All records, those of each place sorted by id.
    fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let mut entries = self.configured();
        if let Some(admin) = &self.admin {
            entries
                .extend(admin.list()?.into_iter().map(|(id, record)| Entry::stored(id, &record)));
        }
        entries.sort_by(|a, b| (a.place, &a.id).cmp(&(b.place, &b.id)));
        Ok(entries)
    }

    /// The record of `id` that a gateway would use.
    fn entry(&self, id: &str) -> Result<Option<Entry>, Failure> {
        if let Some(entry) = self.configured().into_iter().find(|entry| entry.id == id) {
            return Ok(Some(entry));
        }
        let Some(admin) = &self.admin else {
            return Ok(None);
        };
        Ok(admin.record(id)?.map(|record| Entry::stored(id.to_owned(), &record)))
    }

    /// Deletes the record of `id`. One that the configuration holds can only be taken out there.
    fn revoke(&self, id: &str) -> Result<(), Failure> {
        let deleted = match &self.admin {
            Some(admin) => admin.delete(id)?,
            None => false,
        };
        if self.configured().iter().any(|entry| entry.id == id) {
            let id = printable(id);
            let message = format!(
                "`{id}` is in auth.tokens: take it out of the configuration and reload (SIGHUP)"
            );
            return Err(Failure::Data(message));
        }
        if deleted { Ok(()) } else { Err(unknown(id)) }
    }

    fn configured(&self) -> Vec<Entry> {
        let tokens = self.config.iter().flat_map(|config| &config.auth.tokens);
        tokens
            .map(|token| Entry {
                id: token.id.clone(),
                place: Place::Configuration,
                record: fields(&StoredRecord::Json(token.json.clone())),
            })
            .collect()
    }
}

/// A record and where it was found.
#[derive(Debug)]
struct Entry {
    id: String,
    place: Place,
    record: Map<String, Value>,
}

/// Where a record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Configuration,
    Redis,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Redis => "redis",
        }
    }
}

impl Entry {
    fn stored(id: String, record: &StoredRecord) -> Self {
        Self { id, place: Place::Redis, record: fields(record) }
    }

    fn to_json(&self) -> Value {
        json!({ "api_key": self.id, "kept_in": self.place.name(), "record": self.record })
    }

    /// A field as people read it; empty when the record does not have it.
    fn text(&self, field: &str) -> String {
        self.record.get(field).map(plain).unwrap_or_default()
    }
}

/// The fields of a record, whatever form it is kept in. What cannot be read is shown as it is.
fn fields(record: &StoredRecord) -> Map<String, Value> {
    match record {
        StoredRecord::Json(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::from_iter([("unreadable".to_owned(), Value::from(text.as_str()))]),
        },
        StoredRecord::Fields(fields) => fields
            .iter()
            .map(|(name, text)| {
                let value = match name.as_str() {
                    "allowed_routes" | "limits" | "rate_limit" | "disabled" => {
                        serde_json::from_str(text).ok()
                    }
                    _ => None,
                };
                (name.clone(), value.unwrap_or_else(|| Value::from(text.as_str())))
            })
            .collect(),
    }
}

/// A value without quotes and brackets.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => printable(&other.to_string()),
    }
}

/// `text` without control characters: a record must not steer the terminal it is shown on.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// One record, a field a line.
fn sheet(entry: &Entry) -> String {
    let mut rows = vec![
        ("api_key".to_owned(), printable(&entry.id)),
        ("kept_in".into(), entry.place.name().into()),
    ];
    let others = entry.record.iter().filter(|(name, _)| name.as_str() != "api_key");
    rows.extend(others.map(|(name, value)| (printable(name), plain(value))));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// All records, one a line under a heading.
fn table(entries: &[Entry]) -> String {
    let heading =
        ["API KEY", "EXPIRES", "PLAN", "ORGANIZATION", "LIMITS", "ROUTES", "NAME", "KEPT IN"];
    let mut rows = vec![heading.map(str::to_owned)];
    for entry in entries {
        let limits = ["limits", "rate_limit"].map(|field| entry.text(field)).concat();
        let [expires, plan, organization, routes, name] =
            ["expires_at", "plan", "organization_id", "allowed_routes", "name"]
                .map(|field| entry.text(field));
        let row = [
            printable(&entry.id),
            expires,
            plan,
            organization,
            limits,
            routes,
            name,
            entry.place.name().into(),
        ];
        rows.push(row.map(|cell| if cell.is_empty() { "-".into() } else { cell }));
    }
    let widths: [usize; 8] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 8]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::Internal(format!("writing JSON: {error}")))
}

fn unknown(id: &str) -> Failure {
    Failure::Data(format!("there is no token `{}`: see tollgate token list", printable(id)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash(fields: &[(&str, &str)]) -> StoredRecord {
        let owned = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
        StoredRecord::Fields(fields.iter().map(owned).collect::<HashMap<_, _>>())
    }

    #[test]
    fn a_hash_and_a_json_string_show_the_same() {
        let a =
            hash(&[("rate_limit", "100"), ("allowed_routes", r#"["/a","/b/*"]"#), ("name", "7")]);
        let b = StoredRecord::Json(
            r#"{"rate_limit":100,"allowed_routes":["/a","/b/*"],"name":"7"}"#.into(),
        );
        assert_eq!(fields(&a), fields(&b));
    }

    #[test]
    fn a_broken_record_is_shown_as_it_is() {
        assert_eq!(fields(&hash(&[("rate_limit", "many")]))["rate_limit"], "many");
        assert_eq!(fields(&StoredRecord::Json("[1]".into()))["unreadable"], "[1]");
    }

    #[test]
    fn the_table_lines_up_and_cannot_steer_the_terminal() {
        let record = hash(&[("rate_limit", "100"), ("name", "a\u{1b}[2Jb"), ("plan", "basic")]);
        let text = table(&[Entry::stored("k1".into(), &record)]);
        assert_eq!(
            text,
            "API KEY  EXPIRES  PLAN   ORGANIZATION  LIMITS  ROUTES  NAME    KEPT IN\n\
             k1       -        basic  -             100     -       a\u{fffd}[2Jb  redis\n"
        );
    }

    #[test]
    fn a_sheet_has_a_field_a_line() {
        let record = hash(&[("limits", r#"["1/second","9/day"]"#), ("api_key", "k1")]);
        let text = sheet(&Entry::stored("k1".into(), &record));
        assert_eq!(text, "api_key  k1\nkept_in  redis\nlimits   1/second,9/day\n");
    }
}
