//! How the gateway leaves a WebSocket or a stream of events when it drains: neither would end by itself in time, and its client
//! goes on elsewhere as soon as it learns that the connection has ended. This file must not know when the gateway drains.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use pingora_proxy::Session;
use tokio::time::timeout;

use super::context::RequestContext;
use super::websocket::{Frames, GOING_AWAY};
use crate::listener::request as client_request;

/// How long the client may take to end its side of a WebSocket.
const LINGER: Duration = Duration::from_secs(1);

/// The point of an answer at which the gateway may leave.
pub enum Farewell {
    /// Anywhere: the body ends, and clients drop an event that is not whole.
    Events,
    /// Between two frames of the upstream.
    WebSocket(Frames),
}

impl Farewell {
    /// For the tunnel after a 101 with these `headers`. `None`: the protocol of the tunnel is not known.
    pub fn of_tunnel(headers: &HeaderMap) -> Option<Self> {
        let protocol = headers.get(header::UPGRADE)?.as_bytes();
        let is_known = protocol.eq_ignore_ascii_case(b"websocket");
        is_known.then(|| Self::WebSocket(Frames::default()))
    }

    /// For a stream of events that answers a request of this `method` with these `headers`. `None`: clients would take what has
    /// arrived for the whole. Browsers ask for streams without an end with GET, and an answer to another method is one that ends.
    pub fn of_events(method: &Method, headers: &HeaderMap) -> Option<Self> {
        let is_endless = *method == Method::GET && !headers.contains_key(header::CONTENT_LENGTH);
        is_endless.then_some(Self::Events)
    }

    /// Follows bytes towards the client. Whether the gateway may leave after them, where that has changed.
    pub fn pass(&mut self, bytes: &[u8]) -> Option<bool> {
        let Self::WebSocket(frames) = self else { return None };
        let before = frames.are_whole();
        frames.pass(bytes);
        let after = frames.are_whole();
        (before != after).then_some(after)
    }
}

/// Ends the answer at the point that it has reached. An error means that the client has gone.
pub async fn leave(session: &mut Session, ctx: &RequestContext) {
    let client = &mut session.downstream_session;
    match ctx.farewell {
        None => {}
        Some(Farewell::Events) => {
            let _ = client.finish_body().await;
        }
        Some(Farewell::WebSocket(_)) => {
            let goodbye = Bytes::from_static(&GOING_AWAY);
            if client.write_response_body(goodbye, false).await.is_err() {
                return;
            }
            client.shutdown().await;
            // Unread bytes would make the kernel send a reset, which could overtake the frame.
            client_request::set_may_leave(client, false);
            client_request::go_on(client);
            let rest = async { while let Ok(Some(_)) = client.read_request_body().await {} };
            // A client that does not end its side has had its time.
            let _ = timeout(LINGER, rest).await;
        }
    }
}
