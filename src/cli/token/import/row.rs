//! What one line of a file says: a record that gateways understand, or why not.
//!
//! No message repeats a value of the line, for a key may stand in any place of a line that is wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::ValueEnum;
use csv_core::ReadRecordResult;
use serde_json::{Map, Value};

use crate::auth::key;
use crate::auth::members::Members;
use crate::auth::record::{Grant, TokenRecord};
use crate::base::secret::Secret;
use crate::cli::token::fields::texts;
use crate::store::{NewRecord, StoredRecord};
use crate::tokens::name::is_credential;

/// What names the token of a line.
const IDENTITIES: [&str; 3] = ["key", "key_sha256", "api_key"];

/// What a line may have besides what a record grants.
const OWN_COLUMNS: [&str; 5] = ["key", "key_sha256", "api_key", "name", "disabled"];

/// What a line may have.
const KNOWN: [&[&str]; 2] = [&OWN_COLUMNS, &Grant::MEMBERS];

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line of column names, then a record a line
    Csv,
    /// A JSON object a line
    Jsonl,
}

/// What a configuration says about records.
#[derive(Debug, Default)]
pub struct Rules {
    /// The plans there are; `None` where nobody knows.
    pub plans: Option<BTreeSet<String>>,
    /// Whether the claims of JWTs stand for their records, which nobody reads then.
    pub are_claims: bool,
}

/// Reads lines of one file.
pub struct Rows {
    /// The names of the columns; `None` where each line names its own.
    columns: Option<Vec<String>>,
    csv: Box<csv_core::Reader>,
    rules: Rules,
}

impl Rows {
    /// Rows of JSON.
    pub fn jsonl(rules: Rules) -> Self {
        Self { columns: None, csv: csv_reader(), rules }
    }

    /// Rows under the columns that `header` names.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn csv(header: &str, rules: Rules) -> Result<Self, String> {
        let mut columns: Vec<String> = Vec::new();
        let mut csv = csv_reader();
        for (nth, name) in cells(&mut csv, header)?.iter().enumerate() {
            let name = name.trim();
            let nth = nth + 1;
            if !is_known(name) {
                return Err(format!(
                    "column {nth} is none of {}: the first line names the columns",
                    known()
                ));
            }
            if columns.iter().any(|column| column == name) {
                return Err(format!("column {nth} is a second `{name}`"));
            }
            columns.push(name.to_owned());
        }
        Ok(Self { columns: Some(columns), csv, rules })
    }

    /// The record that `line` says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&mut self, line: &str) -> Result<NewRecord, String> {
        let mut fields = match &self.columns {
            Some(columns) => csv_fields(columns, &cells(&mut self.csv, line)?)?,
            None => json_fields(line)?,
        };
        let id = identity(&mut fields)?;
        if self.rules.are_claims && !key::is_hash(&id) {
            return Err("api_key: with auth.jwt.require_record: false nobody reads this record, the claims stand for it".into());
        }
        let shared: Arc<str> = id.as_str().into();
        let understood = |stored: StoredRecord| {
            TokenRecord::read(&shared, &stored)
                .map_err(|error| format!("{}: {}", error.field, without_values(&error.problem)))
        };
        if self.columns.is_none() {
            // What JSON says of types is lost in a hash.
            understood(StoredRecord::Json(Value::Object(fields.clone()).to_string()))?;
            if fields.get("name").is_some_and(|name| !name.is_string()) {
                return Err("name: must be text".into());
            }
        }
        fields.insert("api_key".into(), key::public_id(&id).into());
        let fields = texts(&fields);
        let record = understood(StoredRecord::Fields(fields.iter().cloned().collect()))?;
        if let (Some(plans), Some(plan)) = (&self.rules.plans, &record.grant.plan)
            && !plans.contains(plan.as_str())
        {
            return Err("plan: the configuration has no such plan".into());
        }
        Ok(NewRecord { id, fields, expires_at: record.grant.expires_at })
    }
}

fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|names| names.contains(&name))
}

fn known() -> String {
    KNOWN.concat().join(", ")
}

/// A reader; its tables take more time to build than a line to read.
fn csv_reader() -> Box<csv_core::Reader> {
    Box::new(csv_core::Reader::new())
}

/// The cells of a line of CSV (RFC 4180). A cell does not go on in the next line: a quote that is left
/// open would swallow the rest of the file.
fn cells(reader: &mut csv_core::Reader, line: &str) -> Result<Vec<String>, String> {
    let text = format!("{line}\n");
    let mut output = vec![0; text.len()];
    let mut ends = vec![0; text.matches(',').count() + 1];
    reader.reset();
    let (result, consumed, _, count) = reader.read_record(text.as_bytes(), &mut output, &mut ends);
    if result == ReadRecordResult::InputEmpty {
        return Err("a quote is not closed on the same line".into());
    }
    // To the reader a line ends there: what follows would be lost.
    if !text.get(consumed..).unwrap_or_default().trim().is_empty() {
        return Err("has a carriage return inside".into());
    }
    let mut start = 0;
    let cells = ends.iter().take(count).map(|&end| {
        let cell = output.get(start..end).unwrap_or_default();
        start = end;
        String::from_utf8(cell.to_vec()).ok()
    });
    match cells.collect() {
        Some(cells) if result == ReadRecordResult::Record => Ok(cells),
        _ => Err("is not a line of CSV".into()),
    }
}

fn csv_fields(columns: &[String], cells: &[String]) -> Result<Map<String, Value>, String> {
    if cells.len() != columns.len() {
        return Err(format!("has {} values for {} columns", cells.len(), columns.len()));
    }
    let mut fields = Map::new();
    for (column, cell) in columns.iter().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
        let value = match column.as_str() {
            "limits" | "allowed_routes" => list(cell).ok_or_else(|| {
                format!("{column}: write values with ; between them, or a JSON array")
            })?,
            _ => cell.as_str().into(),
        };
        fields.insert(column.clone(), value);
    }
    Ok(fields)
}

/// Several values in one cell.
fn list(cell: &str) -> Option<Value> {
    if cell.trim_start().starts_with('[') {
        return serde_json::from_str(cell).ok().filter(Value::is_array);
    }
    let values = cell.split(';').map(str::trim).filter(|value| !value.is_empty());
    Some(values.map(Value::from).collect())
}

fn json_fields(line: &str) -> Result<Map<String, Value>, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        format!("is not JSON from byte {column} on")
    })?;
    let Value::Object(mut fields) = value else {
        return Err("is not a JSON object".into());
    };
    if !fields.keys().all(|name| is_known(name)) {
        return Err(format!("has a member that is none of {}", known()));
    }
    // Of two members with one name, whoever wrote the file may have meant the other.
    if Members::read(line.as_bytes(), KNOWN).is_err() {
        return Err("has a member twice".into());
    }
    fields.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
    Ok(fields)
}

/// Takes out what names the token: what its record is stored under.
fn identity(fields: &mut Map<String, Value>) -> Result<String, String> {
    let named = IDENTITIES.iter().filter_map(|name| Some((*name, fields.remove(*name)?)));
    let named: Vec<_> = named.collect();
    let (name, value) = match named.as_slice() {
        [] => return Err("has no key, key_sha256 or api_key".into()),
        [(name, Value::String(text))] => (*name, Secret::new(text)),
        [(name, _)] => return Err(format!("{name}: must be text")),
        _ => return Err("has more than one of key, key_sha256 and api_key".into()),
    };
    let text = value.expose();
    let lower = text.to_ascii_lowercase();
    match name {
        "key" => match key::hash_of_written(text) {
            Ok(hash) => Ok(hash.as_ref().to_owned()),
            Err(error) => Err(format!("key: {error}")),
        },
        "key_sha256" if key::is_hash(&lower) => Ok(lower),
        "key_sha256" => {
            Err("key_sha256: must be the 64 hexadecimal digits of the key's SHA-256".into())
        }
        _ if key::is_hash(text) => {
            Err("api_key: is a SHA-256, under which only keys are stored: write key_sha256".into())
        }
        _ if is_credential(text) => {
            Err("api_key: is a credential: write a key under key, and of a JWT its api_key".into())
        }
        _ => Ok(text.to_owned()),
    }
}

/// `problem` without the values it repeats between backticks; signs such as `_` may stay.
fn without_values(problem: &str) -> String {
    let parts = problem.split('`').enumerate();
    let parts = parts.map(|(nth, part)| if nth % 2 == 1 && part.len() > 1 { "***" } else { part });
    parts.collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn plans() -> Rules {
        Rules { plans: Some(BTreeSet::from(["basic".to_owned()])), are_claims: false }
    }

    #[test]
    fn both_formats_say_the_same() {
        let header = "\"key\",limits, allowed_routes,plan,expires_at,name,disabled,rate_limit,organization_id";
        let mut csv = Rows::csv(header, plans()).unwrap();
        let mut jsonl = Rows::jsonl(plans());
        for (line, object) in [
            ("abc,,,,,,,,", r#"{"key":"abc","plan":null,"name":""}"#),
            (
                "abc,5/minute; 9/day;,/a/*,basic,2030-01-01T00:00:00Z,\"a, b\",true,,acme",
                r#"{"key":"abc","limits":["5/minute","9/day"],"allowed_routes":["/a/*"],"plan":"basic",
                    "expires_at":"2030-01-01T00:00:00Z","name":"a, b","disabled":true,"organization_id":"acme"}"#,
            ),
            (
                r#"abc,"[""5/minute""]","[""/a;b""]",,1893456000,,,,"#,
                r#"{"key":"abc","limits":["5/minute"],"allowed_routes":["/a;b"],"expires_at":1893456000}"#,
            ),
            ("abc,,,,,,,7,", r#"{"key":"abc","rate_limit":7}"#),
        ] {
            let record = csv.read(line).unwrap();
            assert_eq!(Ok(&record), jsonl.read(object).as_ref(), "{line}");
            assert_eq!(record.id, ABC);
            assert!(record.fields.contains(&("api_key".into(), ABC[..16].into())));
            assert!(!format!("{record:?}").contains("\"abc\""));
        }
        let record = jsonl.read(&format!(r#"{{"key_sha256":"{}"}}"#, ABC.to_uppercase()));
        assert_eq!(record.unwrap().id, ABC);
        assert_eq!(jsonl.read(r#"{"api_key":"bob"}"#).unwrap().id, "bob");
    }

    #[test]
    fn a_bad_line_is_named_by_its_field_and_not_repeated() {
        let secret = "hunter2hunter2";
        let mut rows = Rows::csv("key,api_key,limits,plan,expires_at,disabled", plans()).unwrap();
        for (line, problem) in [
            (",,,,,", "has no key"),
            ("@,bob,,,,", "more than one"),
            ("@", "has 1 values for 6 columns"),
            ("\"@,,,,,", "a quote is not closed"),
            ("@ x,,,,,", "key: is not"),
            ("a.@.c,,,,,", "key: has two dots"),
            ("tg_@,,,,,", "key: starts with tg_"),
            (",bob,@,,,", "limits: `***` is not a rate"),
            (",bob,9/@,,,", "limits: `***`"),
            (",bob,[@,,,", "limits: write values"),
            (",bob,,@,,", "plan: the configuration has no such plan"),
            (",bob,,,@,", "expires_at: must be"),
            (",bob,,,,@", "disabled: must be"),
            (",b\u{fc}b@,,,,", "api_key: must be printable"),
            (&format!(",{ABC},,,,"), "api_key: is a SHA-256"),
            (&format!(",tg_@{ABC},,,,"), "api_key: is a credential"),
            (",eyJ@.e30.c2ln,,,,", "api_key: is a credential"),
            (",bob,,,,\r,@,,,,", "has a carriage return inside"),
            (",bob,,\r@,,", "has a carriage return inside"),
        ] {
            let error = rows.read(&line.replace('@', secret)).unwrap_err();
            assert!(error.contains(problem) && !error.contains(secret), "{line}: {error}");
        }
        let mut rows = Rows::jsonl(Rules::default());
        for (line, problem) in [
            (r#""@""#, "is not a JSON object"),
            (r#"{"key":"@""#, "is not JSON from byte 23 on"),
            (r#"{"@":{}}"#, "has a member that is none of key,"),
            (r#"{"key":["@"]}"#, "key: must be text"),
            (r#"{"key":"@","disabled":true,"disabled":false}"#, "has a member twice"),
            (r#"{"key":"@","key":"x"}"#, "has a member twice"),
            (r#"{"key_sha256":"@"}"#, "key_sha256: must be"),
            (r#"{"key":"@","plan":3}"#, "plan: must be text"),
            (r#"{"key":"@","disabled":"true"}"#, "disabled: must be"),
            (r#"{"key":"@","allowed_routes":"/a"}"#, "allowed_routes: must be"),
            (r#"{"key":"@","name":["@"]}"#, "name: must be text"),
            (r#"{"key":"x","limits":[{"rate":"5/minute","@":1}]}"#, "limits: a limit has no `***`"),
        ] {
            let error = rows.read(&line.replace('@', secret)).unwrap_err();
            assert!(error.contains(problem) && !error.contains(secret), "{line}: {error}");
        }
    }

    #[test]
    fn a_header_names_each_column_once() {
        for (header, problem) in [
            ("tg_0123456789ABCDEFGHIJKLMNOPQRSTUV10DJZz,5/minute", "column 1 is none of"),
            ("key,limits,key", "column 3 is a second `key`"),
            ("key,", "column 2 is none of"),
            ("key;limits", "column 1 is none of"),
            ("\"key", "a quote is not closed"),
            ("key\r,limits", "has a carriage return inside"),
        ] {
            let error = Rows::csv(header, Rules::default()).map(drop).unwrap_err();
            assert!(error.contains(problem) && !error.contains("tg_"), "{header}: {error}");
        }
    }

    #[test]
    fn where_claims_stand_for_records_only_keys_have_any() {
        let mut rows = Rows::jsonl(Rules { are_claims: true, ..Rules::default() });
        assert_eq!(rows.read(r#"{"key":"abc"}"#).unwrap().id, ABC);
        let error = rows.read(r#"{"api_key":"bob"}"#).unwrap_err();
        assert!(error.contains("nobody reads this record") && !error.contains("bob"), "{error}");
    }
}
