//! Values of header fields that are made of a request: text with `%{NAME}` in it. `%%{` is a plain `%{`.
//!
//! The configuration replaces `${NAME}` by the environment before, and JSON in a value has plain braces, so both stay what
//! they are. This file must not know where the values come from.

use std::borrow::Cow;

use http::HeaderValue;

/// A value that a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// The client's address.
    ClientIp,
    /// `X-Request-ID`.
    RequestId,
    /// The public id of the token.
    TokenId,
    /// The organization of the token.
    OrganizationId,
    /// The plan of the token.
    Plan,
    /// The `Host` that the client asked for.
    Host,
    /// Host and prefix of the route.
    Route,
    /// The subject of the client's certificate.
    ClientCertSubject,
    /// The alternative names of the client's certificate.
    ClientCertSan,
    /// The SHA-256 of the client's certificate.
    ClientCertFingerprint,
}

impl Variable {
    /// The names of all of them.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("client_ip", Self::ClientIp),
        ("request_id", Self::RequestId),
        ("token_id", Self::TokenId),
        ("organization_id", Self::OrganizationId),
        ("plan", Self::Plan),
        ("host", Self::Host),
        ("route", Self::Route),
        ("client_cert_subject", Self::ClientCertSubject),
        ("client_cert_san", Self::ClientCertSan),
        ("client_cert_fingerprint", Self::ClientCertFingerprint),
    ];
}

/// The value of a field, as a rule states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// The same for every request.
    Fixed(HeaderValue),
    /// Made of each request.
    Made(Template),
}

/// A text with values of a request in it; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Variable),
}

/// Why a text is no value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// A field cannot hold it.
    Text,
    /// `%{` is not followed by a name and `}`.
    Open,
    /// There is no value of this name.
    Name,
}

impl FieldValue {
    /// Reads a text.
    ///
    /// # Errors
    /// [`TemplateError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let fixed = |text: &str| HeaderValue::from_str(text).map_err(|_| TemplateError::Text);
        fixed(text)?;
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some((before, after)) = rest.split_once("%{") {
            if let Some(before) = before.strip_suffix('%') {
                plain.push_str(before);
                plain.push_str("%{");
                rest = after;
                continue;
            }
            plain.push_str(before);
            let (name, after) = after.split_once('}').ok_or(TemplateError::Open)?;
            let known = Variable::NAMES.iter().find(|(own, _)| *own == name);
            let (_, variable) = known.ok_or(TemplateError::Name)?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Value(*variable));
            rest = after;
        }
        plain.push_str(rest);
        if parts.is_empty() {
            return fixed(&plain).map(Self::Fixed);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self::Made(Template(parts)))
    }
}

impl Template {
    /// The value for a request, whose values `value` gives. `None` when the request lacks one of them.
    pub fn make<'v>(
        &self,
        value: impl Fn(Variable) -> Option<Cow<'v, str>>,
    ) -> Option<HeaderValue> {
        let mut text = String::with_capacity(64);
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Value(variable) => text.push_str(&value(*variable)?),
            }
        }
        HeaderValue::try_from(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Option<String> {
        let value = |variable| match variable {
            Variable::ClientIp => Some("192.0.2.1".into()),
            Variable::Plan => Some("gold".into()),
            _ => None,
        };
        match FieldValue::parse(text).unwrap() {
            FieldValue::Fixed(fixed) => Some(fixed.to_str().unwrap().to_owned()),
            FieldValue::Made(template) => {
                template.make(value).map(|value| value.to_str().unwrap().to_owned())
            }
        }
    }

    #[test]
    fn values_stand_for_their_names() {
        for (text, value) in [
            ("%{client_ip}", Some("192.0.2.1")),
            ("for=%{client_ip};plan=%{plan}", Some("for=192.0.2.1;plan=gold")),
            ("%{plan}%{plan}", Some("goldgold")),
            ("%{token_id}", None),
            ("a %{plan} %{host}", None),
            ("%%{plan}", Some("%{plan}")),
            ("%%%{plan}", Some("%%{plan}")),
            ("100% {plan} %", Some("100% {plan} %")),
            ("%%{x} %{plan}", Some("%{x} gold")),
            (r#"{"group":"a","max_age":1}"#, Some(r#"{"group":"a","max_age":1}"#)),
            ("", Some("")),
        ] {
            assert_eq!(made(text).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn wrong_texts_say_why() {
        for (text, error) in [
            ("%{", TemplateError::Open),
            ("%{plan", TemplateError::Open),
            ("%{}", TemplateError::Name),
            ("%{ plan }", TemplateError::Name),
            ("%{Plan}", TemplateError::Name),
            ("%{authorization}", TemplateError::Name),
            ("a\nb", TemplateError::Text),
        ] {
            assert_eq!(FieldValue::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn no_value_breaks_out_of_its_field() {
        let FieldValue::Made(template) = FieldValue::parse("%{host}").unwrap() else { panic!() };
        assert_eq!(template.make(|_| Some("a\r\nX-Evil: b".into())), None);
    }
}
