//! The upstream of `tollgate demo`: answers each request with the text of that request.

use std::fmt::Write;

use async_trait::async_trait;
use http::{Response, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;

/// Answers every request with its method, target and fields.
pub struct Echo;

#[async_trait]
impl ServeHttp for Echo {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let target = String::from_utf8_lossy(request.raw_path());
        let mut text = format!("{} {target} {:?}\n", request.method, request.version);
        for (name, value) in &request.headers {
            let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
        let mut response = Response::new(text.into_bytes());
        let length = response.body().len().into();
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
        let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }
}
