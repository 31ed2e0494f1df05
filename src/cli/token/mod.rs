//! `tollgate token`: the records of tokens, in Redis and in the configuration.
//!
//! It knows how records are kept and shown; what they mean to a request is the business of `auth`.

use clap::Subcommand;
use serde_json::Value;

use super::Failure;
use crate::record::key::is_credential;

mod admin;
pub(super) mod create;
mod example;
mod fields;
mod import;
mod issue;
mod list;
mod name;
mod records;
mod rotate;
mod show;

pub(super) use admin::Admin;
use fields::printable;

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

/// Runs one of the subcommands; gives back what is left to say.
///
/// # Errors
/// [`Failure::Unavailable`] when Redis does not answer, [`Failure::Data`] when the token named does
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

fn unknown(id: &str) -> Failure {
    // What was meant to be an id may be a credential.
    if id.len() > MAX_SHOWN || is_credential(id) {
        return Failure::Data("there is no such token: see tollgate token list".into());
    }
    Failure::Data(format!("there is no token `{}`: see tollgate token list", printable(id)))
}

/// The longest id that is repeated when nothing is known of it, in bytes: a SHA-256 has as many.
const MAX_SHOWN: usize = 64;
