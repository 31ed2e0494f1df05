//! `tollgate token rotate`: a new credential with the same record, and an end to the old one.
//!
//! The new record is written and its credential printed before the old one is touched: whatever
//! fails in between, one credential that somebody holds works. What a JWT claims is known to who holds it
//! only: given its id, nothing of it is carried over.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::create::{expiry, granted, new_jwt, new_key, rfc3339, ttl};
use super::fields::{fields, printable, texts};
use super::issue::{Issued, Kept};
use super::name::NameArgument;
use super::records::{Records, StoreArguments, storage_key};
use super::{Admin, pretty, unknown};
use crate::auth::key::{is_hash, public_id};
use crate::auth::record::{Grant, TokenRecord};
use crate::base::clock::{Clock as _, SystemClock, UnixTime};
use crate::base::secret::Secret;
use crate::cli::{Failure, hidden, say, tell};
use crate::store::StoredRecord;

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
/// when Redis does not answer: the old token then works as before.
pub fn run(arguments: &RotateArguments) -> Result<String, Failure> {
    let (name, jwt) = arguments.name.read_with_jwt()?;
    let records = arguments.store.open()?;
    let id = records.find(&name)?;
    let admin = in_redis(&records, &id)?;
    let now = SystemClock::default().now();
    let mut old = Old::read(admin, id, now)?;
    let config = records.config.as_ref();
    let secret = arguments.secret.as_ref();
    let claims = jwt.as_ref().map(|jwt| granted(jwt, secret, config)).transpose()?;
    let unknown_claims = claims.is_none() && !is_hash(&old.id);
    let mut claims = claims.unwrap_or_default();
    old.ends_as_claimed(claims.remove("expires_at"))?;
    let end = old.end(now, arguments.grace);

    let expires = match (arguments.ttl, old.expires) {
        (Some(ttl), _) => Some(expiry(now, ttl)),
        (None, Some(at)) if at <= now => {
            return Err(Failure::Data(
                "the token has expired: say with --ttl how long the new one lives".into(),
            ));
        }
        (None, at) => at,
    };
    let (new_id, credential) = match (is_hash(&old.id), expires) {
        (true, _) => new_key()?,
        (false, Some(expires)) => new_jwt(secret, config, &claims, now, expires)?,
        (false, None) => {
            return Err(Failure::Usage("the record never expires, which a JWT must: say with --ttl how long the new one lives".into()));
        }
    };
    let mut record = old.record.clone();
    record.insert("api_key".into(), public_id(&new_id).into());
    if let Some(expires) = expires.filter(|at| old.said != Some(*at)) {
        record.insert("expires_at".into(), rfc3339(expires).into());
    }
    admin.put(&new_id, &texts(&record), expires).map_err(|error| {
        let new = storage_key(&new_id);
        let message = format!("{error}; the old token works as before. {new} may have been written: nobody has its credential");
        Failure::Unavailable(message)
    })?;

    let kept = Kept::In(admin.place().to_owned());
    let issued = Issued { id: new_id, record, credential, kept, config };
    let text = if arguments.json { old.json(&issued, end)? } else { issued.to_text()? };
    let unread = match say(&text) {
        Ok(true) => None,
        Ok(false) => Some("standard output is closed".to_owned()),
        Err(failure) => Some(failure.to_string()),
    };
    if let Some(problem) = unread {
        let new = storage_key(&issued.id);
        let message = format!(
            "{problem}: the old token works as before, and nobody has read the credential of {new}"
        );
        return Err(Failure::Unavailable(message));
    }
    if unknown_claims {
        tell(
            "What the old token claims besides its api_key, such as limits and routes, is not carried over; it is where - and the token on standard input are given instead of its ID.\n",
        );
    }
    old.finish(admin, end)?;
    Ok(if arguments.json { String::new() } else { format!("\n{}\n", old.sentence(end)) })
}

/// Redis, if the record is there and nowhere else.
fn in_redis<'a>(records: &'a Records, id: &str) -> Result<&'a Admin, Failure> {
    if records.is_configured(id) {
        let message = format!(
            "`{}` is in auth.tokens: make another with token create, and exchange the entries there",
            printable(id)
        );
        return Err(Failure::Data(message));
    }
    if records.are_claims() && !is_hash(id) {
        return Err(Failure::Usage("with auth.jwt.require_record: false the claims of a JWT stand for its record: make another with token create, then revoke the old one".into()));
    }
    records.admin.as_ref().ok_or_else(|| unknown(id))
}

/// When the old token stops working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Now.
    AtOnce,
    /// Then, which is earlier than it was.
    At(UnixTime),
    /// When it would have anyway.
    AsBefore(UnixTime),
}

/// The token that is replaced.
struct Old {
    id: String,
    stored: StoredRecord,
    record: Map<String, Value>,
    /// What its record says.
    said: Option<UnixTime>,
    /// When it would have expired: as its record says, or before, when Redis forgets it.
    expires: Option<UnixTime>,
}

impl Old {
    fn read(admin: &Admin, id: String, now: UnixTime) -> Result<Self, Failure> {
        let stored = admin.record(&id)?.ok_or_else(|| unknown(&id))?;
        let read = TokenRecord::read(&id.as_str().into(), &stored).map_err(|error| {
            Failure::Data(format!("the record of `{}` cannot be read: {error}", printable(&id)))
        })?;
        if read.disabled {
            return Err(Failure::Data(format!(
                "the record of `{}` is disabled: the new token would not work either",
                printable(&id)
            )));
        }
        let said = read.grant.expires_at;
        // In whole seconds, as the new record will say it.
        let forgotten = admin.kept_for(&id)?.map(|left| expiry(now + left, Duration::ZERO));
        // The two are one time, but for what passed while Redis was asked.
        let forgotten = forgotten.filter(|at| said.is_none_or(|said| *at + SLACK < said));
        let record = fields(&stored);
        Ok(Self { id, stored, record, said, expires: forgotten.or(said) })
    }

    /// Heeds the claim `expires_at`, which counts where the record says nothing.
    fn ends_as_claimed(&mut self, claim: Option<Value>) -> Result<(), Failure> {
        let claimed = Grant::read(|name| claim.clone().filter(|_| name == "expires_at"));
        let claimed = claimed
            .map_err(|error| Failure::Data(format!("the claims cannot be read: {error}")))?
            .expires_at
            .filter(|_| self.said.is_none())
            .map(|at| expiry(at, Duration::ZERO));
        self.expires = self.expires.into_iter().chain(claimed).min();
        Ok(())
    }

    /// When it ends if `grace` is left to it.
    fn end(&self, now: UnixTime, grace: Duration) -> End {
        let until = expiry(now, grace);
        match self.expires {
            _ if grace.is_zero() => End::AtOnce,
            Some(expires) if expires <= until => End::AsBefore(expires),
            _ => End::At(until),
        }
    }

    /// Ends it.
    fn finish(&self, admin: &Admin, end: End) -> Result<(), Failure> {
        let done = match end {
            End::AsBefore(_) => return Ok(()),
            End::AtOnce => admin.delete(&self.id).map(|_| true),
            End::At(until) => self.shorten(admin, until),
        };
        let problem = match done {
            Ok(true) => return Ok(()),
            Ok(false) => "its record was changed at the same time".to_owned(),
            Err(failure) => failure.to_string(),
        };
        let id = printable(public_id(&self.id));
        Err(Failure::Unavailable(format!(
            "the new token works, and the old one as before, for {problem}: end it with tollgate token revoke {id}"
        )))
    }

    fn shorten(&self, admin: &Admin, until: UnixTime) -> Result<bool, Failure> {
        let after = match &self.stored {
            StoredRecord::Fields(fields) => {
                let mut after = fields.clone();
                after.insert("expires_at".into(), rfc3339(until));
                StoredRecord::Fields(after)
            }
            StoredRecord::Json(_) => {
                let mut after = self.record.clone();
                after.insert("expires_at".into(), rfc3339(until).into());
                StoredRecord::Json(Value::Object(after).to_string())
            }
        };
        admin.shorten(&self.id, until, &self.stored, &after)
    }

    fn sentence(&self, end: End) -> String {
        let id = printable(public_id(&self.id));
        match end {
            End::AtOnce => format!("The old one, {id}, is revoked."),
            End::At(until) => format!("The old one, {id}, works until {}.", rfc3339(until)),
            End::AsBefore(until) => {
                format!("The old one, {id}, works until {}, as before.", rfc3339(until))
            }
        }
    }

    /// The new token for programs, with what becomes of the old one.
    fn json(&self, issued: &Issued<'_>, end: End) -> Result<String, Failure> {
        let expires_at = match end {
            End::AtOnce => None,
            End::At(until) | End::AsBefore(until) => Some(rfc3339(until)),
        };
        let mut object = issued.object();
        object.insert(
            "replaces".into(),
            json!({
                "api_key": public_id(&self.id),
                "storage_key": storage_key(&self.id),
                "revoked": end == End::AtOnce,
                "expires_at": expires_at,
            }),
        );
        pretty(&Value::Object(object))
    }
}

/// How far two readings of one time may be apart.
const SLACK: Duration = Duration::from_secs(2);

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
    fn the_old_token_never_lives_longer_than_it_would_have() {
        let now = UnixTime::from_secs(1_000);
        let at = UnixTime::from_secs;
        for (expires, grace_secs, end) in [
            (None, 10, End::At(at(1_010))),
            (Some(1_011), 10, End::At(at(1_010))),
            (Some(1_010), 10, End::AsBefore(at(1_010))),
            (Some(1_001), 10, End::AsBefore(at(1_001))),
            (Some(1_001), 0, End::AtOnce),
            (None, 0, End::AtOnce),
        ] {
            let old = Old {
                id: "k".into(),
                stored: StoredRecord::Json("{}".into()),
                record: Map::new(),
                said: None,
                expires: expires.map(at),
            };
            assert_eq!(old.end(now, Duration::from_secs(grace_secs)), end, "{expires:?}");
        }
    }

    #[test]
    fn grace_is_a_time_or_nothing() {
        assert_eq!(grace("0s"), Ok(Duration::ZERO));
        assert_eq!(grace("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["", "soon", "-1s", "10ms", "100years"] {
            assert!(grace(text).is_err(), "{text:?}");
        }
    }
}
