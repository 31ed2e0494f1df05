//! The rules of listeners: what has not changed is taken over, and with it the sessions of TLS clients.

use std::sync::Arc;

use super::Policy;
use crate::config::ListenerRules;
use crate::tls::client::ClientAuth;

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

/// Whether one of `listeners` asks clients for certificates.
pub(super) fn ask_for_certificates(listeners: &[ListenerRules]) -> bool {
    let mut tls = listeners.iter().filter_map(|listener| listener.tls.as_ref());
    tls.any(|tls| tls.client_auth() != ClientAuth::None)
}
