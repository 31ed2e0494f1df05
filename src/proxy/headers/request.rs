//! The fields of a request as the upstream gets them: the upstream may rely on every field that the gateway sets.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_core::{ErrorType, OkOrErr as _, Result};
use pingora_http::RequestHeader;

use super::client::{X_FORWARDED_FOR, forwarded_for};
use super::ids::set_traceparent;
use super::seen::Seen;
use super::values::Values;
use super::{OWN_FIELDS, X_REQUEST_ID, apply, bytes_value, value};
use crate::admission::{BadRequest, Rejection};
use crate::auth::Principal;
use crate::auth::sources::{Onward, Sources};
use crate::route::fields;
use crate::route::headers::HeaderRules;
use crate::route::host::{Authority, of_target};
use crate::tls::client::ClientCertificate;

static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static(fields::FORWARDED_PROTO);
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static(fields::FORWARDED_HOST);
static X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static(fields::FORWARDED_PREFIX);
static X_TOKEN_ID: HeaderName = HeaderName::from_static(fields::TOKEN_ID);
static X_ORGANIZATION_ID: HeaderName = HeaderName::from_static(fields::ORGANIZATION_ID);
static X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static(fields::CLIENT_CERT_SUBJECT);
static X_CLIENT_CERT_SAN: HeaderName = HeaderName::from_static(fields::CLIENT_CERT_SAN);
static X_CLIENT_CERT_FINGERPRINT: HeaderName =
    HeaderName::from_static(fields::CLIENT_CERT_FINGERPRINT);
static X_PLAN_TIER: HeaderName = HeaderName::from_static(fields::PLAN_TIER);

/// The sender of a request, and the connection that the request came over.
pub struct Origin<'a> {
    /// The fields that the request has.
    pub seen: Seen,
    /// The address at the other end of the connection.
    pub peer: Option<IpAddr>,
    /// The client's address: the peer's, or the address that trusted proxies name.
    pub client: Option<IpAddr>,
    /// Host and prefix of the route.
    pub route: &'a str,
    /// Whether the peer is a trusted proxy, whose forwarding fields are believed.
    pub trusted: bool,
    /// The places of credentials.
    pub credentials: &'a Sources,
    /// What happens to the credentials.
    pub onward: Onward<'a>,
    /// The prefix that the route strips.
    pub stripped: Option<&'a str>,
    /// The `host:port` of the endpoint that the request goes to.
    pub endpoint: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// The principal of its token; `None` on a route that needs no token.
    pub principal: Option<&'a Principal>,
    /// The certificate of its client; `None` where the client has shown none.
    pub certificate: Option<&'a ClientCertificate>,
}

/// Brings the head of a request into the form in which it is matched, forwarded and logged.
///
/// `Host` gets its canonical form. An absolute target loses its scheme and authority, which `Host` repeats; where an
/// HTTP/1.0 request has no `Host`, the authority becomes the `Host`.
///
/// The spelling of field names is dropped, for names are not case-sensitive (RFC 9110 section 5.1). Pingora keeps the
/// spelling in a second map, and copies and searches both maps.
///
/// # Errors
/// When a host is none, which the listener has refused already.
pub fn normalize(request: &mut RequestHeader) -> Result<()> {
    let host = match request.headers.get(header::HOST) {
        Some(host) => canonical(host.as_bytes())?,
        None => match of_target(request.raw_path()) {
            Some(authority) => match canonical(authority)? {
                Some(respelled) => Some(respelled),
                None => Some(bytes_value(authority)?),
            },
            None => None,
        },
    };
    let mut parts = take_parts(request);
    if let Some(host) = host {
        parts.headers.insert(header::HOST, host);
    }
    *request = parts.into();
    Ok(())
}

/// The canonical form of `written`, if it differs.
fn canonical(written: &[u8]) -> Result<Option<HeaderValue>> {
    let authority = Authority::parse(written).or_err(ErrorType::InvalidHTTPHeader, "not a host")?;
    authority.respelled(written).as_deref().map(value).transpose()
}

/// The plain parts of a request's header, which is left empty.
fn take_parts(request: &mut RequestHeader) -> http::request::Parts {
    let nothing = http::Request::new(()).into_parts().0.into();
    std::mem::replace(request, nothing).into()
}

/// The number in `Max-Forwards`, which bounds the hops of an OPTIONS request (RFC 9110 section 7.6.2).
///
/// # Errors
/// [`BadRequest::MaxForwards`] when the field is not one number: two proxies may count differently.
pub fn max_forwards(headers: &HeaderMap) -> std::result::Result<Option<u64>, Rejection> {
    let mut sent = headers.get_all(header::MAX_FORWARDS).iter();
    let number = |value: &HeaderValue| {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        digits?.parse().ok()
    };
    match (sent.next(), sent.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match number(value) {
            Some(hops) => Ok(Some(hops)),
            None => Err(Rejection::BadRequest(BadRequest::MaxForwards)),
        },
        _ => Err(Rejection::BadRequest(BadRequest::MaxForwards)),
    }
}

/// Removes the fields that the client may not send and sets the gateway's own. The route's `rules` come last.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn rewrite_request(
    request: &mut RequestHeader,
    origin: &Origin<'_>,
    rules: &HeaderRules,
) -> Result<()> {
    // Pingora's methods take names as text, which is four times the work.
    let mut parts = take_parts(request);
    let result = set_request_fields(&mut parts.headers, origin, rules);
    *request = parts.into();
    result
}

fn set_request_fields(
    headers: &mut HeaderMap,
    origin: &Origin<'_>,
    rules: &HeaderRules,
) -> Result<()> {
    if origin.seen.suspicious {
        remove_claims(headers, origin.trusted, origin.onward.pass);
    }
    origin.credentials.clean_headers(headers, origin.onward);
    headers.reserve(OWN_FIELDS + rules.set.len() + rules.made.len());
    headers.insert(&X_REQUEST_ID, origin.request_id.clone());
    // Forwarding fields of a peer that is not trusted were removed above.
    let trusted = origin.trusted;
    if let Some(peer) = origin.peer {
        let earlier = trusted.then(|| headers.get_all(&X_FORWARDED_FOR));
        let hops = forwarded_for(earlier.into_iter().flatten(), peer);
        headers.insert(&X_FORWARDED_FOR, value(&hops)?);
    }
    if !(trusted && headers.contains_key(&X_FORWARDED_PROTO)) {
        headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
    }
    if !(trusted && headers.contains_key(&X_FORWARDED_HOST))
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(&X_FORWARDED_HOST, host);
    }
    // The host that the client asked for, and not the endpoint's.
    let host = if rules.made.is_empty() { None } else { headers.get(header::HOST).cloned() };
    if !headers.contains_key(header::HOST)
        && let Some(endpoint) = origin.endpoint
    {
        // An HTTP/1.0 client need not name a host, but the request goes on as HTTP/1.1 (RFC 9112 section 3.2).
        headers.insert(header::HOST, value(endpoint)?);
    }
    if let Some(principal) = origin.principal {
        headers.insert(&X_TOKEN_ID, value(principal.record().id())?);
        if let Some(organization) = principal.organization_id() {
            headers.insert(&X_ORGANIZATION_ID, organization.field().clone());
        }
        if let Some(plan) = principal.plan() {
            headers.insert(&X_PLAN_TIER, plan.field().clone());
        }
    }
    if let Some(certificate) = origin.certificate {
        headers.insert(&X_CLIENT_CERT_SUBJECT, certificate.subject().clone());
        if let Some(names) = certificate.alternatives() {
            headers.insert(&X_CLIENT_CERT_SAN, names.clone());
        }
        headers.insert(&X_CLIENT_CERT_FINGERPRINT, certificate.fingerprint().clone());
    }
    if let Some(prefix) = origin.stripped {
        headers.insert(&X_FORWARDED_PREFIX, value(prefix)?);
    }
    set_traceparent(headers, origin.seen)?;
    if rules.is_empty() {
        return Ok(());
    }
    remove_imitations(headers, rules);
    let values = Values {
        client: origin.client,
        request_id: Some(origin.request_id),
        principal: origin.principal,
        host: host.as_ref(),
        route: origin.route,
        certificate: origin.certificate,
    };
    apply(rules, headers, &values);
    Ok(())
}

/// Removes every field that may not go on to the upstream.
fn remove_claims(headers: &mut HeaderMap, trusted: bool, pass: &[HeaderName]) {
    let spoofed = |name: &&HeaderName| !fields::may_pass(name, trusted, pass);
    let names: Vec<HeaderName> = headers.keys().filter(spoofed).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
}

/// Removes the client's other spellings of the fields that `rules` set or remove: an upstream may read `X_Tenant` as
/// `X-Tenant`.
fn remove_imitations(headers: &mut HeaderMap, rules: &HeaderRules) {
    let imitates =
        |name: &&HeaderName| rules.names().any(|own| fields::imitates(name.as_str(), own.as_str()));
    let names: Vec<HeaderName> = headers.keys().filter(imitates).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{headers, rewritten};
    use super::*;

    #[test]
    fn identity_is_never_the_clients_word() {
        let request = rewritten(
            &[
                ("Host", "h"),
                ("X-Token-ID", "root"),
                ("x_token_id", "root"),
                ("X.Organization.Id", "root"),
                ("X-Plan_Tier", "gold"),
                ("x_request_id", "spoofed"),
                ("X~Token~ID", "root"),
                ("X+Organization+ID", "root"),
                ("X'Plan'Tier", "gold"),
                ("X_API_Key", "forged"),
                ("Proxy_Authorization", "forged"),
                ("X-Original-URL", "/admin"),
                ("X-HTTP-Method-Override", "DELETE"),
                ("Proxy", "http://evil.test"),
                ("True-Client-IP", "6.6.6.6"),
                ("X-Forwarded-For", "6.6.6.6"),
                ("X_Forwarded-For", "6.6.6.6"),
                ("Forwarded", "for=6.6.6.6"),
                ("X-Real-IP", "6.6.6.6"),
                ("X-Forwarded-User", "root"),
                ("X_Forwarded_Email", "root@example.com"),
                ("Transfer_Encoding", "chunked"),
                ("content.length", "9"),
                ("X-Custom", "stays"),
            ],
            false,
        );
        let mut names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "host",
                "traceparent",
                "x-custom",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-request-id",
            ]
        );
        assert_eq!(request.headers["x-forwarded-for"], "10.0.0.1");
        assert_eq!(request.headers["x-request-id"], "id");
    }

    #[test]
    fn no_other_spelling_of_a_rules_field_passes() {
        let name = HeaderName::from_static;
        let rules = HeaderRules {
            set: vec![(name("x-tenant"), HeaderValue::from_static("acme"))],
            made: Vec::new(),
            remove: vec![name("x-internal"), name("x_cgi_flag")],
        };
        let mut headers = headers(&[
            ("X-Tenant", "1"),
            ("X_Tenant", "2"),
            ("x.tenant", "3"),
            ("X~Internal", "4"),
            ("X-CGI-Flag", "5"),
            ("X_CGI-Flag", "6"),
            ("X-Tenants", "stays"),
            ("XxTenant", "stays"),
            ("X-Internal", "a rule removes it"),
        ]);
        remove_imitations(&mut headers, &rules);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-internal", "x-tenant", "x-tenants", "xxtenant"]);
    }

    #[test]
    fn a_trusted_proxy_is_believed_about_the_way() {
        let fields = [
            ("Host", "h"),
            ("X-Forwarded-For", "1.1.1.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "public"),
            ("X-Forwarded-User", "alice"),
            ("X-Token-ID", "root"),
            ("X_Forwarded_For", "6.6.6.6"),
        ];
        let request = rewritten(&fields, true);
        assert_eq!(request.headers["x-forwarded-for"], "1.1.1.1, 10.0.0.1");
        assert_eq!(request.headers["x-forwarded-proto"], "https");
        assert_eq!(request.headers["x-forwarded-host"], "public");
        assert_eq!(request.headers["x-forwarded-user"], "alice");
        assert!(!request.headers.contains_key("x-token-id"));
        assert!(!request.headers.contains_key("x_forwarded_for"));
    }
}
