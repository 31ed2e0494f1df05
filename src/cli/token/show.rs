//! `tollgate token show` and `tollgate token revoke`: one record.

use clap::Args;

use super::fields::{plain, printable};
use super::name::{NameArgument, unknown};
use super::session::StoreArguments;
use super::{pretty, record};
use crate::cli::Failure;
use crate::record::key::public_id;
use crate::tokens::{CredentialKind, FoundRecord, storage_key};

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
/// [`Failure::Data`] when there is none, [`Failure::Unavailable`] when the store does not answer.
pub fn show(arguments: &ShowArguments) -> Result<String, Failure> {
    let name = arguments.name.read()?;
    let session = arguments.store.open(None)?;
    let tokens = &session.tokens;
    let id = session.wait(tokens.find(&name)).map_err(|error| session.find_failure(&error))?;
    let found = session.wait(tokens.record(&id)).map_err(|error| session.store_failure(&error))?;
    let found = found.ok_or_else(|| unknown(&id))?;
    if arguments.json { pretty(&record::to_json(&found)) } else { Ok(sheet(&found)) }
}

/// Deletes the record in the store.
///
/// # Errors
/// [`Failure::Data`] when there is none, [`Failure::Unavailable`] when the store does not answer.
pub fn revoke(arguments: &RevokeArguments) -> Result<String, Failure> {
    let name = arguments.name.read()?;
    let session = arguments.store.open(None)?;
    let revoke = async {
        let id = session.tokens.find(&name).await?;
        session.tokens.revoke(&id).await.map(|()| id)
    };
    let id = session.wait(revoke).map_err(|error| session.find_failure(&error))?;
    Ok(format!("revoked {}\n", printable(public_id(&id))))
}

/// One record, a field a line.
fn sheet(found: &FoundRecord) -> String {
    let mut rows = vec![
        ("api_key".to_owned(), record::public_id(found)),
        ("kind".into(), CredentialKind::of(&found.id).name().into()),
        ("storage key".into(), printable(&storage_key(&found.id))),
        ("kept_in".into(), record::kept_in(found).into()),
    ];
    let others = found.fields.iter().filter(|(name, _)| name.as_str() != "api_key");
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
        let text = sheet(&FoundRecord::stored("k1", &record));
        assert_eq!(
            text,
            "api_key      k1\nkind         jwt\nstorage key  token:k1\nkept_in      redis\nlimits       1/second,9/day\n"
        );
    }
}
