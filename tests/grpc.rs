//! gRPC end to end: the interoperability cases of gRPC by their names, and what a gRPC client sees of the gateway itself.
//! It must not know frames.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::http2::H2Client;
use support::*;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::codegen::tokio_stream::{self, Stream, StreamExt};
use tonic::codegen::{BoxFuture, BoxStream, Context, Poll, Service};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// What is sent either way: bytes, and in requests what the server should do.
#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(bytes = "vec", tag = "1")]
    body: Vec<u8>,
    /// The sizes of the notes to answer with.
    #[prost(uint32, repeated, tag = "2")]
    sizes: Vec<u32>,
    /// The status to end with.
    #[prost(int32, tag = "3")]
    code: i32,
    #[prost(string, tag = "4")]
    message: String,
}

fn note(size: usize, sizes: &[u32]) -> Note {
    Note { body: vec![0; size], sizes: sizes.to_vec(), ..Note::default() }
}

fn ending(code: Code, message: &str) -> Note {
    Note { code: code as i32, message: message.into(), ..Note::default() }
}

type Codec = ProstCodec<Note, Note>;

/// What the server has seen.
#[derive(Default)]
struct Seen {
    /// A call was cancelled while it was served.
    cancelled: AtomicBool,
    /// The fields of the last call.
    fields: parking_lot::Mutex<Option<MetadataMap>>,
}

/// Tells that a call was dropped before its end.
struct Watch(Arc<Seen>, bool);

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Clone)]
struct TestService(Arc<Seen>);

impl NamedService for TestService {
    const NAME: &'static str = "grpc.testing.TestService";
}

impl Service<::http::Request<tonic::body::Body>> for TestService {
    type Response = ::http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<tonic::body::Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let method = Method { name: method, seen: Arc::clone(&self.0) };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(grpc.streaming(method, request).await)
        })
    }
}

/// One call.
struct Method {
    name: String,
    seen: Arc<Seen>,
}

impl Service<Request<Streaming<Note>>> for Method {
    type Response = Response<BoxStream<Note>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        let (name, seen) = (self.name.clone(), Arc::clone(&self.seen));
        Box::pin(async move {
            *seen.fields.lock() = Some(request.metadata().clone());
            let own = request.metadata().get("x-grpc-test-echo-initial").cloned();
            let trailing = request.metadata().get_bin("x-grpc-test-echo-trailing-bin").cloned();
            let mut notes = request.into_inner();
            let mut watch = Watch(Arc::clone(&seen), false);
            let answer: BoxStream<Note> = match &*name {
                // The whole input is read, and answered with one note.
                "EmptyCall" | "UnaryCall" | "StreamingInputCall" => {
                    let (mut size, mut sizes, mut end) = (0, Vec::new(), None);
                    while let Some(note) = notes.next().await {
                        let note = note?;
                        size += note.body.len();
                        sizes.extend(note.sizes);
                        end = (note.code != 0)
                            .then(|| Status::new(Code::from(note.code), note.message));
                    }
                    if name == "StreamingInputCall" {
                        // A cancelled call is dropped meanwhile; its input ends as if it were whole.
                        sleep(Duration::from_millis(50)).await;
                    }
                    watch.1 = true;
                    if let Some(status) = end {
                        return Err(status);
                    }
                    let body = match (&*name, sizes.first()) {
                        ("StreamingInputCall", _) => size.to_string().into_bytes(),
                        (_, size) => vec![0; size.copied().unwrap_or(0) as usize],
                    };
                    let note = Note { body, ..Note::default() };
                    let last = trailing.map(|value| {
                        let mut status = Status::ok("");
                        status.metadata_mut().insert_bin("x-grpc-test-echo-trailing-bin", value);
                        Err(status)
                    });
                    Box::pin(tokio_stream::iter([Ok(note)].into_iter().chain(last)))
                }
                // Each note is answered as it comes.
                "StreamingOutputCall" | "FullDuplexCall" => {
                    let (sender, receiver) = mpsc::channel(4);
                    tokio::spawn(async move {
                        let mut watch = watch;
                        while let Some(Ok(note)) = notes.next().await {
                            for size in note.sizes {
                                let answer =
                                    Note { body: vec![0; size as usize], ..Note::default() };
                                if sender.send(Ok(answer)).await.is_err() {
                                    return;
                                }
                            }
                            if note.code != 0 {
                                watch.1 = true;
                                let status = Status::new(Code::from(note.code), note.message);
                                let _ = sender.send(Err(status)).await;
                                return;
                            }
                        }
                        // The input has ended, or the call was cancelled, which the sender tells.
                        sleep(Duration::from_millis(50)).await;
                        watch.1 = !sender.is_closed();
                    });
                    return answered(own, Box::pin(receive(receiver)));
                }
                "Sleep" => {
                    sleep(Duration::from_secs(30)).await;
                    watch.1 = true;
                    Box::pin(tokio_stream::iter([Ok(Note::default())]))
                }
                _ => return Err(Status::unimplemented(name)),
            };
            answered(own, answer)
        })
    }
}

fn answered(
    own: Option<MetadataValue<tonic::metadata::Ascii>>,
    notes: BoxStream<Note>,
) -> Result<Response<BoxStream<Note>>, Status> {
    let mut response = Response::new(notes);
    if let Some(own) = own {
        response.metadata_mut().insert("x-grpc-test-echo-initial", own);
    }
    Ok(response)
}

/// The values that come out of a channel.
fn receive<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|value| (value, receiver))
    })
}

/// An origin, a gateway before it, and a client of the gateway.
struct Setting {
    seen: Arc<Seen>,
    origin: Option<Runtime>,
    gateway: Gateway,
    channel: Channel,
}

impl Setting {
    async fn new(more: &str) -> Self {
        let seen = Arc::new(Seen::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = TestService(Arc::clone(&seen));
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let serving = Server::builder().add_service(service);
            serving.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        let config = config(address, more);
        let gateway = tokio::task::spawn_blocking(move || Gateway::start(&config)).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self { seen, origin: Some(runtime), gateway, channel }
    }

    /// Ends the origin with all its connections.
    fn kill_origin(&mut self) {
        if let Some(origin) = self.origin.take() {
            origin.shutdown_background();
        }
    }

    async fn client(&self) -> tonic::client::Grpc<Channel> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        client
    }

    async fn unary(&self, method: &str, request: Request<Note>) -> Result<Response<Note>, Status> {
        let path = format!("/{}/{method}", TestService::NAME).parse().unwrap();
        let mut client = self.client().await;
        timeout(PATIENCE, client.unary(request, path, Codec::default())).await.expect("in time")
    }

    async fn streaming(
        &self,
        method: &str,
        request: Request<impl Stream<Item = Note> + Send + 'static>,
    ) -> Result<Response<Streaming<Note>>, Status> {
        let path = format!("/{}/{method}", TestService::NAME).parse().unwrap();
        let mut client = self.client().await;
        timeout(PATIENCE, client.streaming(request, path, Codec::default())).await.expect("in time")
    }

    /// The outcome of a call of another service.
    async fn refused(&self, path: &str, authorization: Option<&str>) -> Status {
        let mut request = Request::new(Note::default());
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let mut client = self.client().await;
        let call = client.unary::<Note, Note, _>(request, path.parse().unwrap(), Codec::default());
        timeout(PATIENCE, call).await.expect("in time").unwrap_err()
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.kill_origin();
    }
}

fn config(origin: SocketAddr, more: &str) -> String {
    format!(
        "listeners: [ {{ address: \"127.0.0.1:0\", http2: true }} ]
upstreams:
  up: {{ endpoints: [ \"h2c://{origin}\" ], retries: 0 }}
  away: {{ endpoints: [ \"h2c://{NOBODY}\" ], retries: 0 }}
routes:
  - {{ prefix: /grpc.testing.TestService, upstream: up, auth: none }}
  - {{ prefix: /grpc.testing.TestService/StreamingOutputCall, upstream: up, auth: none, timeouts: {{ idle: 600ms }} }}
  - {{ prefix: /secret.Service, upstream: up }}
  - {{ prefix: /limited.Service, upstream: up, auth: none, limits: [ {{ rate: 1/day, by: ip }} ] }}
  - {{ prefix: /get.Service, upstream: up, auth: none, methods: [ GET ] }}
  - {{ prefix: /away.Service, upstream: away, auth: none }}
{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interoperability_cases_pass() {
    let setting = Setting::new("").await;
    // empty_unary
    let answer = setting.unary("EmptyCall", Request::new(Note::default())).await.unwrap();
    assert_eq!(answer.get_ref(), &Note::default());
    let fields = setting.seen.fields.lock().clone().unwrap();
    assert_eq!(fields.get("te").unwrap(), "trailers");
    assert!(fields.get("x-request-id").is_some());

    // large_unary
    let answer = setting.unary("UnaryCall", Request::new(note(271_828, &[314_159]))).await.unwrap();
    assert_eq!(answer.get_ref().body.len(), 314_159);

    // client_streaming
    let notes = [27_182, 8, 1_828, 45_904].map(|size| note(size, &[]));
    let answer =
        setting.streaming("StreamingInputCall", Request::new(tokio_stream::iter(notes))).await;
    let first = answer.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(first.body, b"74922");

    // server_streaming
    let sizes = [31_415, 9, 2_653, 58_979];
    let request = Request::new(tokio_stream::iter([note(0, &sizes)]));
    let mut answers = setting.streaming("StreamingOutputCall", request).await.unwrap().into_inner();
    for size in sizes {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.body.len(), size as usize);
    }
    assert!(answers.message().await.unwrap().is_none());

    // ping_pong
    let (sender, receiver) = mpsc::channel(1);
    let request = Request::new(receive(receiver));
    sender.send(note(27_182, &[31_415])).await.unwrap();
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().body.len(), 31_415);
    for (sent, wanted) in [(8, 9), (1_828, 2_653), (45_904, 58_979)] {
        sender.send(note(sent, &[wanted])).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.body.len(), wanted as usize);
    }
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());

    // empty_stream
    let request = Request::new(tokio_stream::empty());
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_none());

    // status_code_and_message, for both kinds of calls
    let end = ending(Code::Unknown, "test status message");
    let status = setting.unary("UnaryCall", Request::new(end.clone())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "test status message"));
    let request = Request::new(tokio_stream::iter([end]));
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "test status message"));

    // special_status_message
    let special = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    let end = ending(Code::Unknown, special);
    let status = setting.unary("UnaryCall", Request::new(end)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, special));

    // unimplemented_method
    let status =
        setting.unary("UnimplementedCall", Request::new(Note::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);

    // custom_metadata
    let mut request = Request::new(note(10, &[20]));
    let metadata = request.metadata_mut();
    metadata.insert("x-grpc-test-echo-initial", "test_initial_metadata_value".parse().unwrap());
    metadata.insert_bin(
        "x-grpc-test-echo-trailing-bin",
        MetadataValue::from_bytes(&[0xab, 0xab, 0xab]),
    );
    let answer = setting.unary("UnaryCall", request).await.unwrap();
    let metadata = answer.metadata();
    assert_eq!(metadata.get("x-grpc-test-echo-initial").unwrap(), "test_initial_metadata_value");
    let trailing = metadata.get_bin("x-grpc-test-echo-trailing-bin").unwrap();
    assert_eq!(trailing.to_bytes().unwrap(), &[0xab, 0xab, 0xab][..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancellation_and_deadlines_reach_the_origin() {
    let setting = Setting::new("").await;
    let cancelled = || {
        let seen = Arc::clone(&setting.seen);
        async move {
            let deadline = Instant::now() + PATIENCE;
            while !seen.cancelled.swap(false, Ordering::Relaxed) {
                assert!(Instant::now() < deadline, "the origin does not notice");
                sleep(Duration::from_millis(5)).await;
            }
        }
    };
    // cancel_after_begin
    let (sender, receiver) = mpsc::channel::<Note>(1);
    let call = setting.streaming("StreamingInputCall", Request::new(receive(receiver)));
    assert!(timeout(Duration::from_millis(300), call).await.is_err(), "it waits for the input");
    cancelled().await;
    drop(sender);

    // cancel_after_first_response
    let (sender, receiver) = mpsc::channel(1);
    sender.send(note(27_182, &[31_415])).await.unwrap();
    let request = Request::new(receive(receiver));
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().body.len(), 31_415);
    drop((answers, sender));
    cancelled().await;
}

/// A note as a message of gRPC.
fn message(note: &Note) -> Vec<u8> {
    let bytes = prost::Message::encode_to_vec(note);
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes].concat()
}

/// timeout_on_sleeping_server. tonic's client ends a call by its own clock, so this client has none.
#[test]
fn a_deadline_holds_for_the_whole_call() {
    let runtime = Runtime::new().unwrap();
    let setting = runtime.block_on(Setting::new(""));
    let mut client = H2Client::connect(setting.gateway.address);
    let path = |method| format!("/{}/{method}", TestService::NAME);
    let between = |since: Instant, limit: u64| {
        let lasted = since.elapsed().as_millis() as u64;
        assert!((limit..limit + 200).contains(&lasted), "{lasted} ms for {limit}");
    };
    for limit in [300, 1_500] {
        let field = format!("{limit}m");
        let fields =
            [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", &*field)];
        let since = Instant::now();
        let body = message(&Note::default());
        let answer = client.call("POST", &path("Sleep"), &fields, &body).unwrap();
        between(since, limit);
        assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("4".into())));
        assert_eq!(answer.header("content-type").unwrap(), "application/grpc");
        wait_for("the origin to notice", || {
            setting.seen.cancelled.swap(false, Ordering::Relaxed).then_some(())
        });
    }
    // In the middle of an answer.
    let fields = [("content-type", "application/grpc"), ("grpc-timeout", "400m")];
    let since = Instant::now();
    let (answer, mut body) = client.begin("POST", &path("FullDuplexCall"), &fields, false);
    client.send(&mut body, &message(&note(1, &[1])), false).unwrap();
    let (head, mut answer) = client.head(answer).unwrap();
    assert_eq!((head.status(), head.header("grpc-status")), (200, None));
    assert!(client.next(&mut answer).unwrap().is_ok());
    let trailers = client.block_on(async {
        while let Some(data) = answer.data().await {
            data.unwrap();
        }
        answer.trailers().await.unwrap().unwrap()
    });
    assert_eq!(trailers["grpc-status"], "4");
    between(since, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_trailers_only() {
    let setting = Setting::new("max_body: 1KiB").await;
    let status = setting.refused("/secret.Service/Call", None).await;
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "a token is required"));
    assert!(status.metadata().get("www-authenticate").is_some());
    assert!(status.metadata().get("x-request-id").is_some());
    let status = setting.refused("/secret.Service/Call", Some("Bearer nothing")).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = setting.refused("/nothing.Service/Call", None).await;
    assert_eq!(status.code(), Code::Unimplemented);
    let status = setting.refused("/get.Service/Call", None).await;
    assert_eq!(status.code(), Code::Unimplemented);
    let status = setting.refused("/away.Service/Call", None).await;
    assert_eq!(status.code(), Code::Unavailable);
    let status = setting.refused("/a%2fb/Call", None).await;
    assert_eq!(status.code(), Code::Internal);
    // The first call of the day reaches the origin, which has no such service.
    let status = setting.refused("/limited.Service/Call", None).await;
    assert_eq!(status.code(), Code::Unimplemented);
    let status = setting.refused("/limited.Service/Call", None).await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "1 requests per day used up")
    );
    assert!(status.metadata().get("retry-after").is_some());
    assert_eq!(status.metadata().get("x-ratelimit-remaining").unwrap(), "0");
    let status = setting.unary("UnaryCall", Request::new(note(5_000, &[]))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(setting.unary("EmptyCall", Request::new(Note::default())).await.is_ok());
    let line = setting.gateway.log().into_iter().find(|line| line["code"] == "missing_token");
    assert_eq!(line.unwrap()["status"], 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_dies_is_told_at_once() {
    let mut setting = Setting::new("").await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(note(1, &[1])).await.unwrap();
    let request = Request::new(receive(receiver));
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    setting.kill_origin();
    let status = timeout(Duration::from_secs(5), answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let status = setting.unary("EmptyCall", Request::new(Note::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_may_be_quiet_for_long() {
    let setting = Setting::new("timeouts: { read: 300ms, write: 300ms, tunnel: 2s }").await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(note(1, &[1])).await.unwrap();
    let request = Request::new(receive(receiver));
    let mut answers = setting.streaming("FullDuplexCall", request).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    sleep(Duration::from_millis(1_200)).await;
    sender.send(note(1, &[1])).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    // But not for ever.
    let since = Instant::now();
    let status = timeout(PATIENCE, answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!((1_900..5_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_says_how_long_its_calls_may_be_quiet() {
    let setting = Setting::new("timeouts: { read: 300ms, tunnel: 20s }").await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(note(1, &[1])).await.unwrap();
    let request = Request::new(receive(receiver));
    let mut answers = setting.streaming("StreamingOutputCall", request).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let since = Instant::now();
    let status = timeout(PATIENCE, answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!((500..5_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
}
