//! What serves the connections of listening sockets.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::{Stream, l4};
use pingora_core::server::ShutdownWatch;

/// Serves accepted connections.
#[async_trait]
pub trait ConnectionServer: Send + Sync + 'static {
    /// Serves the connection `stream` until it ends. It was accepted at the listener with this index in the
    /// configuration. `shutdown` becomes true when connections must end. The stream is boxed, because the task of each
    /// connection would hold it twice.
    async fn serve(
        self: Arc<Self>,
        stream: Box<l4::stream::Stream>,
        listener: usize,
        shutdown: &ShutdownWatch,
    );

    /// Called once, when no more connections come.
    async fn cleanup(&self);
}

/// Lets an application of Pingora's serve connections, which does not ask for their listener.
pub struct Plain<A>(pub Arc<A>);

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ConnectionServer for Plain<A> {
    async fn serve(
        self: Arc<Self>,
        stream: Box<l4::stream::Stream>,
        _listener: usize,
        shutdown: &ShutdownWatch,
    ) {
        let mut next: Option<Stream> = Some(stream);
        while let Some(stream) = next {
            next = self.0.process_new(stream, shutdown).await;
        }
    }

    async fn cleanup(&self) {
        self.0.cleanup().await;
    }
}
