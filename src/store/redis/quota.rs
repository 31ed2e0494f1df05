//! Quota in Redis: every decision is one atomic script, on the store's clock.
//!
//! The arithmetic is that of `quota::counter`; the scripts' comments say how counters are kept.

use async_trait::async_trait;
use fred::types::{Key, Value};
use rmp::encode::{write_str, write_uint};

use super::RedisStore;
use super::client::ADJUST;
use super::keys::Keys;
use super::takes::Question;
use crate::quota::rate::MAX_QUOTA;
use crate::quota::{Algorithm, Limit};
use crate::store::{Adjustment, Grant, QuotaStore, StoreError};

/// How long a return of units is remembered, so that the same units are not given back twice, in milliseconds.
const RETURNED_FOR_MS: u64 = 60_000;

/// How long a report of units that were admitted without Redis is remembered, in milliseconds: a gateway repeats the
/// report until Redis has answered.
const TOLD_FOR_MS: u64 = 3_600_000;

#[async_trait]
impl QuotaStore for RedisStore {
    async fn take_at_least(
        &self,
        subject: &str,
        limits: &[Limit],
        least: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        let keys = &self.client.keys;
        self.client.take(|| question(keys, subject, limits, least, wanted)).await
    }

    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        id: u64,
    ) -> Result<(), StoreError> {
        let adjust = async |redis: std::sync::Arc<super::client::Connection>| {
            let input = || adjust_input(&self.client.keys, subject, limits, adjustment, id);
            redis.eval::<u64>(ADJUST, input).await.map(drop)
        };
        self.client.write("adjust", adjust).await
    }
}

/// The keys and arguments of `scripts/adjust.lua`.
fn adjust_input(
    keys: &Keys,
    subject: &str,
    limits: &[Limit],
    adjustment: &Adjustment,
    id: u64,
) -> (Vec<Key>, Vec<Value>) {
    let mark = format!("{}quota:{{{subject}}}:adjusted:{id}", keys.prefix());
    let counters = limits.iter().map(|limit| counter_key(keys, subject, limit));
    let all = std::iter::once(mark).chain(counters).map(Key::from).collect();
    let tells = adjustment.changes.iter().any(|(_, by)| *by > 0);
    let mut arguments = vec![number(if tells { TOLD_FOR_MS } else { RETURNED_FOR_MS })];
    for (limit, (mark, by)) in limits.iter().zip(&adjustment.changes) {
        arguments.extend(described(limit));
        arguments.push(number(mark.as_micros()));
        arguments.push(Value::Integer(*by));
    }
    (all, arguments)
}

fn question(keys: &Keys, subject: &str, limits: &[Limit], least: u64, wanted: u64) -> Question {
    Question {
        keys: limits.iter().map(|limit| counter_key(keys, subject, limit).into()).collect(),
        limits: packed(limits),
        least: least.min(MAX_QUOTA),
        wanted: wanted.min(MAX_QUOTA),
    }
}

/// Limits as `scripts/take.lua` reads them.
fn packed(limits: &[Limit]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(32);
    // Writing to a Vec never fails.
    let _ = write_uint(&mut packed, limits.len() as u64);
    for limit in limits {
        let _ = write_str(&mut packed, kind(limit.algorithm));
        for number in [limit.quota, window_ms(limit), limit.capacity()] {
            let _ = write_uint(&mut packed, number);
        }
    }
    packed
}

/// A limit as `scripts/adjust.lua` reads it.
fn described(limit: &Limit) -> [Value; 4] {
    let kind = Value::from_static_str(kind(limit.algorithm));
    [kind, number(limit.quota), number(window_ms(limit)), number(limit.capacity())]
}

fn window_ms(limit: &Limit) -> u64 {
    u64::try_from(limit.window.as_millis()).unwrap_or(u64::MAX)
}

fn kind(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::FixedWindow => "fixed",
        Algorithm::SlidingWindow => "sliding",
        Algorithm::SlidingLog => "log",
        Algorithm::TokenBucket { .. } => "bucket",
    }
}

/// The braces keep all counters of a subject in one slot of a cluster. Each kind has keys of its own, because no kind
/// can read the counter of another kind.
fn counter_key(keys: &Keys, subject: &str, limit: &Limit) -> String {
    let mut digits = itoa::Buffer::new();
    let window = digits.format(limit.window.as_secs());
    // Concatenation is cheaper than the formatter, and every call comes through here.
    let start = [keys.prefix(), "quota:{", subject, "}:", &limit.name, ":", window];
    match limit.algorithm {
        Algorithm::FixedWindow => start.concat(),
        other => [&start.concat(), ":", kind(other)].concat(),
    }
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_named_after_subject_limit_and_window() {
        let (keys, prefixed) = (Keys::default(), Keys::new("a:"));
        let limit = Limit::parse("5/minute").unwrap();
        let named = counter_key(&prefixed, "token:alice", &limit);
        assert_eq!(named, "a:quota:{token:alice}:minute:60");
        assert_eq!(counter_key(&keys, "token:alice", &limit), "quota:{token:alice}:minute:60");
        let limit = Limit { algorithm: Algorithm::SlidingLog, ..limit };
        assert_eq!(counter_key(&keys, "token:alice", &limit), "quota:{token:alice}:minute:60:log");
    }
}
