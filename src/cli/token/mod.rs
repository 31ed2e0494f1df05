//! `tollgate token`: the records of tokens, in the store and in the configuration.
//!
//! It knows arguments and text; the room `tokens` does the work.

use clap::Subcommand;
use serde_json::Value;

use super::Failure;

mod create;
mod example;
mod fields;
mod import;
mod issued;
mod list;
mod name;
mod record;
mod rotate;
mod session;
mod show;

pub(super) use session::Connection;

/// The subcommands of `tollgate token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and store its record
    Create(create::CreateArguments),
    /// List the records, page by page
    List(list::ListArguments),
    /// Show one record
    Show(show::ShowArguments),
    /// Delete a record: every gateway refuses the token at once
    Revoke(show::RevokeArguments),
    /// Make a new credential with the same record, and let the old one expire soon
    Rotate(rotate::RotateArguments),
    /// Write many records, from CSV or JSON lines
    Import(import::ImportArguments),
}

/// Runs a subcommand. Returns the rest of the text to print.
///
/// # Errors
/// [`Failure::Unavailable`] when the store does not answer, [`Failure::Data`] when the token named does
/// not exist or lines of a file are bad, [`Failure::Configuration`] and [`Failure::Usage`] as their
/// names say.
pub fn run(command: &TokenCommand) -> Result<String, Failure> {
    match command {
        TokenCommand::Create(arguments) => create::run(arguments),
        TokenCommand::List(arguments) => list::run(arguments),
        TokenCommand::Show(arguments) => show::show(arguments),
        TokenCommand::Revoke(arguments) => show::revoke(arguments),
        TokenCommand::Rotate(arguments) => rotate::run(arguments),
        TokenCommand::Import(arguments) => import::run(arguments),
    }
}

fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::Internal(format!("writing JSON: {error}")))
}
