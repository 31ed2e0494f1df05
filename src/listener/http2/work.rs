//! The work on one request of HTTP/2, as its task does it: Pingora serves the request, and it is watched when it takes
//! long. This file must not know frames.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use tokio::time::timeout;

use super::session::Http2Session;
use super::stream::Stream;
use super::{Context, LONG};
use crate::listener::watch::watch;

/// Serves the request of `session`, and watches it when it takes long.
pub async fn serve_request<A: HttpServerApp + Send + Sync + 'static>(
    context: &Context<A>,
    session: Http2Session,
    stream: &Stream,
) {
    let mut processing = Restful { processing: process(context, session), stream };
    if timeout(LONG, &mut processing).await.is_err() {
        watch(stream, processing, &*context.token_end, &context.shutdown).await;
    }
}

/// The work on a request, which rests when the request must.
struct Restful<'a, F> {
    processing: F,
    stream: &'a Stream,
}

impl<F: Future + Unpin> Future for Restful<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        ready!(self.stream.poll_work(cx));
        Pin::new(&mut self.processing).poll(cx)
    }
}

/// Lets Pingora serve the request of `session`. This function is neither inlined nor `async`, so that Pingora's large
/// future, which is made on the stack before it is boxed, takes no room in the request's task.
#[inline(never)]
fn process<A: HttpServerApp + Send + Sync + 'static>(
    context: &Context<A>,
    session: Http2Session,
) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + '_>> {
    let session = ServerSession::new_custom(Box::new(session));
    context.requests.process_new_http(session, &context.shutdown)
}
