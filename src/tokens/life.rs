//! How long tokens live, and how the end is written.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};

use crate::base::clock::UnixTime;

/// The longest life of a token: ten years.
pub const MAX_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A life that no token can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a time from 1s to 10years")]
pub struct LifeError;

/// `life`, if a token can live so long.
///
/// # Errors
/// [`LifeError`] for less than a second and more than [`MAX_LIFE`].
pub fn check_life(life: Duration) -> Result<Duration, LifeError> {
    match (Duration::from_secs(1)..=MAX_LIFE).contains(&life) {
        true => Ok(life),
        false => Err(LifeError),
    }
}

/// When a token made at `now` expires: whole seconds, as `exp` has them.
pub fn expiry(now: UnixTime, life: Duration) -> UnixTime {
    UnixTime::from_secs(now.as_secs().saturating_add(life.as_secs()))
}

/// A time as RFC 3339 writes it, in UTC and whole seconds.
pub fn rfc3339(time: UnixTime) -> String {
    let time =
        i64::try_from(time.as_secs()).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
    time.unwrap_or(DateTime::<chrono::Utc>::MAX_UTC).to_rfc3339_opts(SecondsFormat::Secs, true)
}
