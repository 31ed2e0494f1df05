//! What the connection of a request says about it: that it came without TLS where https is wanted, or with which certificate.

use std::sync::Arc;

use pingora_proxy::Session;

use crate::admission::Rejection;
use crate::base::clock::UnixTime;
use crate::listener::request::entry_of;
use crate::policy::Policy;
use crate::tls::client::{ClientAuth, ClientCertificate};

/// Whether the client speaks TLS.
pub fn is_encrypted(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

/// The number of the listener that the request is sent to, where its own serves nothing.
pub fn redirect_to(session: &Session, policy: &Policy) -> Option<usize> {
    let entry = entry_of(&session.downstream_session)?;
    policy.listeners.get(entry.listener)?.redirect_to
}

/// The certificate of the client, which the listener's present authorities vouch for at `now`. The connection may be older than
/// these.
///
/// # Errors
/// [`Rejection::Misdirected`] when the connection has no such certificate and needs one.
pub fn certificate(
    session: &Session,
    policy: &Policy,
    now: UnixTime,
) -> Result<Option<Arc<ClientCertificate>>, Rejection> {
    let entry = entry_of(&session.downstream_session).ok_or(Rejection::Internal)?;
    let tls = policy.listeners.get(entry.listener).and_then(|listener| listener.tls.as_ref());
    let Some(tls) = tls else { return Ok(None) };
    match (tls.authorities(), entry.certificate) {
        (None, _) => Ok(None),
        (Some(authorities), Some(certificate)) if authorities.vouch_for(&certificate, now) => {
            Ok(Some(certificate))
        }
        (Some(_), None) if tls.client_auth() != ClientAuth::Required => Ok(None),
        _ => Err(Rejection::Misdirected),
    }
}
