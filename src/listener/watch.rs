//! Watches a request that takes long, whatever its protocol is, and ends it when it must not go on.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use pingora_core::server::ShutdownWatch;
use rustix::net::Shutdown;
use tokio::time::Sleep;

use super::control::RequestControl;
use super::end::{RequestEnd, TokenEnds, TunnelDeadline};
use super::timer::poll_deadline;
use crate::auth::Principal;
use crate::base::descriptor::duplicate;

/// A request that can be watched.
pub trait Watched {
    /// Waits for the client to leave during an upload. Pingora reads no more bytes of the client while the upstream takes no
    /// more of the body.
    type Leaving;

    /// Does something with the control of the request.
    fn with<R>(&self, act: impl FnOnce(&mut RequestControl) -> R) -> R;

    /// The upload that the client may leave: its number, and the socket of the upstream. `None` when the body has arrived
    /// whole.
    fn upload(&self) -> Option<(u64, RawFd)>;

    /// Begins to wait for the client to leave.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    fn leaving(&self) -> io::Result<Self::Leaving>;

    /// Whether the client has left. Otherwise the task of `cx` is woken when it may have.
    fn poll_left(&self, leaving: &mut Self::Leaving, cx: &mut Context<'_>) -> bool;
}

/// An upload whose client may leave.
struct Upload<L> {
    number: u64,
    leaving: L,
    upstream: OwnedFd,
}

impl<L> Upload<L> {
    fn new(number: u64, upstream: RawFd, leaving: io::Result<L>) -> io::Result<Self> {
        Ok(Self { number, leaving: leaving?, upstream: duplicate(upstream)? })
    }

    /// Ends the connection to the upstream, so that Pingora's write fails.
    fn stop(&self) {
        // An error means that it has ended already.
        let _ = rustix::net::shutdown(&self.upstream, Shutdown::Both);
    }
}

/// Lets Pingora go on with a request that takes long, and ends the request when its token does not hold any more, when
/// no byte has passed for too long, when its client leaves while the upstream takes no more of the body, or when `shutdown` becomes
/// true and the request may be left. `token_end` waits for the end of a token.
pub async fn watch<W: Watched, T>(
    watched: &W,
    mut processing: impl Future<Output = T> + Unpin,
    token_end: &(impl Fn(Principal) -> TokenEnds + ?Sized),
    shutdown: &ShutdownWatch,
) -> T {
    let mut shutdown = shutdown.clone();
    let mut draining = pin!(shutdown.wait_for(|down| *down));
    let mut drains = false;
    let mut token: Option<TokenEnds> = None;
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    let mut upload: Option<Upload<W::Leaving>> = None;
    poll_fn(|cx| {
        loop {
            if let Some(principal) = watched.with(RequestControl::take_principal) {
                token = Some(token_end(principal));
            }
            if let Some(waiting) = &mut token
                && let Poll::Ready(end) = waiting.as_mut().poll(cx)
            {
                token = None;
                watched.with(|control| control.set_end(RequestEnd::Token(end)));
                // The upstream may take no more of the body.
                if let Some(upload) = &upload {
                    upload.stop();
                }
            }
            if !drains && draining.as_mut().poll(cx).is_ready() {
                drains = true;
                watched.with(RequestControl::drain);
            }
            let tunnel = watched.with(|control| control.tunnel());
            if let Some(tunnel) = tunnel
                && poll_deadline(&mut timer, tunnel.due(), cx)
            {
                watched.with(|control| control.set_end(tunnel.reason));
            }
            if let Poll::Ready(output) = Pin::new(&mut processing).poll(cx) {
                return Poll::Ready(output);
            }
            // Pingora may just have said whose token it is, or that there is a tunnel or an upload.
            upload = match watched.upload() {
                None => None,
                // Another attempt has another socket. Without descriptors left, Pingora's timeouts must do.
                Some((number, upstream)) => upload
                    .take()
                    .filter(|upload| upload.number == number)
                    .or_else(|| Upload::new(number, upstream, watched.leaving()).ok()),
            };
            if let Some(upload) = &mut upload
                && watched.poll_left(&mut upload.leaving, cx)
            {
                watched.with(|control| control.set_end(RequestEnd::ClientGone));
                upload.stop();
            }
            let is_earlier = |new: TunnelDeadline| {
                tunnel.is_none_or(|old: TunnelDeadline| new.due() < old.due())
            };
            let has_news = watched.with(|control| {
                control.has_principal() || control.tunnel().is_some_and(is_earlier)
            });
            if !has_news {
                return Poll::Pending;
            }
        }
    })
    .await
}
