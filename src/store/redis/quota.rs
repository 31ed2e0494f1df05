//! Quota in Redis: every decision is one atomic script, on the store's clock.
//!
//! The arithmetic is that of `quota::algorithm`; the script's comment says how counters are kept.

use async_trait::async_trait;
use fred::error::{Error, ErrorKind};
use fred::types::{Key, Value};

use super::RedisStore;
use super::client::{ADJUST, TAKE};
use crate::clock::UnixTime;
use crate::quota::Limit;
use crate::quota::rate::MAX_QUOTA;
use crate::store::{Adjustment, Grant, QuotaStore, StoreError};

/// How long an adjustment is remembered, so that it is not made twice, in milliseconds.
const ADJUSTED_FOR_MS: u64 = 60_000;

#[async_trait]
impl QuotaStore for RedisStore {
    async fn take(
        &self,
        subject: &str,
        limits: &[Limit],
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        let take = async |redis: std::sync::Arc<super::client::Connection>| {
            let numbers: Vec<u64> = redis.eval(TAKE, || input(subject, limits, wanted)).await?;
            match numbers.as_slice() {
                [now, granted, used @ ..] if used.len() == limits.len() => Ok(Grant {
                    granted: *granted,
                    now: UnixTime::from_micros(*now),
                    used: used.into(),
                }),
                _ => {
                    Err(Error::new(ErrorKind::Protocol, "unexpected answer from the quota script"))
                }
            }
        };
        self.client.call("take", take).await
    }

    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        id: u64,
    ) -> Result<(), StoreError> {
        let adjust = async |redis: std::sync::Arc<super::client::Connection>| {
            let input = || adjust_input(subject, limits, adjustment, id);
            redis.eval::<u64>(ADJUST, input).await.map(drop)
        };
        self.client.call("adjust", adjust).await
    }
}

/// The keys and arguments of `scripts/adjust.lua`.
fn adjust_input(
    subject: &str,
    limits: &[Limit],
    adjustment: &Adjustment,
    id: u64,
) -> (Vec<Key>, Vec<Value>) {
    let mark = format!("quota:{{{subject}}}:adjusted:{id}");
    let counters = limits.iter().map(|limit| counter_key(subject, limit));
    let keys = std::iter::once(mark).chain(counters).map(Key::from).collect();
    let mut arguments = vec![number(ADJUSTED_FOR_MS)];
    for (end, by) in &adjustment.windows {
        arguments.push(number(end.as_millis()));
        arguments.push(Value::Integer(*by));
    }
    (keys, arguments)
}

/// The keys and arguments of `scripts/take.lua`.
fn input(subject: &str, limits: &[Limit], wanted: u64) -> (Vec<Key>, Vec<Value>) {
    let keys = limits.iter().map(|limit| counter_key(subject, limit).into()).collect();
    let mut arguments = Vec::with_capacity(1 + 2 * limits.len());
    arguments.push(number(wanted.min(MAX_QUOTA)));
    for limit in limits {
        arguments.push(number(limit.quota));
        arguments.push(number(u64::try_from(limit.window.as_millis()).unwrap_or(u64::MAX)));
    }
    (keys, arguments)
}

/// The braces keep all counters of a subject in one slot of a cluster.
fn counter_key(subject: &str, limit: &Limit) -> String {
    format!("quota:{{{subject}}}:{}:{}", limit.name, limit.window.as_secs())
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_named_after_subject_limit_and_window() {
        let limit = Limit::parse("5/minute").unwrap();
        assert_eq!(counter_key("token:alice", &limit), "quota:{token:alice}:minute:60");
    }
}
