//! `tollgate token show` and `tollgate token revoke`: one record.

use clap::Args;

use super::fields::{plain, printable};
use super::name::NameArgument;
use super::records::{Entry, StoreArguments, kind, storage_key};
use super::{pretty, unknown};
use crate::cli::Failure;
use crate::record::key::public_id;

/// Arguments of `tollgate token show`.
#[derive(Args, Debug)]
pub struct ShowArguments {
    #[command(flatten)]
    name: NameArgument,
    #[command(flatten)]
    store: StoreArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `tollgate token revoke`.
#[derive(Args, Debug)]
pub struct RevokeArguments {
    #[command(flatten)]
    name: NameArgument,
    #[command(flatten)]
    store: StoreArguments,
}

/// Shows the record that a gateway would use.
///
/// # Errors
/// [`Failure::Data`] when there is none, [`Failure::Unavailable`] when Redis does not answer.
pub fn show(arguments: &ShowArguments) -> Result<String, Failure> {
    let name = arguments.name.read()?;
    let records = arguments.store.open()?;
    let id = records.find(&name)?;
    let entry = records.entry(&id)?.ok_or_else(|| unknown(&id))?;
    if arguments.json { pretty(&entry.to_json()) } else { Ok(sheet(&entry)) }
}

/// Deletes the record in Redis.
///
/// # Errors
/// [`Failure::Data`] when there is none, [`Failure::Unavailable`] when Redis does not answer.
pub fn revoke(arguments: &RevokeArguments) -> Result<String, Failure> {
    let name = arguments.name.read()?;
    let records = arguments.store.open()?;
    let id = records.find(&name)?;
    records.revoke(&id)?;
    Ok(format!("revoked {}\n", printable(public_id(&id))))
}

/// One record, a field a line.
fn sheet(entry: &Entry) -> String {
    let mut rows = vec![
        ("api_key".to_owned(), entry.public_id()),
        ("kind".into(), kind(&entry.id).into()),
        ("storage key".into(), printable(&storage_key(&entry.id))),
        ("kept_in".into(), entry.place.name().into()),
    ];
    let others = entry.record.iter().filter(|(name, _)| name.as_str() != "api_key");
    rows.extend(others.map(|(name, value)| (printable(name), plain(value))));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoredRecord;

    #[test]
    fn a_sheet_has_a_field_a_line() {
        let fields = [("limits", r#"["1/second","9/day"]"#), ("api_key", "k1")];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let record = StoredRecord::Fields(fields.into());
        let text = sheet(&Entry::stored("k1".into(), &record));
        assert_eq!(
            text,
            "api_key      k1\nkind         jwt\nstorage key  token:k1\nkept_in      redis\nlimits       1/second,9/day\n"
        );
    }
}
