//! The places of a request in which a credential may stand, and the removal of credentials that were not verified.
//!
//! One rule holds for every place: all credentials of a request are the same, and a value that looks like a credential
//! reaches an upstream only if the gateway verified it. This file must not know whether a credential is valid.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode;

use super::credential::{CredentialError, MAX_CREDENTIAL};
use crate::base::class::{TOKEN, span};
use crate::route::fields::elements;

// A name given as text would be parsed at each look-up.
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// One place in which a credential may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `Authorization: Bearer X` (RFC 6750 section 2.1).
    Authorization,
    /// `X-API-Key: X`.
    ApiKey,
    /// The query parameter of this name.
    Query(String),
    /// The cookie of this name.
    Cookie(String),
    /// The protocol after this one in `Sec-WebSocket-Protocol`: browsers cannot set other fields of a WebSocket.
    Subprotocol(String),
}

/// The places in which a credential may stand. The order has no meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    authorization: bool,
    api_key: bool,
    query: Vec<String>,
    cookies: Vec<String>,
    subprotocols: Vec<String>,
}

impl Default for Sources {
    /// `Authorization` and `X-API-Key`.
    fn default() -> Self {
        Self::new([Source::Authorization, Source::ApiKey])
    }
}

/// What happens to credentials on the way to the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// Whether the credential of the request was verified.
    pub verified: bool,
    /// Whether the route forwards a verified credential.
    pub forward: bool,
    /// The fields that pass without having been verified.
    pub pass: &'a [HeaderName],
}

impl Sources {
    /// The places in `sources`.
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        let mut all = Self {
            authorization: false,
            api_key: false,
            query: Vec::new(),
            cookies: Vec::new(),
            subprotocols: Vec::new(),
        };
        for source in sources {
            match source {
                Source::Authorization => all.authorization = true,
                Source::ApiKey => all.api_key = true,
                Source::Query(name) => all.query.push(name),
                Source::Cookie(name) => all.cookies.push(name),
                Source::Subprotocol(name) => all.subprotocols.push(name),
            }
        }
        all
    }

    /// The bytes of the one credential of a request, at most [`MAX_CREDENTIAL`], or `None`. Other authorization schemes
    /// are no credential here, and an empty value beside a credential is none.
    ///
    /// # Errors
    /// [`CredentialError`] when there are different credentials, or a malformed one.
    pub fn sent<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a [u8]>,
    ) -> Result<Option<Cow<'a, [u8]>>, CredentialError> {
        let mut found = Found::default();
        let mut authorization: Option<&HeaderValue> = None;
        // Going over all fields costs less than looking for two.
        for (name, value) in headers {
            if name == header::AUTHORIZATION && self.authorization {
                // The field is a singleton (RFC 9110 section 11.6.2): an upstream may read either of two.
                if authorization.is_some_and(|earlier| earlier != value) {
                    return Err(CredentialError::Ambiguous);
                }
                authorization = Some(value);
                if let Some(bearer) = bearer(value.as_bytes())? {
                    found.add(bearer.into())?;
                }
            } else if name == X_API_KEY && self.api_key {
                found.add(value.as_bytes().into())?;
            } else if name == header::COOKIE && !self.cookies.is_empty() {
                for cookie in readings(value.as_bytes()).filter(|cookie| self.is_cookie(cookie)) {
                    found.add(cookie_value(cookie).into())?;
                }
            }
        }
        for protocol in self.after_subprotocols(headers) {
            found.add(protocol.into())?;
        }
        if !self.query.is_empty() {
            for parameter in parameters(query.unwrap_or_default()) {
                if self.is_parameter(parameter) {
                    found.add(percent_decode(after_equals(parameter)).into())?;
                }
            }
        }
        found.into_credential()
    }

    /// Removes the credentials that may not reach the upstream from the fields of a request.
    pub fn clean_headers(&self, headers: &mut HeaderMap, onward: Onward<'_>) {
        let Onward { verified, forward, pass } = onward;
        let may_stay = |is_credential: bool, name: &HeaderName| match is_credential && verified {
            true => forward,
            false => pass.contains(name),
        };
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let bearer = bearer(value.as_bytes()).ok().flatten();
            let is_credential = self.authorization && bearer.is_some_and(|text| !text.is_empty());
            if !may_stay(is_credential, &header::AUTHORIZATION) {
                headers.remove(header::AUTHORIZATION);
            }
        }
        if headers.contains_key(&X_API_KEY) {
            let mut values = headers.get_all(&X_API_KEY).iter();
            let is_credential = self.api_key && values.any(|value| !value.is_empty());
            if !may_stay(is_credential, &X_API_KEY) {
                headers.remove(&X_API_KEY);
            }
        }
        if !self.cookies.is_empty() {
            self.remove_cookies(headers);
        }
        if !self.subprotocols.is_empty() {
            self.remove_subprotocols(headers);
        }
    }

    /// The query without credentials; `None` when it has none.
    pub fn clean_query(&self, query: &[u8]) -> Option<Vec<u8>> {
        if self.query.is_empty() {
            return None;
        }
        if !parameters(query).any(|parameter| self.is_parameter(parameter)) {
            return None;
        }
        let mut kept = Vec::with_capacity(query.len());
        // Each parameter is kept with the separator before it.
        let mut separator = None;
        let mut rest = query;
        loop {
            let end = rest.iter().position(separates).unwrap_or(rest.len());
            let (parameter, after) = rest.split_at(end);
            if !self.is_parameter(parameter) {
                if !kept.is_empty() {
                    kept.extend(separator);
                }
                kept.extend_from_slice(parameter);
            }
            let Some((&next, after)) = after.split_first() else { return Some(kept) };
            (separator, rest) = (Some(next), after);
        }
    }

    /// The protocol that an answer selects where the upstream, which does not see the credential, selects none: a
    /// browser closes a WebSocket whose protocols were all declined (RFC 6455 section 4.1).
    pub fn selected_subprotocol(&self, headers: &HeaderMap) -> Option<&str> {
        let sent = protocols(headers).collect::<Vec<_>>();
        let is_sent = |name: &&String| sent.contains(&name.as_bytes());
        self.subprotocols.iter().find(is_sent).map(String::as_str)
    }

    /// Names of cookies keep their case, and their signs but for those that PHP does not take.
    fn is_cookie(&self, cookie: &[u8]) -> bool {
        let folded = |byte: u8| if matches!(byte, b'.' | b' ' | b'[') { b'_' } else { byte };
        is_named(cookie, &self.cookies, folded)
    }

    fn is_parameter(&self, parameter: &[u8]) -> bool {
        is_named(parameter, &self.query, without_case_and_signs)
    }

    /// The protocols that stand after one of the sources.
    fn after_subprotocols<'a>(&self, headers: &'a HeaderMap) -> Vec<&'a [u8]> {
        if self.subprotocols.is_empty() {
            return Vec::new();
        }
        let mut after = Vec::new();
        let mut is_next = false;
        for protocol in protocols(headers) {
            if std::mem::take(&mut is_next) {
                after.push(protocol);
            } else {
                is_next = self.is_subprotocol(protocol);
            }
        }
        after
    }

    fn is_subprotocol(&self, protocol: &[u8]) -> bool {
        let unquoted = protocol.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        let name = unquoted.unwrap_or(protocol);
        self.subprotocols.iter().any(|own| own.as_bytes().eq_ignore_ascii_case(name))
    }

    fn remove_cookies(&self, headers: &mut HeaderMap) {
        let all = headers.get_all(header::COOKIE);
        let has_own =
            |value: &HeaderValue| readings(value.as_bytes()).any(|cookie| self.is_cookie(cookie));
        if !all.iter().any(has_own) {
            return;
        }
        let kept: Vec<Vec<u8>> = all
            .iter()
            .flat_map(|value| cookies(value.as_bytes()))
            .filter(|cookie| !cookie.is_empty() && !self.is_cookie(cookie))
            .map(|cookie| self.without_listed(cookie))
            .filter(|cookie| !cookie.is_empty())
            .collect();
        let kept = kept.join(&b"; "[..]);
        replace(headers, header::COOKIE, kept.trim_ascii());
    }

    /// `cookie`, which is none of the cookies itself, without those that begin in it.
    fn without_listed(&self, cookie: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(cookie.len());
        // Each piece is kept with the separator before it.
        let mut begin = 0;
        for piece in cookie.split(begins_cookie) {
            let end = begin + piece.len();
            if piece.contains(&b'=') && self.is_cookie(piece) {
                while kept.last().is_some_and(begins_cookie) {
                    kept.pop();
                }
            } else {
                kept.extend_from_slice(
                    cookie.get(begin.saturating_sub(1)..end).unwrap_or_default(),
                );
            }
            begin = end + 1;
        }
        kept
    }

    fn remove_subprotocols(&self, headers: &mut HeaderMap) {
        if !protocols(headers).any(|protocol| self.is_subprotocol(protocol)) {
            return;
        }
        let mut is_next = false;
        let kept: Vec<&[u8]> = protocols(headers)
            .filter(|protocol| {
                let is_credential = std::mem::take(&mut is_next);
                is_next = !is_credential && self.is_subprotocol(protocol);
                !is_credential && !is_next
            })
            .collect();
        let kept = kept.join(&b", "[..]);
        replace(headers, header::SEC_WEBSOCKET_PROTOCOL, &kept);
    }
}

/// The credentials found so far.
#[derive(Default)]
struct Found<'a> {
    credential: Option<Cow<'a, [u8]>>,
    has_empty: bool,
}

impl<'a> Found<'a> {
    fn add(&mut self, credential: Cow<'a, [u8]>) -> Result<(), CredentialError> {
        match &self.credential {
            _ if credential.is_empty() => self.has_empty = true,
            Some(earlier) if *earlier != credential => return Err(CredentialError::Ambiguous),
            Some(_) => {}
            None => self.credential = Some(credential),
        }
        Ok(())
    }

    fn into_credential(self) -> Result<Option<Cow<'a, [u8]>>, CredentialError> {
        match self.credential {
            Some(credential) if credential.len() > MAX_CREDENTIAL => {
                Err(CredentialError::Malformed)
            }
            None if self.has_empty => Err(CredentialError::Malformed),
            found => Ok(found),
        }
    }
}

/// The token after the scheme `Bearer`, in any case (RFC 9110 section 11.1); `None` for another scheme.
///
/// # Errors
/// [`CredentialError::Field`] when the scheme does not end with a space: another server may end it there.
fn bearer(value: &[u8]) -> Result<Option<&[u8]>, CredentialError> {
    let (scheme, rest) = span(value, &TOKEN);
    if scheme.is_empty() && !value.is_empty() || !matches!(rest.first(), None | Some(b' ')) {
        return Err(CredentialError::Field);
    }
    Ok(scheme.eq_ignore_ascii_case(b"bearer").then(|| rest.trim_ascii()))
}

/// The cookies of a field, `name=value` each (RFC 6265 section 4.2.1).
fn cookies(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b';').map(<[u8]>::trim_ascii)
}

/// The cookies of a field as servers may read them. Some begin a cookie after `,` (RFC 2965 section 3.3.4) or after white
/// space too; what has no `=` there is part of a value.
fn readings(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookies(value).flat_map(|cookie| {
        let listed = cookie.split(begins_cookie).skip(1);
        std::iter::once(cookie).chain(listed.filter(|piece| piece.contains(&b'=')))
    })
}

fn begins_cookie(byte: &u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t')
}

/// The value of a cookie, without the quotes it may have.
fn cookie_value(cookie: &[u8]) -> &[u8] {
    let value = after_equals(cookie).trim_ascii();
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// The value of `name=value`; empty where there is no `=`.
fn after_equals(pair: &[u8]) -> &[u8] {
    pair.iter().position(|&byte| byte == b'=').map_or(b"", |at| &pair[at + 1..])
}

/// The form in which names of parameters are compared: some servers ignore case, and some read every sign alike.
fn without_case_and_signs(byte: u8) -> u8 {
    match byte.is_ascii_alphanumeric() {
        true => byte.to_ascii_lowercase(),
        false => b'-',
    }
}

/// Whether an upstream may read the name of `pair`, `name=value`, as one of `names`. Servers decode names, and take the
/// bytes for the same that `folded` makes the same. PHP drops spaces before a name and ends it at NUL; frameworks read
/// `name[]` and `name[key]` as `name`, and Rack drops other brackets around it.
fn is_named(pair: &[u8], names: &[String], folded: impl Fn(u8) -> u8) -> bool {
    let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default();
    let name: Cow<'_, [u8]> = percent_decode(name).into();
    // In a query, `+` is a space.
    let is_dropped = |byte: &u8| b" \t\n\x0b\x0c\r+[]".contains(byte);
    let begin = name.iter().position(|byte| !is_dropped(byte)).unwrap_or(name.len());
    let name = name.get(begin..).unwrap_or_default();
    let end = name.iter().rposition(|byte| !b" \t\n\x0b\x0c\r+".contains(byte));
    let name = name.get(..=end.unwrap_or_default()).unwrap_or_default();
    names.iter().any(|own| {
        name.split_at_checked(own.len()).is_some_and(|(start, rest)| {
            matches!(rest.first(), None | Some(b'[' | b']' | 0))
                && own.bytes().zip(start).all(|(own, &byte)| folded(own) == folded(byte))
        })
    })
}

/// The parameters of a query.
fn parameters(query: &[u8]) -> impl Iterator<Item = &[u8]> {
    query.split(separates)
}

/// Whether a parameter of a query ends at `byte`. Some servers take `;` for a separator too, and some look for the query
/// after the last `?`.
fn separates(byte: &u8) -> bool {
    matches!(byte, b'&' | b';' | b'?')
}

/// The protocols that a WebSocket asks for (RFC 6455 section 4.1).
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    all.flat_map(|value| elements(value.as_bytes()))
}

/// Replaces every field called `name` by one with `value`, or by none when `value` is empty.
fn replace(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    match HeaderValue::from_bytes(value) {
        Ok(value) if !value.is_empty() => drop(headers.insert(name, value)),
        _ => drop(headers.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a [u8])];
    type Outcome = Result<Option<&'static str>, CredentialError>;

    fn headers(fields: Fields<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn everywhere() -> Sources {
        Sources::new([
            Source::Authorization,
            Source::ApiKey,
            Source::Query("access_token".into()),
            Source::Cookie("session".into()),
            Source::Subprotocol("bearer".into()),
        ])
    }

    fn sent(
        sources: &Sources,
        fields: Fields<'_>,
        query: &str,
    ) -> Result<Option<String>, CredentialError> {
        let headers = headers(fields);
        let sent = sources.sent(&headers, Some(query.as_bytes()))?;
        Ok(sent.map(|sent| String::from_utf8_lossy(&sent).into_owned()))
    }

    #[test]
    fn credentials_are_found_or_refused() {
        use CredentialError::*;
        let long = format!("Bearer {}", "x".repeat(MAX_CREDENTIAL + 1));
        let rows: &[(Fields<'_>, Outcome)] = &[
            (&[], Ok(None)),
            (&[("authorization", b"Bearer a.b.c")], Ok(Some("a.b.c"))),
            (&[("authorization", b"bEARER   a.b.c ")], Ok(Some("a.b.c"))),
            (&[("x-api-key", b"a.b.c")], Ok(Some("a.b.c"))),
            (&[("authorization", b"Basic dTpw")], Ok(None)),
            (&[("authorization", b"Bearerabc")], Ok(None)),
            (&[("authorization", b"a.b.c")], Ok(None)),
            (&[("authorization", b"Bearer")], Err(Malformed)),
            (&[("authorization", b"Bearer ")], Err(Malformed)),
            (&[("x-api-key", b"")], Err(Malformed)),
            (&[("authorization", long.as_bytes())], Err(Malformed)),
            (&[("authorization", b"Bearer a"), ("x-api-key", b"a")], Ok(Some("a"))),
            (&[("authorization", b"Bearer a"), ("x-api-key", b"")], Ok(Some("a"))),
            (&[("authorization", b"Bearer "), ("x-api-key", b"a")], Ok(Some("a"))),
            (&[("authorization", b"Bearer a"), ("x-api-key", b"b")], Err(Ambiguous)),
            (&[("authorization", b"Bearer a"), ("authorization", b"Bearer b")], Err(Ambiguous)),
            (&[("authorization", b"Basic a"), ("authorization", b"Bearer b")], Err(Ambiguous)),
            (&[("authorization", b"Bearer b"), ("authorization", b"Basic a")], Err(Ambiguous)),
            (&[("x-api-key", b"a"), ("x-api-key", b"b")], Err(Ambiguous)),
            (&[("x-api-key", b"a"), ("authorization", b"Bearer\tb")], Err(Field)),
            (&[("x-api-key", b"a"), ("authorization", b"Bearer\xa0b")], Err(Field)),
            (&[("x-api-key", b"a"), ("authorization", b"\xa0Bearer b")], Err(Field)),
            (&[("x-api-key", b"a"), ("authorization", b"Bearer,b")], Err(Field)),
            (&[("x-api-key", b"a"), ("authorization", b"Basic\tb")], Err(Field)),
            (&[("cookie", b"session=a"), ("sec-websocket-protocol", b"bearer, a")], Ok(None)),
        ];
        for (fields, expected) in rows {
            let found = sent(&Sources::default(), fields, "access_token=a");
            assert_eq!(found, expected.map(|text| text.map(String::from)), "{fields:?}");
        }
    }

    #[test]
    fn every_source_is_read_and_all_must_agree() {
        use CredentialError::*;
        let rows: &[(Fields<'_>, &str, Outcome)] = &[
            (&[], "access_token=a.b.c&x=1", Ok(Some("a.b.c"))),
            (&[], "x=1&access_token=a%2Bb", Ok(Some("a+b"))),
            (&[], "x=1;access_token=a", Ok(Some("a"))),
            (&[], "%61ccess_token=a", Ok(Some("a"))),
            (&[], "access_token=a&ACCESS-TOKEN=b", Err(Ambiguous)),
            (&[], "access_token=a&access_token=b", Err(Ambiguous)),
            (&[], "access_token=a&access_token[]=b", Err(Ambiguous)),
            (&[], "access_token=a&access_token%5Bx%5D=b", Err(Ambiguous)),
            (&[], "access_token=a&+access_token=b", Err(Ambiguous)),
            (&[], "access_token=a&access_token%00x=b", Err(Ambiguous)),
            (&[], "access_token=a&access_tokens=b&x[access_token]=c", Ok(Some("a"))),
            (&[], "access_token[]=a", Ok(Some("a"))),
            (&[], "access_token", Err(Malformed)),
            (&[], "x_access_token=a", Ok(None)),
            (&[("cookie", b"a=b; session=k; c=d")], "", Ok(Some("k"))),
            (&[("cookie", b"session=\"k\"")], "", Ok(Some("k"))),
            (&[("cookie", b"session=k"), ("cookie", b"session=l")], "", Err(Ambiguous)),
            (&[("cookie", b"session=k; session[x]=l")], "", Err(Ambiguous)),
            (&[("cookie", b"session=k; SESSION=l")], "", Ok(Some("k"))),
            (&[("cookie", b"session=k; a=b, session=l")], "", Err(Ambiguous)),
            (&[("cookie", b"session=k, session=l")], "", Err(Ambiguous)),
            (&[("cookie", b"session=k; a=b,session,c")], "", Ok(Some("k"))),
            (&[("cookie", b"a=b,session=k,c")], "", Ok(Some("k"))),
            (&[("cookie", b"a=session=k")], "", Ok(None)),
            (&[("cookie", b"session=k; a=1 session=l")], "", Err(Ambiguous)),
            (&[("cookie", b"session=k; a=1\tsession=l")], "", Err(Ambiguous)),
            (&[("x-api-key", b"k"), ("sec-websocket-protocol", b"bearer,,l")], "", Err(Ambiguous)),
            (&[("x-api-key", b"k"), ("sec-websocket-protocol", b"Bearer, l")], "", Err(Ambiguous)),
            (
                &[("x-api-key", b"k"), ("sec-websocket-protocol", b"\"bearer\", l")],
                "",
                Err(Ambiguous),
            ),
            (&[("sec-websocket-protocol", b"chat, bearer, k")], "", Ok(Some("k"))),
            (
                &[("sec-websocket-protocol", b"bearer"), ("sec-websocket-protocol", b"k")],
                "",
                Ok(Some("k")),
            ),
            (&[("sec-websocket-protocol", b"k, bearer")], "", Ok(None)),
            (&[("authorization", b"Bearer k")], "access_token=k", Ok(Some("k"))),
            (&[("authorization", b"Bearer k")], "access_token=l", Err(Ambiguous)),
            (&[("x-api-key", b"k"), ("cookie", b"session=l")], "", Err(Ambiguous)),
        ];
        for (fields, query, expected) in rows {
            let found = sent(&everywhere(), fields, query);
            assert_eq!(found, expected.map(|text| text.map(String::from)), "{fields:?} {query}");
        }
    }

    #[test]
    fn names_are_read_as_any_server_may_read_them() {
        let own = ["other".to_owned(), "sess_ion".to_owned()];
        for name in [
            "sess_ion",
            "SESS-ion",
            "sess.ion",
            "sess ion",
            "sess[ion",
            "sess%5fion",
            "sess_ion[]",
            "sess_ion%5Bx%5D",
            "sess_ion[x][y]",
            "sess_ion[",
            "sess_ion]",
            "[sess_ion]",
            "sess_ion%00x",
            "+sess_ion",
            "%20%09+sess_ion[]",
            " sess_ion ",
            "sess_ion+",
        ] {
            assert!(is_named(name.as_bytes(), &own, without_case_and_signs), "{name}");
            assert!(
                is_named(format!("{name}=x").as_bytes(), &own, without_case_and_signs),
                "{name}=x"
            );
        }
        for name in
            ["", "[]", "sess", "session", "sess_ions", "sess_ion.x", "x[sess_ion]", "x+sess_ion"]
        {
            assert!(
                !is_named(format!("{name}=sess_ion").as_bytes(), &own, without_case_and_signs),
                "{name}"
            );
        }
    }

    #[test]
    fn only_verified_credentials_go_on() {
        let pass = [header::AUTHORIZATION];
        let fields: Fields<'_> =
            &[("authorization", b"Bearer k"), ("x-api-key", b"k"), ("x-other", b"1")];
        for (verified, forward, pass, kept) in [
            (true, true, &[][..], &["authorization", "x-api-key", "x-other"][..]),
            (true, false, &[], &["x-other"]),
            (true, false, &pass, &["x-other"]),
            (false, true, &[], &["x-other"]),
            (false, true, &pass, &["authorization", "x-other"]),
        ] {
            let mut headers = headers(fields);
            Sources::default().clean_headers(&mut headers, Onward { verified, forward, pass });
            let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, kept, "{verified} {forward} {pass:?}");
        }
        let onward = Onward { verified: true, forward: true, pass: &[] };
        for (field, value) in [
            ("authorization", &b"Basic dTpw"[..]),
            ("authorization", b"Bearer"),
            ("x-api-key", b""),
        ] {
            let mut headers = headers(&[(field, value)]);
            Sources::default().clean_headers(&mut headers, onward);
            assert!(headers.is_empty(), "{field}");
        }
        let key_alone = Sources::new([Source::ApiKey]);
        let mut both = headers(fields);
        key_alone.clean_headers(&mut both, onward);
        assert!(!both.contains_key("authorization") && both.contains_key("x-api-key"));
    }

    #[test]
    fn credentials_outside_of_fields_never_go_on() {
        let onward = Onward { verified: true, forward: true, pass: &[] };
        for (name, value, kept) in [
            ("cookie", &b"a=b; session=k;c=d"[..], Some("a=b; c=d")),
            ("cookie", b"session=k", None),
            ("cookie", b"a=b;c=d", Some("a=b;c=d")),
            ("cookie", b"a=b, session=k; c=d,  e", Some("a=b; c=d,  e")),
            ("cookie", b"a=b ,session=k , c; d=e ,session[]=l", Some("a=b , c; d=e")),
            ("cookie", b"a=b,session,c;d=e", Some("a=b,session,c;d=e")),
            ("cookie", b"a=b; session=k,l", Some("a=b")),
            ("cookie", b"a=b session=k c=d\te", Some("a=b c=d\te")),
            ("cookie", b"a=b; ,session=k; c=d", Some("a=b; c=d")),
            ("sec-websocket-protocol", b"chat, bearer, k, other", Some("chat, other")),
            ("sec-websocket-protocol", b"bearer, k", None),
            ("sec-websocket-protocol", b"chat", Some("chat")),
        ] {
            let mut headers = headers(&[(name, value)]);
            everywhere().clean_headers(&mut headers, onward);
            let left = headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(left, kept, "{name}");
        }
        for (query, kept) in [
            ("access_token=k", Some("")),
            ("a=1&access_token=k&b=2", Some("a=1&b=2")),
            ("access_token=k&a=1", Some("a=1")),
            ("a=1&access_token=k", Some("a=1")),
            ("a=1;access%5Ftoken=k;b", Some("a=1;b")),
            ("access_token[]=k&a[]=1&+access_token=l&access_token%00x=m", Some("a[]=1")),
            ("a=1&&b", None),
            ("", None),
        ] {
            let left = everywhere().clean_query(query.as_bytes());
            assert_eq!(left.as_deref(), kept.map(str::as_bytes), "{query}");
        }
        assert_eq!(Sources::default().clean_query(b"access_token=k"), None);
    }
}
