//! An upgrade: the running gateway hands its listening sockets to a successor, over a Unix socket.
//!
//! The successor listens on the Unix socket. The running gateway connects when it gets SIGQUIT, and sends the
//! sockets. The successor confirms as soon as it can serve; until then the running gateway goes on serving, so
//! that a successor that fails costs nothing. Listening sockets are worth stealing: the Unix socket must be in a
//! directory that only its owner can write to, and both ends must have the same user.

use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::listener::sockets::NamedSocket;

/// How long each side waits for the other to come.
const MEET: Duration = Duration::from_secs(10);

/// How long the running gateway waits for the successor to confirm.
const CONFIRM: Duration = Duration::from_secs(20);

/// The pause between two attempts to connect to the successor.
const RETRY: Duration = Duration::from_millis(50);

/// The message by which a successor confirms that it serves.
const CONFIRMATION: &[u8] = b"serving\n";

/// Most sockets that are handed over.
const MAX_SOCKETS: usize = 128;

/// Longest list of the sockets' names, in bytes.
const MAX_NAMES: usize = 16 * 1024;

/// The reason that sockets were not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The directory of the Unix socket cannot be used.
    #[error("server.upgrade_sock: {directory}: {why}")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The other end has another user.
    #[error("server.upgrade_sock: the process at the other end is of user {0}, not of this one")]
    Stranger(u32),
    /// No gateway came to hand its sockets over.
    #[error(
        "no gateway handed its sockets over within {MEET:?}: send SIGQUIT to the one that runs"
    )]
    NoPredecessor,
    /// No successor listens.
    #[error("no successor came within {MEET:?}: start one with `tollgate run --upgrade`")]
    NoSuccessor,
    /// The successor did not confirm.
    #[error("the successor has ended, or has not confirmed within {CONFIRM:?}")]
    NotConfirmed,
    /// The successor cannot serve.
    #[error("the store has not answered within {0:?}: the predecessor goes on serving")]
    NotReady(Duration),
    /// The list of sockets cannot be sent or read.
    #[error("the sockets cannot be handed over: {0}")]
    Sockets(&'static str),
    /// The system refuses.
    #[error("server.upgrade_sock: {0}")]
    System(#[from] io::Error),
}

/// Where sockets are handed over.
#[derive(Clone, Debug)]
pub struct Meeting {
    path: PathBuf,
    /// Whether this program chose the directory, and so makes it.
    is_default: bool,
}

impl Meeting {
    /// The meeting at the Unix socket `configured`, or else in a private directory of this user.
    pub fn new(configured: Option<&str>) -> Self {
        match configured {
            Some(path) => Self { path: path.into(), is_default: false },
            None => {
                let directory = format!("/tmp/tollgate-{}", geteuid().as_raw());
                Self { path: Path::new(&directory).join("upgrade.sock"), is_default: true }
            }
        }
    }

    /// Checks that nobody else can put a socket in the place of the Unix socket.
    fn check_directory(&self) -> Result<(), HandOverError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let failed = |why| HandOverError::Directory { directory: directory.to_owned(), why };
        if self.is_default {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(error.to_string()));
                }
                _ => {}
            }
        }
        // A symbolic link in /tmp may be anybody's, where an administrator's link is a choice.
        let found = match self.is_default {
            true => fs::symlink_metadata(directory),
            false => fs::metadata(directory),
        };
        let found = found.map_err(|error| failed(error.to_string()))?;
        let writers = if self.is_default { 0o077 } else { 0o002 };
        match fault(&found, geteuid().as_raw(), writers) {
            Some(why) => Err(failed(why.into())),
            None => Ok(()),
        }
    }
}

/// What makes a directory unfit for `user`, whose mode may have none of the bits `forbidden`.
fn fault(directory: &Metadata, user: u32, forbidden: u32) -> Option<&'static str> {
    if !directory.is_dir() {
        Some("is not a directory")
    } else if ![user, 0].contains(&directory.uid()) {
        Some("belongs to another user; choose a directory of this user")
    } else if directory.mode() & forbidden != 0 {
        Some("can be written to by other users; choose a private directory (mode 0700)")
    } else {
        None
    }
}

/// Refuses a process of another user at the other end. The administrator may do anything anyway.
fn check_user(stream: &UnixStream) -> Result<(), HandOverError> {
    match stream.peer_cred()?.uid() {
        user if user == geteuid().as_raw() || user == 0 => Ok(()),
        user => Err(HandOverError::Stranger(user)),
    }
}

/// Hands `sockets` to the successor at `meeting`, and waits until it confirms.
///
/// # Errors
/// [`HandOverError`]; this process must go on serving then.
pub async fn hand_over(meeting: &Meeting, sockets: &[NamedSocket]) -> Result<(), HandOverError> {
    meeting.check_directory()?;
    let connect = async {
        loop {
            match UnixStream::connect(&meeting.path).await {
                Ok(stream) => return stream,
                // The successor is still starting.
                Err(_) => sleep(RETRY).await,
            }
        }
    };
    let mut stream = timeout(MEET, connect).await.map_err(|_late| HandOverError::NoSuccessor)?;
    check_user(&stream)?;
    match send(&stream, sockets).await {
        // The successor has ended already.
        Err(HandOverError::System(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Err(HandOverError::NotConfirmed);
        }
        sent => sent?,
    }
    let mut confirmation = [0; CONFIRMATION.len()];
    match timeout(CONFIRM, stream.read_exact(&mut confirmation)).await {
        Ok(Ok(_)) if confirmation == CONFIRMATION => Ok(()),
        _ => Err(HandOverError::NotConfirmed),
    }
}

async fn send(stream: &UnixStream, sockets: &[NamedSocket]) -> Result<(), HandOverError> {
    if sockets.len() > MAX_SOCKETS {
        return Err(HandOverError::Sockets("there are too many"));
    }
    let names: Vec<_> = sockets.iter().map(|named| named.name.as_str()).collect();
    let names = names.join(" ") + "\n";
    if names.len() > MAX_NAMES {
        return Err(HandOverError::Sockets("their names are too long"));
    }
    let descriptors: Vec<_> = sockets.iter().map(|named| named.socket.as_fd()).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut room =
            [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(sendmsg(stream, &[IoSlice::new(names.as_bytes())], &mut control, SendFlags::NOSIGNAL)?)
    });
    match sent.await? {
        sent if sent == names.len() => Ok(()),
        _ => Err(HandOverError::Sockets("the message was cut")),
    }
}

/// The sockets of a predecessor, which waits for a confirmation.
#[derive(Debug)]
pub struct Inheritance {
    /// The sockets.
    pub sockets: Vec<NamedSocket>,
    /// Confirms.
    pub predecessor: Predecessor,
}

/// A gateway that has handed its sockets over and goes on serving until this confirms.
#[derive(Debug)]
pub struct Predecessor(std::os::unix::net::UnixStream);

impl Predecessor {
    /// Tells the predecessor that this process serves.
    ///
    /// # Errors
    /// When the predecessor has given up waiting, and serves on.
    pub async fn confirm(self) -> Result<(), HandOverError> {
        let mut stream = UnixStream::from_std(self.0)?;
        Ok(stream.write_all(CONFIRMATION).await?)
    }
}

/// Waits at `meeting` for a running gateway to hand its sockets over.
///
/// # Errors
/// [`HandOverError`]: this process has no sockets, and cannot serve.
pub async fn receive(meeting: &Meeting) -> Result<Inheritance, HandOverError> {
    meeting.check_directory()?;
    // A predecessor of this process may have left its socket behind.
    let left = fs::symlink_metadata(&meeting.path).is_ok_and(|found| found.file_type().is_socket());
    if left {
        fs::remove_file(&meeting.path)?;
    }
    let listener = UnixListener::bind(&meeting.path)?;
    let accepted = timeout(MEET, listener.accept()).await;
    // The file has served its purpose, whatever came of it.
    fs::remove_file(&meeting.path)?;
    let (stream, _) = accepted.map_err(|_late| HandOverError::NoPredecessor)??;
    check_user(&stream)?;
    let sockets = timeout(MEET, read(&stream));
    let sockets = sockets.await.map_err(|_late| HandOverError::NoPredecessor)??;
    Ok(Inheritance { sockets, predecessor: Predecessor(stream.into_std()?) })
}

async fn read(stream: &UnixStream) -> Result<Vec<NamedSocket>, HandOverError> {
    let mut names = Vec::new();
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    while !names.ends_with(b"\n") {
        let mut bytes = [0; MAX_NAMES];
        let received = stream.async_io(Interest::READABLE, || {
            let mut room =
                [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let mut into = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(received.bytes)
        });
        let received = received.await?;
        if received == 0 || names.len() > MAX_NAMES {
            return Err(HandOverError::Sockets("the message ends early"));
        }
        names.extend_from_slice(&bytes[..received]);
    }
    let names = String::from_utf8_lossy(&names);
    let names: Vec<_> = names.split_ascii_whitespace().collect();
    if names.len() != descriptors.len() {
        return Err(HandOverError::Sockets("there are not as many sockets as names"));
    }
    let sockets = names.into_iter().zip(descriptors).map(|(name, socket)| NamedSocket {
        name: name.to_owned(),
        socket: TcpListener::from(socket),
    });
    Ok(sockets.collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_a_directory_that_nobody_else_can_write_to_is_fit() {
        let dir = tempfile::tempdir().unwrap();
        let me = geteuid().as_raw();
        for (mode, forbidden, fit) in [
            (0o700, 0o002, true),
            (0o755, 0o002, true),
            (0o770, 0o002, true),
            (0o777, 0o002, false),
            (0o1777, 0o002, false),
            (0o702, 0o002, false),
            (0o700, 0o077, true),
            (0o750, 0o077, false),
            (0o755, 0o077, false),
        ] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let found = fs::metadata(dir.path()).unwrap();
            assert_eq!(fault(&found, me, forbidden).is_none(), fit, "{mode:o} {forbidden:o}");
            let owner_is_root = me == 0;
            assert_eq!(fault(&found, me + 1, 0).is_none(), owner_is_root, "of another user");
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let file = fs::metadata(dir.path().join("file")).unwrap();
        assert!(fault(&file, me, 0).is_some());
    }

    #[test]
    fn a_directory_in_tmp_is_made_private_and_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let meeting = |name: &str| Meeting {
            path: dir.path().join(name).join("upgrade.sock"),
            is_default: true,
        };
        assert!(meeting("made").check_directory().is_ok());
        let made = fs::metadata(dir.path().join("made")).unwrap();
        assert_eq!(made.mode() & 0o777, 0o700);
        assert!(meeting("made").check_directory().is_ok(), "a second time");
        std::os::unix::fs::symlink(dir.path().join("made"), dir.path().join("link")).unwrap();
        assert!(meeting("link").check_directory().is_err());
    }

    fn meeting(dir: &Path) -> Meeting {
        Meeting::new(Some(dir.join("upgrade.sock").to_str().unwrap()))
    }

    fn socket(name: &str) -> NamedSocket {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        NamedSocket { name: name.into(), socket }
    }

    #[tokio::test]
    async fn sockets_arrive_under_their_names_and_the_successor_confirms() {
        let dir = tempfile::tempdir().unwrap();
        let meeting = meeting(dir.path());
        let sockets = [socket("listening@127.0.0.1:0"), socket("metrics@[::1]:9")];
        let addresses = |sockets: &[NamedSocket]| -> Vec<_> {
            let address = |named: &NamedSocket| named.socket.local_addr().unwrap();
            sockets.iter().map(|named| (named.name.clone(), address(named))).collect()
        };
        let handing = hand_over(&meeting, &sockets);
        let receiving = async {
            let inherited = receive(&meeting).await.unwrap();
            assert_eq!(addresses(&inherited.sockets), addresses(&sockets));
            inherited.predecessor.confirm().await.unwrap();
        };
        let (handed, ()) = tokio::join!(handing, receiving);
        handed.unwrap();
        assert!(!meeting.path.exists(), "the Unix socket is gone");
    }

    #[tokio::test]
    async fn a_successor_that_ends_without_a_confirmation_has_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let meeting = meeting(dir.path());
        let sockets = [socket("listening@127.0.0.1:0")];
        let receiving = async { drop(receive(&meeting).await.unwrap()) };
        let (handed, ()) = tokio::join!(hand_over(&meeting, &sockets), receiving);
        assert!(matches!(handed, Err(HandOverError::NotConfirmed)), "{handed:?}");
    }
}
