//! Header fields the gateway sets, replaces and removes, on the way in and on the way out.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use ipnet::IpNet;
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use uuid::Builder;

use crate::admission::Findings;
use crate::auth::Principal;
use crate::base::clock::UnixTime;
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{Decision, LimitState};
use crate::quota::Limit;
use crate::route::fields;
use crate::route::headers::HeaderRules;

// Names for which the http crate has no constant. A name given as text would be parsed at each use.
static X_REQUEST_ID: HeaderName = HeaderName::from_static(fields::REQUEST_ID);
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static(fields::FORWARDED_FOR);
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static(fields::FORWARDED_PROTO);
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static(fields::FORWARDED_HOST);
static X_TOKEN_ID: HeaderName = HeaderName::from_static(fields::TOKEN_ID);
static X_ORGANIZATION_ID: HeaderName = HeaderName::from_static(fields::ORGANIZATION_ID);
static X_PLAN_TIER: HeaderName = HeaderName::from_static(fields::PLAN_TIER);
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Most fields that a request or an answer is given here.
const OWN_FIELDS: usize = 8;

/// Which fields a request has, of those that matter here. One look at all names costs less than one
/// look-up in the map, and most of these fields are absent from most requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `Content-Length`.
    pub content_length: bool,
    /// `Expect`.
    pub expect: bool,
    /// `Upgrade`.
    pub upgrade: bool,
    /// Fields that concern one connection only (RFC 9110 section 7.6.1), or are named by one that does.
    pub hop_by_hop: bool,
    api_key: bool,
    request_id: bool,
    trace: bool,
    /// Fields that claim what a client may not say, or that are spelled like one.
    suspicious: bool,
}

impl Seen {
    /// Any field may be there: the names have not been looked at.
    pub const ANYTHING: Self = Self::all(true);

    const fn all(seen: bool) -> Self {
        Self {
            content_length: seen,
            expect: seen,
            upgrade: seen,
            hop_by_hop: seen,
            api_key: seen,
            request_id: seen,
            trace: seen,
            suspicious: seen,
        }
    }

    /// Looks at the names of `headers`.
    pub fn in_request(headers: &HeaderMap) -> Self {
        let mut seen = Self::all(false);
        for name in headers.keys() {
            match name.as_str() {
                "content-length" => seen.content_length = true,
                "expect" => seen.expect = true,
                "x-api-key" => seen.api_key = true,
                "x-request-id" => seen.request_id = true,
                "traceparent" | "tracestate" => seen.trace = true,
                "upgrade" => (seen.upgrade, seen.hop_by_hop) = (true, true),
                name if fields::is_hop_by_hop(name) => seen.hop_by_hop = true,
                name => seen.suspicious |= fields::claim(name).is_some(),
            }
        }
        seen
    }
}

/// The request's id: the client's when it is sane, else a new UUIDv7 (RFC 9562 section 5.7).
pub fn request_id(headers: &HeaderMap, seen: Seen, now: UnixTime) -> HeaderValue {
    if !seen.request_id {
        return new_request_id(now);
    }
    let mut sent = headers.get_all(&X_REQUEST_ID).iter();
    match (sent.next(), sent.next()) {
        (Some(id), None) if is_sane_id(id.as_bytes()) => id.clone(),
        _ => new_request_id(now),
    }
}

/// A new request id.
pub fn new_request_id(now: UnixTime) -> HeaderValue {
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let id = Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.hyphenated().encode_lower(&mut text);
    // Hexadecimal digits and hyphens are a field value.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

fn is_sane_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte))
}

/// The announced length of a body, in bytes.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether `Connection` names `Upgrade`.
pub fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| fields::list_names(value.as_bytes(), b"upgrade"))
}

/// The client's address: the peer, or what trusted proxies say, read from the right.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    for value in headers.get_all(&X_FORWARDED_FOR).iter().rev() {
        for hop in value.to_str().unwrap_or_default().rsplit(',') {
            if !is_trusted(client, trusted) {
                return client;
            }
            match parse_hop(hop.trim()) {
                Some(address) => client = address,
                None => return client,
            }
        }
    }
    client
}

/// Whether `address` is one of the trusted proxies.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address.to_canonical()))
}

fn parse_hop(hop: &str) -> Option<IpAddr> {
    let address = hop.parse::<std::net::SocketAddr>().map(|with_port| with_port.ip());
    address.or_else(|_| hop.trim_matches(['[', ']']).parse()).ok()
}

/// Where a request comes from, as far as the gateway knows.
pub struct Origin<'a> {
    /// Which fields the request has.
    pub seen: Seen,
    /// The address at the other end of the connection.
    pub peer: Option<IpAddr>,
    /// Whether the peer is a trusted proxy, whose forwarding fields are believed.
    pub trusted: bool,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// The owner of its token, where it has one.
    pub principal: Option<&'a Principal>,
}

/// Drops how the names of a request's fields were spelled: they are not case-sensitive (RFC 9110
/// section 5.1). Pingora keeps that in a second map, which it copies and looks into with the first.
///
/// The scheme and authority of an absolute target are dropped too: where there is a `Host`, it says the
/// same.
pub fn forget_spelling(request: &mut RequestHeader) {
    *request = take_parts(request).into();
}

/// The plain parts of a request's header, which is left empty.
fn take_parts(request: &mut RequestHeader) -> http::request::Parts {
    let nothing = http::Request::new(()).into_parts().0.into();
    std::mem::replace(request, nothing).into()
}

/// Makes the fields of a request what the upstream may rely on.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn rewrite_request(
    request: &mut RequestHeader,
    origin: &Origin<'_>,
    forward_credential: bool,
    rules: &HeaderRules,
) -> Result<()> {
    // Pingora's own methods take names as text: four times the work.
    let mut parts = take_parts(request);
    let result = set_request_fields(&mut parts.headers, origin, forward_credential, rules);
    *request = parts.into();
    result
}

fn set_request_fields(
    headers: &mut HeaderMap,
    origin: &Origin<'_>,
    forward_credential: bool,
    rules: &HeaderRules,
) -> Result<()> {
    if origin.seen.suspicious {
        remove_spoofed(headers, origin.trusted);
    }
    if !forward_credential {
        headers.remove(header::AUTHORIZATION);
        if origin.seen.api_key {
            headers.remove(&X_API_KEY);
        }
    }
    headers.reserve(OWN_FIELDS + rules.set.len());
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
    if let Some(principal) = origin.principal {
        headers.insert(&X_TOKEN_ID, value(principal.record().id())?);
        if let Some(organization) = principal.organization_id() {
            headers.insert(&X_ORGANIZATION_ID, organization.field().clone());
        }
        if let Some(plan) = principal.plan() {
            headers.insert(&X_PLAN_TIER, plan.field().clone());
        }
    }
    set_traceparent(headers, origin.seen)?;
    apply(rules, headers);
    Ok(())
}

fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    for name in &rules.remove {
        headers.remove(name);
    }
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
}

/// Text of the gateway's own as the value of a field.
fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "a value of the gateway's own")
}

fn number(number: u64) -> Result<HeaderValue> {
    value(itoa::Buffer::new().format(number))
}

/// Removes fields that claim what the sender may not say, in every spelling that an upstream may take for
/// them.
fn remove_spoofed(headers: &mut HeaderMap, trusted: bool) {
    let spoofed = |name: &&HeaderName| !fields::may_pass(name.as_str(), trusted);
    let names: Vec<HeaderName> = headers.keys().filter(spoofed).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
}

/// The peer, after what the proxies before it said.
fn forwarded_for<'a>(earlier: impl Iterator<Item = &'a HeaderValue>, peer: IpAddr) -> String {
    let mut hops = String::with_capacity(15);
    for text in earlier.filter_map(|value| value.to_str().ok()) {
        hops.push_str(text.trim());
        hops.push_str(", ");
    }
    match peer.to_canonical() {
        IpAddr::V4(peer) => {
            let mut separator = "";
            for octet in peer.octets() {
                hops.push_str(separator);
                hops.push_str(itoa::Buffer::new().format(octet));
                separator = ".";
            }
        }
        peer @ IpAddr::V6(_) => {
            let _ = write!(hops, "{peer}");
        }
    }
    hops
}

/// Passes a valid `traceparent` on, and starts a trace where there is none (W3C Trace Context,
/// section 3.2).
fn set_traceparent(headers: &mut HeaderMap, seen: Seen) -> Result<()> {
    if seen.trace {
        let mut sent = headers.get_all(&TRACEPARENT).iter();
        if let (Some(value), None) = (sent.next(), sent.next())
            && is_traceparent(value.as_bytes())
        {
            return Ok(());
        }
        // A state without its parent belongs to no trace.
        headers.remove(&TRACESTATE);
    }
    let mut parent = *b"00-................................-................-00";
    write_hex(fastrand::u64(1..), &mut parent[3..19]);
    write_hex(fastrand::u64(..), &mut parent[19..35]);
    write_hex(fastrand::u64(1..), &mut parent[36..52]);
    let parent = HeaderValue::from_bytes(&parent)
        .or_err(ErrorType::InvalidHTTPHeader, "a value of the gateway's own")?;
    headers.insert(&TRACEPARENT, parent);
    Ok(())
}

/// The last digits of `number`, as many as there is room for, in lower case.
fn write_hex(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let zero = |part: &[u8]| part.iter().all(|&byte| byte == b'0');
    value.len() == 55
        && value[2] == b'-'
        && value[35] == b'-'
        && value[52] == b'-'
        && &value[..2] == b"00"
        && hex(&value[3..35])
        && hex(&value[36..52])
        && hex(&value[53..])
        && !zero(&value[3..35])
        && !zero(&value[36..52])
}

/// Makes an upstream's answer one that may be passed on: no fields of its own connection, one framing.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn clean_response(response: &mut ResponseHeader) -> Result<()> {
    if response.headers.keys().any(stays_on_its_hop) {
        remove_hop_by_hop(response);
    }
    if response.status == http::StatusCode::NO_CONTENT || response.status.is_informational() {
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    // Pingora has made sure that several lengths are equal. Nearly always no name comes twice.
    let repeated = response.headers.len() > response.headers.keys_len();
    if repeated
        && response.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = response.headers.get(header::CONTENT_LENGTH).cloned()
    {
        response.insert_header(header::CONTENT_LENGTH, length)?;
    }
    Ok(())
}

/// Whether a field of an answer goes no further. The framing is left to Pingora.
fn stays_on_its_hop(name: &HeaderName) -> bool {
    fields::is_hop_by_hop(name.as_str()) && name != header::TRANSFER_ENCODING
}

fn remove_hop_by_hop(response: &mut ResponseHeader) {
    let switching = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = &response.headers;
    let nominated = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The framing is Pingora's business, and an upgrade needs its field.
        .filter(|name| {
            *name != header::CONTENT_LENGTH
                && *name != header::TRANSFER_ENCODING
                && *name != header::UPGRADE
        });
    let own = headers
        .keys()
        .filter(|name| stays_on_its_hop(name))
        .filter(|name| !(switching && [header::CONNECTION, header::UPGRADE].contains(name)))
        .cloned();
    let names: Vec<HeaderName> = nominated.chain(own).collect();
    for name in &names {
        response.remove_header(name);
    }
}

/// Sets the fields that every answer carries, then applies the route's rules.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn finish_response(
    response: &mut ResponseHeader,
    client: Version,
    request_id: Option<&HeaderValue>,
    findings: &Findings,
    rate_headers: RateHeaders,
    rules: &HeaderRules,
) -> Result<()> {
    // The version is this hop's, not the upstream's (RFC 9112 section 2.3).
    response.set_version(Version::HTTP_11);
    let usual = response.status.canonical_reason();
    let reason = response.get_reason_phrase().filter(|own| Some(*own) != usual).map(str::to_owned);
    let nothing = http::Response::new(()).into_parts().0.into();
    let mut parts = http::response::Parts::from(std::mem::replace(response, nothing));
    let headers = &mut parts.headers;
    headers.reserve(OWN_FIELDS + rules.set.len());
    if client == Version::HTTP_10 {
        // HTTP/1.0 knows no chunks: the end of the connection ends the body (RFC 9112 section 6.3).
        headers.remove(header::TRANSFER_ENCODING);
    }
    if let Some(id) = request_id {
        headers.insert(&X_REQUEST_ID, id.clone());
    }
    set_rate_fields(headers, findings, rate_headers)?;
    apply(rules, headers);
    *response = parts.into();
    if reason.is_some() {
        response.set_reason_phrase(reason.as_deref())?;
    }
    Ok(())
}

/// Sets the rate fields: draft-ietf-httpapi-ratelimit-headers, one member a limit, and the legacy ones
/// for the tightest limit of all.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn set_rate_fields(
    headers: &mut HeaderMap,
    findings: &Findings,
    wanted: RateHeaders,
) -> Result<()> {
    let known = || {
        findings.decisions.iter().flat_map(|decision| {
            let states = decision.limits.iter().zip(&decision.states);
            states.enumerate().map(move |(at, (limit, state))| (decision, at, limit, state))
        })
    };
    let tightness = |(decision, at, _, state): &(&Decision, usize, &Limit, &LimitState)| {
        (decision.admitted, decision.tightness(*at, state))
    };
    // Nearly always there is one limit, and nothing to compare.
    let tighter = |one, other| if tightness(&other) < tightness(&one) { other } else { one };
    let Some((_, _, tightest, left)) = known().reduce(tighter) else { return Ok(()) };
    if matches!(wanted, RateHeaders::Standard | RateHeaders::Both) {
        let mut members = String::with_capacity(48);
        for (_, _, limit, state) in known() {
            push_member(&mut members, limit, state);
        }
        headers.insert(&RATELIMIT_POLICY, policy(findings)?);
        headers.insert(&RATELIMIT, value(&members)?);
    }
    if matches!(wanted, RateHeaders::Legacy | RateHeaders::Both) {
        headers.insert(&X_RATELIMIT_LIMIT, number(tightest.quota)?);
        headers.insert(&X_RATELIMIT_REMAINING, number(left.remaining)?);
        headers.insert(&X_RATELIMIT_RESET, number(whole_seconds(left.reset_after))?);
    }
    Ok(())
}

/// The limits about which something is known.
fn policy(findings: &Findings) -> Result<HeaderValue> {
    let sets = findings.policies.iter().zip(&findings.decisions);
    let mut known = sets.filter(|(_, decision)| !decision.states.is_empty()).map(|set| set.0);
    // Nearly always there is one policy, whose bytes are shared.
    let first = known.next().cloned().unwrap_or_default();
    let all = known.fold(first, |all, policy| [&all[..], b", ", policy].concat().into());
    HeaderValue::from_maybe_shared(all)
        .or_err(ErrorType::InvalidHTTPHeader, "a value of the gateway's own")
}

/// Appends `"name";r=remaining;t=seconds` to a list. On every answer: `write!` takes five times as long.
fn push_member(members: &mut String, limit: &Limit, state: &LimitState) {
    members.push_str(if members.is_empty() { "\"" } else { ", \"" });
    members.push_str(&limit.name);
    members.push_str("\";r=");
    members.push_str(itoa::Buffer::new().format(state.remaining));
    members.push_str(";t=");
    members.push_str(itoa::Buffer::new().format(whole_seconds(state.reset_after)));
}

/// Seconds, rounded up: a client that waits so long does not come too early.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_the_first_hop_that_is_not_trusted() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, fields, client) in [
            ("203.0.113.9", &[("x-forwarded-for", "1.1.1.1")][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.1.1.1, 10.0.0.2")], "1.1.1.1"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")],
                "1.1.1.1",
            ),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, rubbish")], "10.0.0.1"),
            ("fd00::1", &[("x-forwarded-for", "[2001:db8::1]:44")], "2001:db8::1"),
            ("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
        ] {
            let found = client_ip(peer.parse().unwrap(), &headers(fields), &trusted);
            assert_eq!(found.to_string(), client, "{peer} {fields:?}");
        }
    }

    fn id_of(fields: &[(&str, &str)]) -> HeaderValue {
        let headers = headers(fields);
        request_id(&headers, Seen::in_request(&headers), UnixTime::from_secs(1_000_000))
    }

    #[test]
    fn request_ids_are_kept_when_sane() {
        assert_eq!(id_of(&[("x-request-id", "abc-1")]), "abc-1");
        let long = "x".repeat(129);
        for fields in [
            &[][..],
            &[("x-request-id", "")],
            &[("x-request-id", "a b")],
            &[("x-request-id", "a\"b")],
            &[("x-request-id", &long)],
            &[("x-request-id", "a"), ("x-request-id", "b")],
        ] {
            let id = id_of(fields);
            let id = uuid::Uuid::parse_str(id.to_str().unwrap()).unwrap();
            assert_eq!(id.get_version_num(), 7, "{fields:?}");
        }
    }

    fn rewritten(fields: &[(&'static str, &'static str)], trusted: bool) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        let id = HeaderValue::from_static("id");
        let origin = Origin {
            seen: Seen::in_request(&request.headers),
            peer: Some("10.0.0.1".parse().unwrap()),
            trusted,
            scheme: "http",
            request_id: &id,
            principal: None,
        };
        rewrite_request(&mut request, &origin, true, &HeaderRules::default()).unwrap();
        request
    }

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

    #[test]
    fn traces_are_continued_or_begun() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(rewritten(&[("traceparent", valid)], false).headers["traceparent"], valid);
        for bad in ["x", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let request = rewritten(&[("traceparent", bad), ("tracestate", "a=b")], false);
            assert!(is_traceparent(request.headers["traceparent"].as_bytes()));
            assert!(!request.headers.contains_key("tracestate"));
        }
    }

    #[test]
    fn an_answers_own_connection_fields_stay_behind() {
        let mut response = ResponseHeader::build(204, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Internal"),
            ("X-Internal", "secret"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("Trailer", "X-Checksum"),
            ("Content-Length", "0"),
            ("Transfer-Encoding", "chunked"),
            ("X-Public", "stays"),
        ] {
            response.append_header(name, value).unwrap();
        }
        clean_response(&mut response).unwrap();
        let names: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-public"]);
    }
}
