//! One request of an HTTP/2 connection, as its session and the task that watches it share it.
//!
//! Both run in one task, so that the lock is never waited for.

use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::part::{Part, Unsent};
use super::turn;
use super::waiting::{Waiting, WaitingAnswer};
use crate::listener::connection::Entry;
use crate::listener::control::RequestControl;
use crate::listener::end::RequestEnd;
use crate::listener::timer::poll_deadline;
use crate::listener::watch::Watched;

/// What the requests of a connection share with the connection's task.
#[derive(Debug)]
pub struct Shared {
    /// How the connection came in.
    pub entry: Entry,
    since: Instant,
    /// Requests that are being worked on.
    handlers: AtomicUsize,
    /// When the last request has ended, in milliseconds since `since`.
    last_end: AtomicU64,
    /// When the client has taken bytes of an answer last, in the same measure.
    last_taken: AtomicU64,
    /// Parts of answers that were sent since the last look.
    answered: AtomicU32,
    /// The answers that wait for the client.
    waiting: Arc<Waiting>,
    /// Wakes the connection's task when the connection must end after its requests.
    pub close: Notify,
}

impl Shared {
    /// Nothing yet, of a connection that came in like this.
    pub fn new(entry: Entry) -> Self {
        Self {
            entry,
            since: Instant::now(),
            handlers: AtomicUsize::new(0),
            last_end: AtomicU64::new(0),
            last_taken: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            waiting: Arc::default(),
            close: Notify::new(),
        }
    }

    /// Requests that are being worked on, also those whose client has left.
    pub fn handlers(&self) -> usize {
        self.handlers.load(Ordering::Relaxed)
    }

    /// When the last request has ended.
    pub fn last_end(&self) -> Instant {
        self.since + Duration::from_millis(self.last_end.load(Ordering::Relaxed))
    }

    /// When the client has taken bytes of an answer last.
    pub fn last_taken(&self) -> Instant {
        self.since + Duration::from_millis(self.last_taken.load(Ordering::Relaxed))
    }

    /// Notes that the client takes bytes of an answer.
    pub fn client_takes(&self) {
        self.last_taken.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Parts of answers that were sent since the last call.
    pub fn take_answered(&self) -> u32 {
        self.answered.swap(0, Ordering::Relaxed)
    }

    /// Counts a request that is being worked on.
    pub fn begin(self: &Arc<Self>) -> Handler {
        self.handlers.fetch_add(1, Ordering::Relaxed);
        Handler(Arc::clone(self))
    }
}

/// A request that is being worked on, until this is dropped.
#[derive(Debug)]
pub struct Handler(Arc<Shared>);

impl Drop for Handler {
    fn drop(&mut self) {
        self.0.last_end.store(self.0.now(), Ordering::Relaxed);
        self.0.handlers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request, for everyone who has a part in it.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    unsent: Arc<Unsent>,
    state: Mutex<StreamState>,
}

impl Stream {
    /// The request that is answered through `respond`.
    pub fn new(respond: SendResponse<Part>, shared: Arc<Shared>) -> Self {
        let state = StreamState {
            respond,
            body: None,
            has_ended: false,
            waiting: None,
            write_due: None,
            rest_timer: None,
            control: RequestControl::default(),
        };
        let unsent = Arc::new(Unsent::new(Arc::clone(&shared)));
        Self(Arc::new(Inner { shared, unsent, state: Mutex::new(state) }))
    }

    /// How the connection of the request came in.
    pub fn entry(&self) -> &Entry {
        &self.0.shared.entry
    }

    /// The state of the request.
    pub fn lock(&self) -> MutexGuard<'_, StreamState> {
        self.0.state.lock()
    }

    /// When the client has taken bytes of any answer of the connection last.
    pub fn last_taken(&self) -> Instant {
        self.0.shared.last_taken()
    }

    /// Ends the connection after the requests that it has begun.
    pub fn close_connection(&self) {
        self.0.shared.close.notify_one();
    }

    /// Sends `data`, as far as the client takes it at once, and the end of the answer after the last byte of `data`, if it
    /// is the `last`. Ready when h2 has all of `data`.
    pub fn poll_send(
        &self,
        data: &mut Bytes,
        last: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        let mut state = self.lock();
        let sent = self.poll_send_locked(&mut state, data, last, cx);
        state.control.pace.writes(sent.is_ready());
        match (&sent, &state.waiting) {
            (Poll::Pending, None) => {
                state.waiting = Some(WaitingAnswer::begin(&self.0.shared.waiting));
                if self.0.shared.waiting.is_full() {
                    turn::end();
                }
            }
            (Poll::Ready(_), Some(_)) => state.waiting = None,
            _ => {}
        }
        sent
    }

    /// Waits while the request must rest: its answer waits for the client, and so do too many others of the connection.
    pub fn poll_work(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.shared.waiting.is_full() {
            if self.lock().must_rest(cx) {
                return Poll::Pending;
            }
            turn::shorten();
        }
        Poll::Ready(())
    }

    fn poll_send_locked(
        &self,
        state: &mut StreamState,
        data: &mut Bytes,
        last: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        state.control.check_deadline(cx);
        loop {
            let writer = state.writer()?;
            let sent = match data.len() {
                0 => Bytes::new(),
                wanted => {
                    writer.reserve_capacity(wanted.min(TURN));
                    let room = match writer.capacity() {
                        0 => match ready!(writer.poll_capacity(cx)) {
                            // Woken too early: the next look waits.
                            Some(Ok(0)) => continue,
                            Some(Ok(room)) => room,
                            Some(Err(error)) => return Poll::Ready(Err(error.into())),
                            None => return Poll::Ready(Err(SendError::ClientGone)),
                        },
                        room => room,
                    };
                    data.split_to(wanted.min(room).min(TURN))
                }
            };
            let is_end = last && data.is_empty();
            let is_part = !sent.is_empty();
            let part = if is_part { Part::of(sent, &self.0.unsent) } else { Part::from(sent) };
            writer.send_data(part, is_end)?;
            state.has_ended |= is_end;
            if is_part {
                self.0.shared.answered.fetch_add(1, Ordering::Relaxed);
                state.control.byte_passes();
            }
            if data.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits until the client has taken what h2 has of the answer.
    pub fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if self.0.unsent.poll_taken(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.lock();
        state.control.check_deadline(cx);
        state.check_cut()?;
        state.poll_gone(cx).map(|()| Err(SendError::ClientGone))
    }
}

/// The most that one answer sends before others may send.
const TURN: usize = 16 * 1024;

/// The reason that a part of an answer cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection's task has ended the request.
    #[error(transparent)]
    Ended(#[from] RequestEnd),
    /// The client has left.
    #[error("the client has closed the stream")]
    ClientGone,
    /// h2 refuses.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The answer has no header yet.
    #[error("the answer has no header")]
    NoHeader,
}

/// The state of a request.
#[derive(Debug)]
pub struct StreamState {
    respond: SendResponse<Part>,
    /// The body of the answer, once its header is sent.
    body: Option<SendStream<Part>>,
    /// Whether the end of the answer was sent.
    has_ended: bool,
    /// Present while the answer waits for the client.
    waiting: Option<WaitingAnswer>,
    /// When the client must have taken bytes of an answer that waits.
    write_due: Option<Instant>,
    /// Wakes a request that rests at that time.
    rest_timer: Option<Pin<Box<Sleep>>>,
    /// The state that the hooks of the request share with the task that watches it.
    pub control: RequestControl,
}

impl StreamState {
    /// Whether the end of the answer was sent.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sets when the client must have taken bytes of an answer that waits.
    pub fn set_write_due(&mut self, due: Instant) {
        self.write_due = Some(due);
    }

    /// Notes that no one sends the answer on.
    pub fn stop_waiting(&mut self) {
        self.waiting = None;
    }

    /// Sends a header that precedes the answer.
    pub fn send_informational(&mut self, header: Response<()>) -> Result<(), SendError> {
        self.check_cut()?;
        Ok(self.respond.send_informational(header)?)
    }

    /// Sends the header of the answer, and its end, if it is the `last` of it.
    pub fn send_header(&mut self, header: Response<()>, last: bool) -> Result<(), SendError> {
        self.check_cut()?;
        self.body = Some(self.respond.send_response(header, last)?);
        self.has_ended = last;
        self.control.answer_begins();
        self.control.byte_passes();
        Ok(())
    }

    /// Sends the trailers, which end the answer.
    pub fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), SendError> {
        // These may tell why the answer was cut.
        self.body.as_mut().ok_or(SendError::NoHeader)?.send_trailers(trailers)?;
        self.has_ended = true;
        Ok(())
    }

    /// Resets the stream, unless the answer has ended.
    pub fn reset(&mut self, reason: Reason) {
        if !self.has_ended {
            self.respond.send_reset(reason);
            self.has_ended = true;
        }
    }

    /// Resets the stream, also when only h2 still has parts of the answer.
    pub fn give_up(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
        self.has_ended = true;
    }

    /// Waits until the client resets the stream or the connection ends.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let gone = match &mut self.body {
            Some(body) => body.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        gone.map(drop)
    }

    /// Whether the answer waits for the client, and may do so for longer. The task of `cx` is woken otherwise.
    fn must_rest(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(_), Some(body)) = (&self.waiting, &mut self.body) else { return false };
        self.control.check_deadline(cx);
        // The turn in which the answer began to wait may have had no budget left for its timer.
        let is_late =
            self.write_due.is_some_and(|due| poll_deadline(&mut self.rest_timer, due, cx));
        if is_late || self.control.end().is_some() {
            return false;
        }
        while body.capacity() == 0 {
            match body.poll_capacity(cx) {
                // Woken too early: the next look waits.
                Poll::Ready(Some(Ok(_))) => {}
                // The stream has ended.
                Poll::Ready(_) => return false,
                Poll::Pending => return true,
            }
        }
        false
    }

    fn writer(&mut self) -> Result<&mut SendStream<Part>, SendError> {
        self.check_cut()?;
        self.body.as_mut().ok_or(SendError::NoHeader)
    }

    fn check_cut(&self) -> Result<(), SendError> {
        Ok(self.control.check_cut()?)
    }
}

impl Watched for Stream {
    type Leaving = ();

    fn with<R>(&self, act: impl FnOnce(&mut RequestControl) -> R) -> R {
        act(&mut self.lock().control)
    }

    fn upload(&self) -> Option<(u64, RawFd)> {
        self.lock().control.upload()
    }

    fn leaving(&self) -> io::Result<()> {
        Ok(())
    }

    fn poll_left(&self, (): &mut (), cx: &mut Context<'_>) -> bool {
        let mut state = self.lock();
        state.control.end().is_none() && state.poll_gone(cx).is_ready()
    }
}
