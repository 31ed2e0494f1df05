//! The values of a request that header rules may put into fields.

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderValue;

use crate::auth::Principal;
use crate::record::HeaderText;
use crate::route::template::Variable;
use crate::tls::client::ClientCertificate;

/// The values of one request.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// The client's address: the peer's, or the address that trusted proxies name.
    pub client: Option<IpAddr>,
    /// The request's id.
    pub request_id: Option<&'a HeaderValue>,
    /// The principal of its token.
    pub principal: Option<&'a Principal>,
    /// The `Host` that the client asked for.
    pub host: Option<&'a HeaderValue>,
    /// Host and prefix of its route.
    pub route: &'a str,
    /// The certificate of its client.
    pub certificate: Option<&'a ClientCertificate>,
}

impl<'a> Values<'a> {
    /// The value of `variable`, where the request has one.
    pub fn of(&self, variable: Variable) -> Option<Cow<'a, str>> {
        let text = |value: &'a HeaderValue| value.to_str().ok();
        match variable {
            Variable::ClientIp => self.client.map(|ip| ip.to_canonical().to_string().into()),
            Variable::RequestId => self.request_id.and_then(text).map(Cow::from),
            Variable::TokenId => self.principal.map(|principal| principal.record().id().into()),
            Variable::OrganizationId => {
                self.principal?.organization_id().map(HeaderText::as_str).map(Cow::from)
            }
            Variable::Plan => self.principal?.plan().map(HeaderText::as_str).map(Cow::from),
            Variable::Host => self.host.and_then(text).map(Cow::from),
            Variable::Route => Some(self.route.into()),
            Variable::ClientCertSubject => {
                self.certificate.map(ClientCertificate::subject).and_then(text).map(Cow::from)
            }
            Variable::ClientCertSan => {
                self.certificate?.alternatives().and_then(text).map(Cow::from)
            }
            Variable::ClientCertFingerprint => {
                self.certificate.map(ClientCertificate::fingerprint).and_then(text).map(Cow::from)
            }
        }
    }
}
