//! The names of fields that mean something to the gateway: one list for the proxy, which sets and removes
//! them, and for the configuration, whose header rules may not touch them. Names are in lower case.

/// The request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// The token that a request was made with.
pub const TOKEN_ID: &str = "x-token-id";
/// The organization of the token.
pub const ORGANIZATION_ID: &str = "x-organization-id";
/// The plan of the token.
pub const PLAN_TIER: &str = "x-plan-tier";
/// The addresses that a request came through.
pub const FORWARDED_FOR: &str = "x-forwarded-for";
/// The scheme that the client used.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";
/// The host that the client asked for.
pub const FORWARDED_HOST: &str = "x-forwarded-host";

/// Fields that tell an upstream who sent a request. The gateway does not set the last two, but upstreams believe them.
const IDENTITY: [&str; 5] =
    [TOKEN_ID, ORGANIZATION_ID, PLAN_TIER, "x-real-ip", "x-forwarded-prefix"];

/// Fields with this prefix tell an upstream through which proxies a request came.
const FORWARDING: &str = "x-forwarded-";

/// Fields that frame a message.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// The claim that a field makes. An upstream may believe the claim, so a client may not make it, in any spelling that an
/// upstream may read as the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The sender of the request: the gateway alone sets such a field.
    Identity,
    /// The way of the request: trusted proxies set such a field too.
    Forwarding,
    /// The id of the request: the client may propose one.
    RequestId,
    /// The end of the message.
    Framing,
}

/// The claim of a field of this name, in this or another spelling.
pub fn claim(name: &str) -> Option<Claim> {
    let name = name.as_bytes();
    match name.first()? {
        b'x' if name.len() > 8 => {
            if is_read_as(name, REQUEST_ID) {
                Some(Claim::RequestId)
            } else if IDENTITY.iter().any(|own| is_read_as(name, own)) {
                Some(Claim::Identity)
            } else {
                let beginning = name.get(..FORWARDING.len())?;
                is_read_as(beginning, FORWARDING).then_some(Claim::Forwarding)
            }
        }
        b'f' if name == b"forwarded" => Some(Claim::Forwarding),
        b'c' | b't' if FRAMING.iter().any(|own| is_read_as(name, own)) => Some(Claim::Framing),
        _ => None,
    }
}

/// Whether a field of this name that came with a request may go on to the upstream. `trusted`: it came
/// from a trusted proxy.
pub fn may_pass(name: &str, trusted: bool) -> bool {
    match claim(name) {
        None => true,
        Some(_) if name.contains(is_read_as_hyphen) => false,
        Some(Claim::Identity) => false,
        Some(Claim::Forwarding) => trusted,
        // The gateway replaces the request id, and has checked the framing.
        Some(Claim::RequestId | Claim::Framing) => true,
    }
}

/// Whether an upstream may read `name` as `own`: `X_Token.ID` is `X-Token-ID` to a CGI.
fn is_read_as(name: &[u8], own: &str) -> bool {
    name.len() == own.len()
        && name
            .iter()
            .zip(own.bytes())
            .all(|(&byte, own)| byte == own || (own == b'-' && is_read_as_hyphen(char::from(byte))))
}

fn is_read_as_hyphen(character: char) -> bool {
    matches!(character, '_' | '.')
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
    value.split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(wanted))
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
            ("x-real-ip", Claim::Identity),
            ("x_real_ip", Claim::Identity),
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
        for name in ["host", "authorization", "x-forwarded", "x-api-version", "x", "te", "forward"]
        {
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
            ("x-forwarded-prefix", false, false),
            ("x_request_id", false, false),
            ("content.length", false, false),
        ] {
            assert_eq!(may_pass(name, false), from_client, "{name} from a client");
            assert_eq!(may_pass(name, true), from_proxy, "{name} from a trusted proxy");
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
