//! A line of an import: a record that gateways understand, or the reason why they would not.
//!
//! No message repeats a value of the line: in a line that is wrong, a key may stand in any place.

use std::collections::BTreeSet;

use csv_core::ReadRecordResult;
use serde_json::{Map, Value};

use super::error::RecordError;
use super::field::{self, API_KEY};
use super::grant::Draft;
use super::identity::{IDENTITIES, Identity, known, known_names};
use super::key;
use super::members::{Members, MembersError};
use super::stored::{NewRecord, texts};

/// The configuration's rules about records.
#[derive(Debug, Default)]
pub struct Rules {
    /// The plans that exist; `None` where no configuration is read.
    pub plans: Option<BTreeSet<String>>,
    /// Whether the claims of JWTs stand for their records, which no gateway reads then.
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
    /// The fault of the header.
    pub fn csv(header: &str, rules: Rules) -> Result<Self, String> {
        let mut columns: Vec<String> = Vec::new();
        let mut csv = csv_reader();
        for (nth, name) in cells(&mut csv, header)?.iter().enumerate() {
            let name = name.trim();
            let nth = nth + 1;
            if known(name).is_none() {
                return Err(format!(
                    "column {nth} is none of {}: the first line names the columns",
                    known_names()
                ));
            }
            if columns.iter().any(|column| column == name) {
                return Err(format!("column {nth} is a second `{name}`"));
            }
            columns.push(name.to_owned());
        }
        Ok(Self { columns: Some(columns), csv, rules })
    }

    /// The record that `line` describes.
    ///
    /// # Errors
    /// The fault of the line.
    pub fn read(&mut self, line: &str) -> Result<NewRecord, String> {
        let mut fields = match &self.columns {
            Some(columns) => csv_fields(columns, &cells(&mut self.csv, line)?)?,
            None => json_fields(line)?,
        };
        // The errors of an identity repeat no value of the line.
        let identity = Identity::read(|name| fields.get(name).cloned());
        let id = identity.map_err(|error| error.to_string())?.id;
        for name in IDENTITIES {
            fields.remove(name);
        }
        if self.rules.are_claims && !key::is_hash(&id) {
            return Err("api_key: with auth.jwt.require_record: false nobody reads this record, the claims stand for it".into());
        }
        let hidden = |error: &RecordError| error.without_values().to_string();
        let draft = Draft::read(|field| fields.get(field.name).cloned())
            .map_err(|faults| faults.iter().map(hidden).collect::<Vec<_>>().join(", and "))?;
        if let (Some(plans), Some(plan)) = (&self.rules.plans, &draft.grant.plan)
            && !plans.contains(plan.as_str())
        {
            return Err("plan: the configuration has no such plan".into());
        }
        let expires_at = draft.grant.expires_at;
        fields.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
        fields.insert(API_KEY.into(), key::public_id(&id).into());
        Ok(NewRecord { id, fields: texts(&fields), expires_at })
    }
}

/// A reader. Building its tables takes more time than reading a line, so a reader is kept.
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
    // The reader takes a carriage return for the end of the line: the rest would be lost.
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
        let value = match field::named(column) {
            Some(field) => field.of_cell(cell).map_err(|error| format!("{column}: {error}"))?,
            None => Some(cell.as_str().into()),
        };
        fields.extend(value.map(|value| (column.clone(), value)));
    }
    Ok(fields)
}

fn json_fields(line: &str) -> Result<Map<String, Value>, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        format!("is not JSON from byte {column} on")
    })?;
    let Value::Object(fields) = value else {
        return Err("is not a JSON object".into());
    };
    if !fields.keys().all(|name| known(name).is_some()) {
        return Err(format!("has a member that is none of {}", known_names()));
    }
    // The author of the file may have meant either of two members with one name.
    match Members::read(line.as_bytes(), known) {
        Err(error @ MembersError::Twice) => Err(error.to_string()),
        Err(MembersError::Form) | Ok(_) => Ok(fields),
    }
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
                r#"abc,"[""5/minute""]","[""/a,b""]",,1893456000,,,,"#,
                r#"{"key":"abc","limits":["5/minute"],"allowed_routes":["/a,b"],"expires_at":1893456000}"#,
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
            (",,,,,", "api_key: is missing"),
            ("@,bob,,,,", "more than one"),
            ("@", "has 1 values for 6 columns"),
            ("\"@,,,,,", "a quote is not closed"),
            ("@ x,,,,,", "key: is not"),
            ("a.@.c,,,,,", "key: has two dots"),
            ("tg_@,,,,,", "key: starts with tg_"),
            (",bob,@,,,", "limits[0]: `***` is not a rate"),
            (",bob,9/@,,,", "limits[0]: `***`"),
            (",bob,[@,,,", "limits: write values"),
            (",bob,,@,,", "plan: the configuration has no such plan"),
            (",bob,,,@,", "expires_at: is not a time"),
            (",bob,,,,@", "disabled: is not a boolean"),
            (",b\u{fc}b@,,,,", "api_key: is not printable"),
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
            (r#"{"@":{}}"#, "has a member that is none of api_key,"),
            (r#"{"key":["@"]}"#, "key: is a list; write text"),
            (r#"{"key":"@","disabled":true,"disabled":false}"#, "has a member twice"),
            (r#"{"key":"@","key":"x"}"#, "has a member twice"),
            (r#"{"key_sha256":"@"}"#, "key_sha256: is not a SHA-256"),
            (r#"{"key":"@","plan":3}"#, "plan: is a number"),
            (r#"{"key":"@","disabled":"true"}"#, "disabled: is not a boolean"),
            (
                r#"{"key":"@","allowed_routes":"/a"}"#,
                "allowed_routes: is a single text; write a list",
            ),
            (r#"{"key":"@","name":["@"]}"#, "name: is a list; write text"),
            (
                r#"{"key":"x","limits":[{"rate":"5/minute","@":1}]}"#,
                "limits[0]: a limit has no `***`",
            ),
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
