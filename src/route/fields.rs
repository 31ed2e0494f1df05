//! The names of fields that mean something to the gateway: one list for the proxy, which sets and removes
//! them, and for the configuration, whose header rules may not touch them. Names are in lower case.

use http::HeaderName;

/// The request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// The token that a request was made with.
pub const TOKEN_ID: &str = "x-token-id";
/// The organization of the token.
pub const ORGANIZATION_ID: &str = "x-organization-id";
/// The plan of the token.
pub const PLAN_TIER: &str = "x-plan-tier";
/// The subject of the client's certificate.
pub const CLIENT_CERT_SUBJECT: &str = "x-client-cert-subject";
/// The alternative names of the client's certificate.
pub const CLIENT_CERT_SAN: &str = "x-client-cert-san";
/// The SHA-256 of the client's certificate.
pub const CLIENT_CERT_FINGERPRINT: &str = "x-client-cert-fingerprint";
/// The addresses that a request came through.
pub const FORWARDED_FOR: &str = "x-forwarded-for";
/// The scheme that the client used.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// The host that the client asked for.
pub const FORWARDED_HOST: &str = "x-forwarded-host";

/// The credential of clients that do not use `Authorization`.
pub const API_KEY: &str = "x-api-key";
/// The part of the path that the gateway has cut off.
pub const FORWARDED_PREFIX: &str = "x-forwarded-prefix";

/// Fields that tell an upstream who sent a request, and under which prefix: the gateway alone sets them.
const IDENTITY: [&str; 7] = [
    TOKEN_ID,
    ORGANIZATION_ID,
    PLAN_TIER,
    FORWARDED_PREFIX,
    CLIENT_CERT_SUBJECT,
    CLIENT_CERT_SAN,
    CLIENT_CERT_FINGERPRINT,
];

/// Fields that begin with `X-` and that some upstreams obey or believe: another target, another method, another sender.
const X_OVERRIDES: [&str; 49] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-original-path",
    "x-original-host",
    "x-original-method",
    "x-original-forwarded-for",
    "x-override-url",
    "x-envoy-original-path",
    "x-envoy-original-dst-host",
    "x-middleware-subrequest",
    "x-host",
    "x-http-host-override",
    "x-http-path-override",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-remote-user",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-envoy-external-address",
    "x-client-cert",
    "x-ssl-client-cert",
    "x-ssl-client-verify",
    "x-ssl-client-dn",
    "x-ssl-client-s-dn",
    "x-arr-clientcert",
    "x-auth-request-user",
    "x-auth-request-email",
    "x-authenticated-user",
    "x-webauth-user",
    "x-ms-client-principal",
    "x-ms-client-principal-id",
    "x-ms-client-principal-name",
    "x-ms-client-principal-idp",
    "x-amzn-oidc-identity",
    "x-amzn-oidc-data",
    "x-amzn-oidc-accesstoken",
    "x-goog-authenticated-user-email",
    "x-goog-authenticated-user-id",
    "x-goog-iap-jwt-assertion",
];

/// The same with other beginnings. A CGI reads `Proxy` as the variable `HTTP_PROXY`, which HTTP clients obey.
const OTHER_OVERRIDES: [&str; 16] = [
    "proxy",
    "true-client-ip",
    "client-ip",
    "client-cert",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-access-authenticated-user-email",
    "cf-access-jwt-assertion",
    "fastly-client-ip",
    "fly-client-ip",
    "front-end-https",
    "remote-user",
    "remote-addr",
    "ssl-client-cert",
    "ssl-client-verify",
    "ssl-client-s-dn",
];

/// Fields with this prefix tell an upstream through which proxies a request came.
const FORWARDING: &str = "x-forwarded-";

/// Fields that the gateway writes over those of a trusted proxy.
const WRITTEN_FORWARDING: [&str; 3] = [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST];

/// Fields that frame a message.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// Fields that hold a credential, and whose names another spelling may imitate.
const CREDENTIALS: [&str; 3] = [API_KEY, "proxy-authorization", "sec-websocket-protocol"];

/// The claim that a field makes. An upstream may believe the claim, so a client may not make it, in any spelling that an
/// upstream may read as the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The sender of the request: the gateway alone sets such a field.
    Identity,
    /// The way of the request: trusted proxies set such a field too.
    Forwarding,
    /// Another target, method or sender: such a field passes if the configuration lets it.
    Override,
    /// The right to make the request.
    Credential,
    /// The id of the request: the client may propose one.
    RequestId,
    /// The end of the message.
    Framing,
}

/// The claim of a field of this name, in this or another spelling.
pub fn claim(name: &str) -> Option<Claim> {
    let bytes = name.as_bytes();
    let is = |own: &&str| is_read_as(bytes, own);
    match bytes.first()? {
        b'x' if is(&REQUEST_ID) => Some(Claim::RequestId),
        b'x' if is(&API_KEY) => Some(Claim::Credential),
        b'x' if IDENTITY.iter().any(is) => Some(Claim::Identity),
        b'x' if X_OVERRIDES.iter().any(is) => Some(Claim::Override),
        b'x' => {
            let beginning = bytes.get(..FORWARDING.len())?;
            is_read_as(beginning, FORWARDING).then_some(Claim::Forwarding)
        }
        b'f' if bytes == b"forwarded" => Some(Claim::Forwarding),
        b'c' | b'f' | b'p' | b'r' | b's' | b't' => {
            if FRAMING.iter().any(is) {
                Some(Claim::Framing)
            } else if CREDENTIALS.iter().any(is) {
                Some(Claim::Credential)
            } else {
                OTHER_OVERRIDES.iter().any(is).then_some(Claim::Override)
            }
        }
        _ => None,
    }
}

/// Whether a field of this name that came with a request may go on to the upstream. `trusted`: it came
/// from a trusted proxy. `pass`: the names that the configuration lets pass.
pub fn may_pass(name: &HeaderName, trusted: bool, pass: &[HeaderName]) -> bool {
    match claim(name.as_str()) {
        None => true,
        Some(_) if is_respelled(name.as_str()) => false,
        Some(Claim::Identity) => false,
        Some(Claim::Forwarding) => trusted || pass.contains(name),
        Some(Claim::Override) => pass.contains(name),
        // The gateway replaces the request id, has checked the framing, and removes credentials by another rule.
        Some(Claim::RequestId | Claim::Framing | Claim::Credential) => true,
    }
}

/// Whether the gateway writes or checks a field of this name itself, so that a rule may not touch it.
pub fn is_own(name: &str) -> bool {
    match claim(name) {
        Some(Claim::Identity | Claim::Forwarding | Claim::RequestId | Claim::Framing) => true,
        Some(Claim::Override | Claim::Credential) | None => false,
    }
}

/// Whether the configuration can let a field of this name pass: the gateway removes it otherwise.
pub fn is_removed_by_default(name: &str) -> bool {
    match claim(name) {
        Some(Claim::Override) => !is_respelled(name),
        Some(Claim::Forwarding) => !is_respelled(name) && !WRITTEN_FORWARDING.contains(&name),
        _ => name == API_KEY || name == "authorization",
    }
}

/// Whether an upstream may read `name` as `own`. A CGI reads every sign as `_`: `X~Token.ID` is `HTTP_X_TOKEN_ID`.
fn is_read_as(name: &[u8], own: &str) -> bool {
    name.len() == own.len()
        && name
            .iter()
            .zip(own.bytes())
            .all(|(&byte, own)| byte == own || (own == b'-' && !byte.is_ascii_alphanumeric()))
}

/// Whether `name` is another spelling of `own`, so that an upstream may take one for the other: signs stand for each other.
pub fn imitates(name: &str, own: &str) -> bool {
    let is_sign = |byte: u8| !byte.is_ascii_alphanumeric();
    let alike = |(a, b): (u8, u8)| a == b || (is_sign(a) && is_sign(b));
    name.len() == own.len() && name != own && name.bytes().zip(own.bytes()).all(alike)
}

/// Whether `name` has another sign than `-`.
fn is_respelled(name: &str) -> bool {
    name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && byte != b'-')
}

/// Whether a field of this name concerns one connection and not the message (RFC 9110 section 7.6.1).
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether the gateway itself sets a field of this name on each connection: it is hop by hop, or framing.
pub fn belongs_to_connection(name: &str) -> bool {
    is_hop_by_hop(name) || FRAMING.contains(&name)
}

/// Whether the comma-separated list `value` names `wanted`, in any case (RFC 9110 section 5.6.1).
pub fn list_names(value: &[u8], wanted: &[u8]) -> bool {
    elements(value).any(|element| element.eq_ignore_ascii_case(wanted))
}

/// The elements of a list, without empty ones (RFC 9110 section 5.6.1.2).
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_in_every_spelling() {
        for (name, expected) in [
            ("x-token-id", Claim::Identity),
            ("x_token.id", Claim::Identity),
            ("x-organization_id", Claim::Identity),
            ("x.plan.tier", Claim::Identity),
            ("x~token~id", Claim::Identity),
            ("x'plan'tier", Claim::Identity),
            ("x+organization+id", Claim::Identity),
            ("x-real-ip", Claim::Override),
            ("x_real_ip", Claim::Override),
            ("x-original-url", Claim::Override),
            ("x-http-method-override", Claim::Override),
            ("x_http.method", Claim::Override),
            ("proxy", Claim::Override),
            ("true-client-ip", Claim::Override),
            ("cf_connecting_ip", Claim::Override),
            ("remote_user", Claim::Override),
            ("x-forwarded", Claim::Override),
            ("x_forwarded", Claim::Override),
            ("x-middleware-subrequest", Claim::Override),
            ("cf_access.jwt-assertion", Claim::Override),
            ("ssl_client_s_dn", Claim::Override),
            ("x-api-key", Claim::Credential),
            ("x_api_key", Claim::Credential),
            ("proxy_authorization", Claim::Credential),
            ("x-forwarded-prefix", Claim::Identity),
            ("x-forwarded-for", Claim::Forwarding),
            ("x-forwarded_for", Claim::Forwarding),
            ("x-forwarded-port", Claim::Forwarding),
            ("x-forwarded-user", Claim::Forwarding),
            ("x_forwarded_anything", Claim::Forwarding),
            ("forwarded", Claim::Forwarding),
            ("x-request-id", Claim::RequestId),
            ("x_request_id", Claim::RequestId),
            ("content-length", Claim::Framing),
            ("transfer_encoding", Claim::Framing),
        ] {
            assert_eq!(claim(name), Some(expected), "{name}");
        }
        for name in [
            "host",
            "authorization",
            "x-forwards",
            "x-api-version",
            "x",
            "te",
            "forward",
            "proxy-status",
            "xtoken-id",
            "x-token-ids",
        ] {
            assert_eq!(claim(name), None, "{name}");
        }
    }

    #[test]
    fn only_trusted_proxies_tell_the_way_and_nobody_the_identity() {
        for (name, from_client, from_proxy) in [
            ("x-custom", true, true),
            ("x_custom", true, true),
            ("x-request-id", true, true),
            ("content-length", true, true),
            ("x-forwarded-for", false, true),
            ("x-forwarded-user", false, true),
            ("forwarded", false, true),
            ("x_forwarded-for", false, false),
            ("x-forwarded-a_b", false, false),
            ("x-token-id", false, false),
            ("x-real-ip", false, false),
            ("x-original-url", false, false),
            ("x-forwarded", false, false),
            ("x-amzn-oidc-data", false, false),
            ("x-api-key", true, true),
            ("x_api_key", false, false),
            ("x!api!key", false, false),
            ("x-forwarded-prefix", false, false),
            ("x_request_id", false, false),
            ("content.length", false, false),
        ] {
            let field: HeaderName = name.parse().unwrap();
            assert_eq!(may_pass(&field, false, &[]), from_client, "{name} from a client");
            assert_eq!(may_pass(&field, true, &[]), from_proxy, "{name} from a trusted proxy");
        }
    }

    #[test]
    fn the_configuration_lets_fields_pass_that_are_removed_otherwise() {
        for name in
            X_OVERRIDES.iter().chain(&OTHER_OVERRIDES).chain(&["x-forwarded-user", "forwarded"])
        {
            let field: HeaderName = name.parse().unwrap();
            assert!(is_removed_by_default(name), "{name}");
            assert!(!may_pass(&field, false, &[]), "{name}");
            assert!(may_pass(&field, false, std::slice::from_ref(&field)), "{name}");
        }
        assert!(is_removed_by_default("authorization") && is_removed_by_default(API_KEY));
        for own in IDENTITY.iter().chain(&WRITTEN_FORWARDING).chain(&FRAMING).chain(&[REQUEST_ID]) {
            assert!(!is_removed_by_default(own) && is_own(own), "{own}");
        }
        for other in ["x-custom", "x_forwarded_user", "x_api_key", "proxy-authorization"] {
            assert!(!is_removed_by_default(other), "{other}");
        }
    }

    #[test]
    fn no_sign_hides_a_name() {
        // `tchar` without letters and digits (RFC 9110 section 5.6.2).
        const SIGNS: &[u8] = b"!#$%&'*+-.^_`|~";
        let mut random = fastrand::Rng::with_seed(14);
        let all = IDENTITY.iter().chain(&X_OVERRIDES).chain(&OTHER_OVERRIDES).chain(&CREDENTIALS);
        for name in all.filter(|name| name.contains('-')) {
            for _ in 0..50 {
                let respelled: String = name
                    .bytes()
                    .map(
                        |byte| if byte == b'-' { SIGNS[random.usize(..SIGNS.len())] } else { byte },
                    )
                    .map(char::from)
                    .collect();
                let field: HeaderName = respelled.parse().unwrap();
                assert_eq!(claim(&respelled), claim(name), "{respelled}");
                let pass = std::slice::from_ref(&field);
                assert!(respelled == *name || !may_pass(&field, true, pass), "{respelled}");
            }
        }
    }

    #[test]
    fn fields_of_a_connection_are_not_the_messages() {
        for name in ["connection", "keep-alive", "te", "trailer", "upgrade", "proxy-authenticate"] {
            assert!(is_hop_by_hop(name) && belongs_to_connection(name), "{name}");
        }
        assert!(belongs_to_connection("content-length") && !is_hop_by_hop("content-length"));
        for name in ["host", "authorization", "www-authenticate", "x-token-id"] {
            assert!(!belongs_to_connection(name), "{name}");
        }
    }

    #[test]
    fn lists_name_their_items() {
        assert!(list_names(b"keep-alive, Upgrade", b"upgrade"));
        assert!(list_names(b"upgrade", b"upgrade"));
        assert!(!list_names(b"upgrade2, x-upgrade", b"upgrade"));
        assert!(!list_names(b"", b"upgrade"));
    }
}
