//! An HTTP/1.1 server that records the bytes it receives and answers as a test says.
//! It knows nothing of the gateway.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;

use super::http::{Message, read_body, read_head};
use super::wait_for;

/// Answers one request; an error or `false` closes the connection.
type Answer = Arc<dyn Fn(&Message, &mut TcpStream) -> io::Result<bool> + Send + Sync>;

/// A server on a port of the kernel's choice. It echoes a request's body, or says its request line.
pub struct Origin {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<Message>>,
    connections: AtomicUsize,
    answers: Mutex<HashMap<String, Answer>>,
}

impl Origin {
    pub fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Starts a server that `listener` brings connections to.
    pub fn start_on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&accepting));
                state.connections.fetch_add(1, Ordering::Relaxed);
                // A broken connection is for the gateway to notice; the bytes that arrived are on record.
                thread::spawn(move || drop(state.serve(stream)));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers requests for `path` (without query) with `answer` from now on, after reading their body.
    pub fn on(
        &self,
        path: &str,
        answer: impl Fn(&Message, &mut TcpStream) -> io::Result<bool> + Send + Sync + 'static,
    ) {
        self.state.answers.lock().insert(path.into(), Arc::new(answer));
    }

    /// Answers requests for `path` with these bytes and keeps the connection.
    pub fn reply(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.on(path, move |_, stream| stream.write_all(&bytes).map(|()| true));
    }

    /// Holds the answer to each request for `path` back until its gate opens.
    pub fn hold(&self, path: &str) -> Gate {
        let (open, gate) = channel();
        let gate: Mutex<Receiver<()>> = Mutex::new(gate);
        self.on(path, move |_, stream| {
            let _ = gate.lock().recv();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld")?;
            Ok(true)
        });
        Gate(open)
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Message> {
        self.state.requests.lock().clone()
    }

    /// The requests for `path`, whatever their query.
    pub fn requests_for(&self, path: &str) -> Vec<Message> {
        let requests = self.state.requests.lock();
        requests.iter().filter(|r| r.target().split('?').next() == Some(path)).cloned().collect()
    }

    /// The request that carries `X-Case: case`.
    pub fn case(&self, case: &str) -> Option<Message> {
        let requests = self.state.requests.lock();
        requests.iter().find(|r| r.all("x-case") == [case]).cloned()
    }

    /// The only request for `path`, once its header has arrived.
    pub fn one(&self, path: &str) -> Message {
        let mut found =
            wait_for(path, || Some(self.requests_for(path)).filter(|found| !found.is_empty()));
        assert_eq!(found.len(), 1, "{path} was requested more than once");
        found.remove(0)
    }
}

/// Opens on [`Gate::open`], once for each call, and for good when dropped.
pub struct Gate(Sender<()>);

impl Gate {
    pub fn open(&self) {
        let _ = self.0.send(());
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader)? {
            let index = {
                let mut requests = self.requests.lock();
                requests.push(head.clone());
                requests.len() - 1
            };
            read_body(&mut reader, &head, false, &mut |bytes| {
                self.requests.lock()[index].body.extend_from_slice(bytes);
            })?;
            self.requests.lock()[index].complete = true;
            let request = self.requests.lock()[index].clone();
            let path = request.target().split('?').next().unwrap_or("");
            let answer = self.answers.lock().get(path).cloned();
            let keep = match answer {
                Some(answer) => answer(&request, &mut writer)?,
                None => echo(&request, &mut writer)?,
            };
            if !keep {
                // The connection closes when both handles are dropped, also while a test holds neither.
                return writer.shutdown(std::net::Shutdown::Both);
            }
        }
        Ok(())
    }
}

/// The request's body, or its request line where there is no body.
pub fn echo(request: &Message, stream: &mut TcpStream) -> io::Result<bool> {
    let body = if request.body.is_empty() {
        request.line.clone().into_bytes()
    } else {
        request.body.clone()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if request.method() != "HEAD" {
        stream.write_all(&body)?;
    }
    Ok(true)
}
