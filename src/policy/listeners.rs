//! The rules of listeners: what has not changed is taken over, and with it the sessions of TLS clients.

use std::sync::Arc;

use super::Policy;
use crate::config::ListenerRules;

/// The rules `listeners` after those of `previous`.
pub(super) fn after(
    mut listeners: Vec<ListenerRules>,
    previous: Option<&Policy>,
) -> Vec<ListenerRules> {
    let previous = previous.map_or(&[][..], |policy| &policy.listeners);
    for (new, old) in listeners.iter_mut().zip(previous) {
        if let (Some(tls), Some(old)) = (&mut new.tls, &old.tls) {
            *tls = Arc::clone(tls).after(old);
        }
    }
    listeners
}
