//! A server in a process of its own, which a test kills, stops, continues and starts again on the same port. The process
//! is the test's executable, which runs one test: [`serve_if_asked`]. It knows nothing of the gateway.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::{Origin, signal, wait_for};

/// The variable that tells the process where to listen.
const ADDRESS: &str = "SERVER_PROCESS_ADDRESS";

/// A server that answers as an [`Origin`] does; killed when dropped.
pub struct ServerProcess {
    pub address: SocketAddr,
    child: Child,
}

/// The body of a test called `server_process`, which each test file with such servers needs.
pub fn serve_if_asked() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let address: SocketAddr = address.parse().unwrap();
    let listener = wait_for("the port", || TcpListener::bind(address).ok());
    let _origin = Origin::start_on(listener);
    // The end of standard input is the end of the test.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl ServerProcess {
    /// Starts a server on a port of the kernel's choice.
    pub fn start() -> Self {
        // The port is free again when the listener is dropped.
        Self::start_at(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
    }

    /// Starts a server at `address`.
    pub fn start_at(address: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .env(ADDRESS, address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { address, child };
        wait_for("the server", || TcpStream::connect(address).ok());
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the process again, at the same address.
    pub fn start_again(&mut self) {
        self.kill();
        *self = Self::start_at(self.address);
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
