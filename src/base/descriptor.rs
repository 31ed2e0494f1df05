//! Descriptors that another library gives as numbers.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A descriptor of its own for the open file or socket `fd`. The caller sees to it that nothing closes `fd` during this
/// call.
///
/// # Errors
/// The system's, when it has no more descriptors.
#[expect(unsafe_code, reason = "Pingora gives sockets as numbers")]
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: `fd` is open, because the connections whose sockets are duplicated are held by the tasks that do it.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
