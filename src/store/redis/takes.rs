//! Sends the takes of one turn of the event loop together, or in a few parts: a script call for many subjects.
//!
//! A call costs this process and Redis (a write, a wake-up, a look at the script) several times as much as a subject
//! in it. No take waits for further takes, and no call waits for the answer to another call. This file knows the
//! arguments and the answer of the script, not what a limit is.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fred::error::{Error, ErrorKind};
use fred::types::{Key, Value};
use futures_util::future::join_all;
use rmp::decode::{read_array_len, read_int};
use rmp::encode::write_uint;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::errors::{Cause, connection_lost, held_up};
use super::node::Session;
use super::patience::answer_by;
pub(super) use super::questions::Question;
use super::questions::Take;
use super::scripts::TAKE;
use crate::base::clock::UnixTime;
use crate::base::task::detach;
use crate::quota::Standing;
use crate::store::Grant;

/// Most subjects of one call: Redis does nothing else meanwhile.
const MOST_TOGETHER: usize = 64;

/// How many waiting takes are sent in a turn of the event loop, or a quarter of them where that is more. So Redis works
/// on the first part while the rest is sent, and this process works on the answers to the first part while Redis works
/// on the rest. If all were sent at once, this process and Redis would wait for each other.
const SENT_AT_ONCE: usize = 16;

/// Sends `question` together with the other questions of this moment, and returns by `deadline`. The call keeps the
/// deadline, on the runtime of the first question.
pub(super) async fn take(
    session: Arc<Session>,
    deadline: Instant,
    question: impl Fn() -> Question,
) -> Result<Grant, Error> {
    let (answer, answered) = oneshot::channel();
    let take = Take { question: question(), deadline, answer };
    let is_first = {
        let mut waiting = session.takes.waiting.lock();
        waiting.push(take);
        waiting.len() == 1
    };
    if is_first {
        detach(depart(Boarding(Some(Arc::clone(&session)))));
    }
    match answered.await.unwrap_or_else(|_| Err(connection_lost()))? {
        Some(grant) => Ok(grant),
        None => {
            // Boxed, because this is rare and large.
            let alone = session.while_open(Box::pin(ask_alone(&session, question)));
            answer_by(deadline, Some(&session.home), async { alone.await? }).await
        }
    }
}

/// The next call while questions come in. If it is dropped unsent, its questions end with an error, and the next
/// question starts a new call.
struct Boarding(Option<Arc<Session>>);

impl Drop for Boarding {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.takes.waiting.lock().clear();
        }
    }
}

/// Sends the waiting questions once every task that is ready has asked, a part in each turn of the event loop.
///
/// This task sends its part itself and spawns a task for the rest: spawning a task for this part first would keep
/// Redis waiting. The future is boxed because it spawns a future of its own type.
fn depart(mut boarding: Boarding) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        yield_now().await;
        let Some(session) = boarding.0.take() else { return };
        let (part, is_last) = {
            let mut waiting = session.takes.waiting.lock();
            let sent = waiting.len().min(SENT_AT_ONCE.max(waiting.len() / 4));
            (waiting.drain(..sent).collect::<Vec<_>>(), waiting.is_empty())
        };
        if !is_last {
            detach(depart(Boarding(Some(Arc::clone(&session)))));
        }
        let most = if session.takes.apart.load(Ordering::Relaxed) { 1 } else { MOST_TOGETHER };
        let mut part = part.into_iter();
        let mut calls = Vec::with_capacity(part.len().div_ceil(most));
        while part.len() > 0 {
            calls.push(ask(&session, part.by_ref().take(most).collect()));
        }
        // When the connection ends, the senders are dropped here, and the waiting takes end with an error.
        let _ = session.while_open(join_all(calls)).await;
    })
}

async fn ask(session: &Session, takes: Vec<Take>) {
    let now = Instant::now();
    let mut deadline = None;
    let (mut questions, mut answers) =
        (Vec::with_capacity(takes.len()), Vec::with_capacity(takes.len()));
    // A request that has gone away needs no answer.
    for take in takes.into_iter().filter(|take| !take.answer.is_closed()) {
        if take.deadline <= now {
            // Nothing but this process can have kept a question that long.
            let _ = take.answer.send(Err(held_up()));
            continue;
        }
        // The takes are in the order in which they were asked, so the first deadline is the earliest.
        deadline.get_or_insert(take.deadline);
        questions.push(take.question);
        answers.push(take.answer);
    }
    let Some(deadline) = deadline else { return };
    let limits: Vec<usize> = questions.iter().map(|question| question.keys.len()).collect();
    let (keys, arguments) = together(questions);
    let call = session.eval_loaded::<Bytes>(TAKE, keys, arguments);
    let result = match answer_by(deadline, Some(&session.home), call).await {
        Ok(numbers) => grants(&numbers, limits),
        Err(error) if must_ask_alone(&error) => {
            let apart = Cause::of(&error) == Cause::CrossSlot;
            session.takes.apart.fetch_or(apart, Ordering::Relaxed);
            Ok(limits.iter().map(|_| None).collect())
        }
        Err(error) => Err(error),
    };
    // The units of a request that went away meanwhile stay counted until the window ends.
    match result {
        Ok(grants) => answers.into_iter().zip(grants).for_each(|(answer, grant)| {
            let _ = answer.send(Ok(grant));
        }),
        Err(error) => answers.into_iter().for_each(|answer| {
            let _ = answer.send(Err(error.clone()));
        }),
    }
}

/// Whether each question must be sent in a call of its own, which also gives the server its script again.
fn must_ask_alone(error: &Error) -> bool {
    matches!(Cause::of(error), Cause::NoScript | Cause::CrossSlot)
}

async fn ask_alone(session: &Session, question: impl Fn() -> Question) -> Result<Grant, Error> {
    let limits = question().keys.len();
    let numbers: Bytes = session.eval(TAKE, || together(vec![question()])).await?;
    grants(&numbers, [limits])?.pop().flatten().ok_or_else(unexpected)
}

/// The keys and arguments of `scripts/take.lua`.
fn together(questions: Vec<Question>) -> (Vec<Key>, Vec<Value>) {
    let mut arguments = Vec::with_capacity(1);
    for run in questions.chunk_by(|question, next| question.limits == next.limits) {
        let mut packed = run[0].limits.clone();
        for question in run {
            // Writing to a Vec never fails.
            let _ = write_uint(&mut packed, question.wanted);
            let _ = write_uint(&mut packed, question.least);
        }
        arguments.push(Value::Bytes(packed.into()));
    }
    let mut keys = Vec::with_capacity(questions.len());
    keys.extend(questions.into_iter().flat_map(|question| question.keys));
    (keys, arguments)
}

/// Reads the answer of `scripts/take.lua` about subjects with so many limits each.
fn grants(
    mut answer: &[u8],
    limits: impl IntoIterator<Item = usize>,
) -> Result<Vec<Option<Grant>>, Error> {
    let length = read_array_len(&mut answer).map_err(|_| unexpected())?;
    let mut numbers = (0..length).map(|_| read_int::<i64, _>(&mut answer).ok());
    let mut next = || numbers.next().flatten().ok_or_else(unexpected);
    let whole = |number: i64| u64::try_from(number).map_err(|_| unexpected());
    let now = UnixTime::from_micros(whole(next()?)?);
    let mut grant = |limits: usize| {
        // Negative where the subject must be asked for in a call of its own.
        let granted = u64::try_from(next()?).ok();
        let standings = (0..limits).map(|_| {
            let (left, reset_us) = (whole(next()?)?, whole(next()?)?);
            Ok(Standing { left, reset_after: Duration::from_micros(reset_us) })
        });
        let standings = standings.collect::<Result<_, Error>>()?;
        Ok(granted.map(|granted| Grant { granted, now, standings }))
    };
    let grants = limits.into_iter().map(&mut grant).collect::<Result<_, Error>>()?;
    let is_whole = numbers.next().is_none() && answer.is_empty();
    if is_whole { Ok(grants) } else { Err(unexpected()) }
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Protocol, "unexpected answer from the quota script")
}

#[cfg(test)]
mod tests {
    use rmp::encode::{write_array_len, write_sint};

    use super::*;

    #[test]
    fn answers_are_read_subject_by_subject() {
        let standing =
            |left, reset_us| Standing { left, reset_after: Duration::from_micros(reset_us) };
        let now = UnixTime::from_micros(7);
        let packed = |numbers: &[i64]| {
            let mut packed = Vec::new();
            write_array_len(&mut packed, numbers.len() as u32).unwrap();
            for number in numbers {
                write_sint(&mut packed, *number).unwrap();
            }
            packed
        };
        let answer = packed(&[7, 1, 9, 60, -1, 0, 0, 0, 0, 2, 4, 5, 6, 8]);
        let read = grants(&answer, [1, 2, 2]).unwrap();
        let [Some(first), None, Some(third)] = &read[..] else { panic!("{read:?}") };
        assert_eq!((first.granted, first.now), (1, now));
        assert_eq!(first.standings[..], [standing(9, 60)]);
        assert_eq!((third.granted, third.now), (2, now));
        assert_eq!(third.standings[..], [standing(4, 5), standing(6, 8)]);
        for wrong in [&[][..], &[7], &[7, 1], &[7, 1, 9], &[7, 1, 9, 60, 1], &[-1, 1, 9, 60]] {
            assert!(grants(&packed(wrong), [1]).is_err(), "{wrong:?}");
        }
        let right = packed(&[7, 1, 9, 60]);
        assert!(grants(&right, [1]).is_ok());
        assert!(grants(&[&right[..], &[0]].concat(), [1]).is_err(), "more than the array");
        let fraction = [&right[..2], &[0xca, 0x40, 0x20, 0, 0], &right[3..]].concat();
        assert!(grants(&fraction, [1]).is_err(), "not a whole number");
    }
}
