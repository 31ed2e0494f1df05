//! `tollgate token rotate`: a new credential with the same record, and an end to the old one.
//!
//! The new credential is printed before the old token is ended: if a step fails, the client still holds a credential
//! that works.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::create::ttl;
use super::fields::printable;
use super::issued::Issued;
use super::name::NameArgument;
use super::pretty;
use super::session::{Session, StoreArguments, signer_failure};
use crate::base::clock::{Clock as _, SystemClock};
use crate::base::secret::Secret;
use crate::cli::{Failure, hidden, say, tell};
use crate::record::key::public_id;
use crate::tokens::life::rfc3339;
use crate::tokens::{
    EndError, FindError, OldTokenEnd, RotateError, Rotation, RotationRequest, storage_key,
};

/// Arguments of `tollgate token rotate`.
#[derive(Args, Debug)]
pub struct RotateArguments {
    #[command(flatten)]
    name: NameArgument,
    /// How long the old credential goes on working, at most; 0s revokes it at once
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = grace)]
    grace: Duration,
    /// How long the new one lives, instead of until the old one would have expired: 30m, 24h, 90days
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<Duration>,
    #[command(flatten)]
    store: StoreArguments,
    /// The HS256 secret to sign with, instead of the configuration's; better in TOLLGATE_JWT_SECRET
    #[arg(long, value_parser = hidden)]
    secret: Option<Secret>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the new token, then shortens the life of the old one.
///
/// # Errors
/// [`Failure::Data`] when there is no such token, or its record cannot be read; [`Failure::Unavailable`]
/// when the store does not answer: the old token then works as before.
pub fn run(arguments: &RotateArguments) -> Result<String, Failure> {
    let (name, jwt) = arguments.name.read_with_jwt()?;
    let session = arguments.store.open(arguments.secret.as_ref())?;
    let id =
        session.wait(session.tokens.find(&name)).map_err(|error| session.find_failure(&error))?;
    let request =
        RotationRequest { id: &id, jwt: jwt.as_ref(), grace: arguments.grace, life: arguments.ttl };
    let now = SystemClock::default().now();
    let rotation = session
        .wait(session.tokens.rotate(&request, now))
        .map_err(|error| failure(&session, &id, &error))?;
    print(&session, &rotation, arguments.json)?;
    if rotation.claims_unknown {
        tell(
            "What the old token claims besides its api_key, such as limits and routes, is not carried over; it is where - and the token on standard input are given instead of its ID.\n",
        );
    }
    session
        .wait(session.tokens.end_old(&rotation))
        .map_err(|error| not_ended(&session, &rotation, &error))?;
    Ok(if arguments.json { String::new() } else { format!("\n{}\n", sentence(&rotation)) })
}

/// Prints the new token. The old token must not end before the new credential was read.
fn print(session: &Session, rotation: &Rotation, as_json: bool) -> Result<(), Failure> {
    let issued = Issued { token: &rotation.issued, session };
    let text = if as_json { json(&issued, rotation)? } else { issued.to_text()? };
    let problem = match say(&text) {
        Ok(true) => return Ok(()),
        Ok(false) => "standard output is closed".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let new = storage_key(&rotation.issued.id);
    Err(Failure::Unavailable(format!(
        "{problem}: the old token works as before, and nobody has read the credential of {new}"
    )))
}

/// The failure of a rotation.
fn failure(session: &Session, id: &str, error: &RotateError) -> Failure {
    let shown = printable(id);
    match error {
        RotateError::Find(FindError::Configured { .. }) => Failure::Data(format!(
            "`{shown}` is in auth.tokens: make another with token create, and exchange the entries there"
        )),
        RotateError::Find(error) => session.find_failure(error),
        RotateError::ClaimsStand => Failure::Usage("with auth.jwt.require_record: false the claims of a JWT stand for its record: make another with token create, then revoke the old one".into()),
        RotateError::Unreadable { problem } => {
            Failure::Data(format!("the record of `{shown}` cannot be read: {problem}"))
        }
        RotateError::Disabled => Failure::Data(format!(
            "the record of `{shown}` is disabled: the new token would not work either"
        )),
        RotateError::NotBelieved => Failure::Data("no key that signs here has signed the credential on standard input, so what it claims is not believed: give its api_key instead, and the new token claims nothing of it".into()),
        RotateError::Claims(error) => {
            Failure::Data(format!("the claims cannot be read: {error}"))
        }
        RotateError::Expired => Failure::Data(
            "the token has expired: say with --ttl how long the new one lives".into(),
        ),
        RotateError::NeverExpires => Failure::Usage("the record never expires, which a JWT must: say with --ttl how long the new one lives".into()),
        RotateError::Signer(error) => signer_failure(error),
        RotateError::Key(error) => Failure::Internal(error.to_string()),
        RotateError::NotWritten { new_id, error } => {
            let error = session.store_failure(error);
            let new = storage_key(new_id);
            Failure::Unavailable(format!("{error}; the old token works as before. {new} may have been written: nobody has its credential"))
        }
    }
}

/// The failure after a rotation whose old token was not ended.
fn not_ended(session: &Session, rotation: &Rotation, error: &EndError) -> Failure {
    let problem = match error {
        EndError::Changed => error.to_string(),
        EndError::Store(error) => session.store_failure(error).to_string(),
    };
    let id = printable(public_id(&rotation.old_id));
    Failure::Unavailable(format!(
        "the new token works, and the old one as before, for {problem}: end it with tollgate token revoke {id}"
    ))
}

/// The end of the old token, for people.
fn sentence(rotation: &Rotation) -> String {
    let id = printable(public_id(&rotation.old_id));
    match rotation.end {
        OldTokenEnd::AtOnce => format!("The old one, {id}, is revoked."),
        OldTokenEnd::At(until) => format!("The old one, {id}, works until {}.", rfc3339(until)),
        OldTokenEnd::AsBefore(until) => {
            format!("The old one, {id}, works until {}, as before.", rfc3339(until))
        }
    }
}

/// The new token for programs, with the end of the old token.
fn json(issued: &Issued<'_>, rotation: &Rotation) -> Result<String, Failure> {
    let expires_at = match rotation.end {
        OldTokenEnd::AtOnce => None,
        OldTokenEnd::At(until) | OldTokenEnd::AsBefore(until) => Some(rfc3339(until)),
    };
    let mut object = issued.object();
    object.insert(
        "replaces".into(),
        json!({
            "api_key": public_id(&rotation.old_id),
            "storage_key": storage_key(&rotation.old_id),
            "revoked": rotation.end == OldTokenEnd::AtOnce,
            "expires_at": expires_at,
        }),
    );
    pretty(&Value::Object(object))
}

fn grace(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => ttl(text).map_err(|error| format!("{error}, or 0s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_a_time_or_nothing() {
        assert_eq!(grace("0s"), Ok(Duration::ZERO));
        assert_eq!(grace("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["", "soon", "-1s", "10ms", "100years"] {
            assert!(grace(text).is_err(), "{text:?}");
        }
    }
}
