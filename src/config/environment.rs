//! The environment as part of the configuration: overrides by name, and `${VAR}` in strings.
//!
//! The variables are an argument, so that reading a configuration depends on nothing else. This file knows the keys at
//! the top, and no key beneath.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::{Mapping, Value};

use super::fault::Report;
use super::file;
use super::key_path::{KeyPath, Step};
use super::location::Location;

/// The start of the names of overriding variables.
const PREFIX: &str = "TOLLGATE_";

/// Variables that are not of the configuration: the path of the file, the prefix of `--redis`, and the commit of the
/// build, which cargo also sets for a program it runs.
const NOT_OVERRIDES: [&str; 3] = ["TOLLGATE_CONFIG", "TOLLGATE_REDIS_PREFIX", "TOLLGATE_COMMIT"];

/// Steps an overriding variable may name; the deepest key there is needs half of them.
const MAX_STEPS: usize = 16;

/// Environment variables. There is no `Debug`: their values may be secrets.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, Option<String>>);

impl Environment {
    /// The variables of this process.
    pub fn from_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_deref()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), Some(value.into()))).collect())
    }
}

/// Puts every `TOLLGATE_` variable where its name says, its value read as YAML.
///
/// A variable that names no section of the configuration is not an override where `${…}` refers to it
/// or an orchestrator made it.
pub(super) fn override_keys(tree: &mut Value, environment: &Environment, report: &mut Report) {
    let mut overrides = BTreeMap::new();
    let references = references(tree, environment);
    let ours = |name: &&String| name.starts_with(PREFIX) && !NOT_OVERRIDES.contains(&name.as_str());
    for name in environment.0.keys().filter(ours) {
        let path: KeyPath =
            name[PREFIX.len()..].to_ascii_lowercase().split("__").map(step).collect();
        let names_a_section = matches!(path.steps()[..], [Step::Key(top), ..] if file::TOP_KEYS.contains(&top.as_str()));
        if names_a_section || !(references.contains(name) || is_service_link(name, environment)) {
            overrides.insert(path, name);
        }
    }
    // Sorted: a list before its elements, elements by number.
    for (path, name) in overrides {
        if let Err(message) = put(tree, &path, name, environment, report) {
            report.at(Location::Environment(name.clone()), &KeyPath::root(), message);
        }
    }
}

/// Whether Kubernetes made the variable, for a Service called `tollgate`: each of its containers gets
/// `TOLLGATE_SERVICE_HOST`, `TOLLGATE_PORT=tcp://…` and so on, which say nothing to a gateway.
fn is_service_link(name: &str, environment: &Environment) -> bool {
    match &name[PREFIX.len()..] {
        "SERVICE_HOST" | "SERVICE_PORT" => true,
        // With a bare number, a user has meant `TOLLGATE_LISTENERS__0__ADDRESS`.
        "PORT" => environment.get(name).is_some_and(|value| value.contains("://")),
        rest => {
            rest.starts_with("SERVICE_PORT_")
                || rest
                    .strip_prefix("PORT_")
                    .is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
        }
    }
}

fn step(name: &str) -> Step {
    name.parse().map_or_else(|_| Step::Key(name.to_owned()), Step::Index)
}

/// Parses one variable and puts it into the tree.
fn put(
    tree: &mut Value,
    path: &KeyPath,
    name: &str,
    environment: &Environment,
    report: &mut Report,
) -> Result<(), String> {
    let text = environment.get(name).ok_or("is not UTF-8; write YAML in UTF-8")?;
    let value = serde_yaml::from_str::<Option<Value>>(text)
        .map_err(|error| format!("is not YAML: {}", syntax(&error)))?
        .unwrap_or(Value::Null);
    let steps = path.steps();
    if steps.len() > MAX_STEPS || steps.contains(&&Step::Key(String::new())) {
        return Err("names no key; write the path of a key joined by `__`".into());
    }
    let mut at = KeyPath::root();
    let mut node = tree;
    for step in steps {
        (at, node) = enter(node, at, step, name, report)?;
    }
    *node = value;
    report.locations.replace(&at, name);
    Ok(())
}

/// The child of `node` that `step` names, made where it is missing.
fn enter<'a>(
    node: &'a mut Value,
    at: KeyPath,
    step: &Step,
    name: &str,
    report: &mut Report,
) -> Result<(KeyPath, &'a mut Value), String> {
    if node.is_null() {
        *node = match step {
            Step::Index(_) => Value::Sequence(Vec::new()),
            Step::Key(_) => Value::Mapping(Mapping::new()),
        };
        if !at.is_root() {
            report.locations.replace(&at, name);
        }
    }
    match (node, step) {
        (Value::Sequence(list), Step::Index(index)) => {
            let length = list.len();
            if *index > length {
                return Err(format!(
                    "`{at}` has {length} elements; the next one has the number {length}"
                ));
            }
            if *index == length {
                list.push(Value::Null);
            }
            Ok((at.index(*index), &mut list[*index]))
        }
        (Value::Mapping(map), step) => {
            let key = match step {
                Step::Index(index) => index.to_string(),
                Step::Key(key) => key.clone(),
            };
            let written = map.keys().filter_map(Value::as_str);
            let key =
                written.map(str::to_owned).find(|k| k.eq_ignore_ascii_case(&key)).unwrap_or(key);
            Ok((at.key(&key), map.entry(Value::String(key)).or_insert(Value::Null)))
        }
        (Value::Sequence(_), Step::Key(key)) => {
            Err(format!("`{at}` is a list; write the number of an element instead of `{key}`"))
        }
        _ => Err(format!("`{at}` is a single value; it has no keys")),
    }
}

/// The text of a YAML error without its first position, which stands before it already.
pub(super) fn syntax(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    let Some(location) = error.location() else {
        return text;
    };
    let position = format!(" at line {} column {}", location.line(), location.column());
    text.replacen(&position, "", 1)
}

/// The names that `${…}` refers to in the tree and in the values of overriding variables.
fn references(tree: &Value, environment: &Environment) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut note = |text: &str| {
        names.extend(pieces(text).filter_map(|piece| match piece {
            Piece::Variable(name) => Some(name.to_owned()),
            Piece::Text(_) | Piece::Broken => None,
        }));
    };
    let mut open = vec![tree];
    while let Some(node) = open.pop() {
        match node {
            Value::String(text) => note(text),
            Value::Sequence(list) => open.extend(list),
            Value::Mapping(map) => open.extend(map.values()),
            _ => {}
        }
    }
    for (name, value) in &environment.0 {
        if let (true, Some(value)) = (name.starts_with(PREFIX), value) {
            note(value);
        }
    }
    names
}

/// Replaces `${VAR}` in every string by the variable's value. `$${` stands for `${`.
pub(super) fn expand(
    node: &mut Value,
    at: &KeyPath,
    environment: &Environment,
    report: &mut Report,
) {
    match node {
        Value::String(text) if text.contains("${") => match expanded(text, environment) {
            Ok(expanded) => *text = expanded,
            Err(message) => {
                report.broken(at, message);
                *node = Value::Null;
            }
        },
        Value::Sequence(list) => {
            for (i, child) in list.iter_mut().enumerate() {
                expand(child, &at.index(i), environment, report);
            }
        }
        Value::Mapping(map) => {
            for (key, child) in map.iter_mut() {
                expand(child, &at.key(key.as_str().unwrap_or_default()), environment, report);
            }
        }
        _ => {}
    }
}

fn expanded(text: &str, environment: &Environment) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Variable(name) => out.push_str(environment.get(name).ok_or_else(|| {
                format!("the environment variable {name} is not set; set it, or write `$${{` for a plain `${{`")
            })?),
            Piece::Broken => {
                return Err("`${` without a variable; write `${NAME}`, or `$${` for a plain `${`".into());
            }
        }
    }
    Ok(out)
}

/// A part of a string.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
    /// A `${` that no name and `}` follow.
    Broken,
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix("$${") {
            let brace = &rest[1..3];
            rest = after;
            return Some(Piece::Text(brace));
        }
        if let Some(after) = rest.strip_prefix("${") {
            let (name, after) = after.split_once('}').unwrap_or_default();
            rest = after;
            return Some(if is_name(name) { Piece::Variable(name) } else { Piece::Broken });
        }
        let next = rest.char_indices().skip(1).find(|(_, c)| *c == '$');
        let end = next.map_or(rest.len(), |(i, _)| i);
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(Piece::Text(piece))
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_in_strings() {
        let environment: Environment = [("A", "1"), ("B_2", "${A}")].into_iter().collect();
        for (text, want) in [
            ("${A}", "1"),
            ("x${A}y${A}", "x1y1"),
            ("${B_2}", "${A}"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("é$A $ $$ü", "é$A $ $$ü"),
            ("$$$A", "$$$A"),
            ("", ""),
        ] {
            assert_eq!(expanded(text, &environment).as_deref(), Ok(want), "{text}");
        }
        for text in ["${", "${}", "${a b}", "${1}", "${A", "${MISSING}", "x${é}"] {
            assert!(expanded(text, &environment).is_err(), "{text}");
        }
    }
}
