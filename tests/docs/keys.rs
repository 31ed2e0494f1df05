//! The configuration page: its keys, their defaults, and what a reload does with them, asked of the program itself. A new
//! key of the configuration is found here without a change.

use std::collections::BTreeSet;

use serde_yaml::{Mapping, Value};
use tollgate::config::{Environment, parse};

use super::markdown::{Page, code};
use super::support::*;

/// A step from a mapping of the configuration to what is in it.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    /// Any name: a map of names.
    Name,
    /// Any element of a list.
    Element,
}

/// A step for each part of a documented key such as `upstreams.NAME.endpoints[].url`.
fn steps(key: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in key.split('.') {
        let name = part.trim_end_matches("[]");
        steps.push(if name == "NAME" { Step::Name } else { Step::Key(name.into()) });
        steps.extend((name.len() < part.len()).then_some(Step::Element));
    }
    steps
}

/// What `p` stands for in maps of names.
const SOME_NAME: &str = "p";

/// Puts `value` where `steps` lead, through what is there already.
fn put(tree: &mut Value, steps: &[Step], value: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *tree = value;
        return;
    };
    let key = match step {
        Step::Element => {
            if tree.is_null() {
                *tree = Value::Sequence(vec![Value::Null]);
            }
            return put(&mut tree.as_sequence_mut().unwrap()[0], rest, value);
        }
        Step::Name => SOME_NAME,
        Step::Key(key) => key,
    };
    if tree.is_null() {
        *tree = Value::Mapping(Mapping::new());
    }
    put(tree.as_mapping_mut().unwrap().entry(key.into()).or_insert(Value::Null), rest, value);
}

/// The keys that the mapping at `at` may have, as the message about an unknown key lists them; nothing where there is
/// no mapping.
fn known_keys(at: &[Step]) -> Option<Vec<String>> {
    let mut tree = Value::Null;
    let unknown = [at, &[Step::Key("unknown".into())]].concat();
    put(&mut tree, &unknown, Value::from(1));
    let text = serde_yaml::to_string(&tree).unwrap();
    let faults = parse(&text, "t.yaml", &Environment::default()).err()?.to_string();
    let path = unknown.iter().fold(String::new(), |path, step| match step {
        Step::Element => path + "[0]",
        Step::Name => path + "." + SOME_NAME,
        Step::Key(key) => path + "." + key,
    });
    let message = format!(" {}: is not a known key; known are ", path.trim_start_matches('.'));
    let (_, keys) = faults.lines().find_map(|line| line.split_once(&message))?;
    Some(keys.split(", ").map(str::to_owned).collect())
}

/// Every key there is, beneath the mapping at `at`, which has `keys`.
fn walk(at: &[Step], path: &str, keys: &[String], found: &mut BTreeSet<String>) {
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let at = [at, &[Step::Key(key.clone())]].concat();
        let inner = [("", vec![]), ("[]", vec![Step::Element]), (".NAME", vec![Step::Name])];
        let inner = inner.into_iter().find_map(|(suffix, step)| {
            let at = [at.clone(), step].concat();
            Some((format!("{path}{suffix}"), known_keys(&at)?, at))
        });
        match inner {
            Some((path, keys, at)) => walk(&at, &path, &keys, found),
            None => assert!(found.insert(path)),
        }
    }
}

/// Parts of the configuration that are documented once, and where: a limit has a table of its own.
const ALIKE: [(&str, &str); 6] = [
    ("auth.jwt.issuers[].keys[].", "auth.jwt.keys[]."),
    ("auth.jwt.issuers[].jwks.", "auth.jwt.jwks."),
    ("auth.tokens[].limits[].", ""),
    ("limits.default[].", ""),
    ("plans.NAME.limits[].", ""),
    ("routes[].limits[].", ""),
];

/// A row of the configuration page: key, default, and what a reload does with the key.
fn documented_keys() -> Vec<[String; 3]> {
    let mut rows = Vec::new();
    for (title, own) in Page::read("docs/configuration.md").sections() {
        for row in own {
            let [key, value, default, reload, meaning] = row.as_slice() else {
                panic!("{title}: {row:?} has not five cells")
            };
            assert!(!value.is_empty() && !meaning.is_empty(), "{title}: {row:?}");
            let [key] = code(key).try_into().expect(key);
            rows.push([key, default.clone(), reload.clone()]);
        }
    }
    rows
}

#[test]
fn every_key_of_the_configuration_is_documented_and_no_other() {
    let mut found = BTreeSet::new();
    walk(&[], "", &known_keys(&[]).unwrap(), &mut found);
    assert!(found.len() > 100, "{found:?}");
    let mut known = BTreeSet::new();
    for key in &found {
        let alike =
            ALIKE.iter().find_map(|(own, other)| Some((own, other, key.strip_prefix(own)?)));
        known.extend(match alike {
            Some((own, other, rest)) => {
                let list = own.trim_end_matches('.').trim_end_matches("[]");
                vec![list.to_owned(), format!("{other}{rest}")]
            }
            None => vec![key.clone()],
        });
    }
    let rows = documented_keys();
    let documented: BTreeSet<_> = rows.iter().map(|[key, ..]| key.clone()).collect();
    assert_eq!(documented.len(), rows.len(), "a key is documented twice");
    let missing: Vec<_> = known.difference(&documented).collect();
    let superfluous: Vec<_> = documented.difference(&known).collect();
    assert!(
        missing.is_empty() && superfluous.is_empty(),
        "missing in docs/configuration.md: {missing:?}; superfluous: {superfluous:?}"
    );
}

/// Writing a default changes nothing.
#[test]
fn the_documented_defaults_are_those_of_the_program() {
    let dir = tempfile::TempDir::new().unwrap();
    let certificate = tls::Authority::new("docs").issue(&["a.test"]).write(dir.path(), "a").yaml();
    let base: Value = serde_yaml::from_str(&format!(
        r#"
listeners: [ {{ address: "0.0.0.0:8080", tls: {{ certificates: [ {certificate} ] }} }} ]
redis: {{ url: "redis://a" }}
auth:
  jwt:
    keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ]
    jwks: {{ url: "https://a.example/" }}
plans: {{ {SOME_NAME}: {{ limits: [ {{ rate: 5/minute }} ] }} }}
upstreams: {{ {SOME_NAME}: {{ endpoints: [ {{ url: "http://a" }} ], health: {{ path: /h }} }}, requests: {{ endpoints: [ "http://b" ] }} }}
routes: [ {{ prefix: /, upstream: requests, mirror: {{ upstream: {SOME_NAME} }}, cors: {{ origins: [ "https://a.example" ] }} }} ]
"#
    ))
    .unwrap();
    let read = |tree: &Value| {
        let text = serde_yaml::to_string(tree).unwrap();
        let config = parse(&text, "t.yaml", &Environment::default());
        format!("{:?}", config.unwrap_or_else(|faults| panic!("{faults}\n{text}")))
    };
    let expected = read(&base);
    let mut defaults = 0;
    for [key, default, _] in documented_keys() {
        let written = match default.as_str() {
            "required" | "—" => continue,
            text => code(text),
        };
        let [written] = written.try_into().unwrap_or_else(|_| panic!("{key}: {default}"));
        let inside = ["rate", "algorithm", "burst", "by", "name"].contains(&key.as_str());
        let path = if inside { format!("plans.NAME.limits[].{key}") } else { key.clone() };
        let mut tree = base.clone();
        put(&mut tree, &steps(&path), serde_yaml::from_str(&written).unwrap());
        assert_eq!(read(&tree), expected, "{key}: {written}");
        defaults += 1;
    }
    assert!(defaults > 40, "only {defaults} defaults were found");
}

#[test]
fn a_reload_takes_the_keys_that_the_page_says() {
    let config = |n: u16, redis: &str| {
        format!(
            r#"
server: {{ threads: {n}, grace_period_seconds: 1 }}
listeners: [ {{ address: "127.0.0.{n}:0" }} ]
metrics: {{ address: "127.0.0.{n}:0" }}
log: {{ level: debug, format: {format}, color: {color}, access: {access} }}
timeouts: {{ header: {n}s, read: {n}s, write: {n}s, idle: {n}s }}
max_body: {n}MiB
max_connections: 10{n}
trusted_proxies: [ 10.{n}.0.0/16 ]
auth:
  jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ], leeway: {n}s, issuer: i{n} }}
  tokens: [ {{ api_key: a{n} }} ]
  cache: {{ ttl: {n}m }}
  max_failures: {n}/minute
plans: {{ p{n}: {{ limits: [ {n}/day ] }} }}
limits: {{ default: [ {n}/day ], window: {n}m, max_in_flight: {n} }}
upstreams: {{ u{n}: {{ endpoints: [ "http://{NOBODY}" ] }} }}
routes: [ {{ prefix: /r{n}, upstream: u{n}, auth: none }} ]
{redis}"#,
            format = if n == 1 { "json" } else { "console" },
            color = if n == 1 { "never" } else { "always" },
            access = n == 1,
        )
    };
    let gateway = Gateway::start(&config(1, ""));
    gateway.reload(&config(2, "redis: { url: \"redis://127.0.0.1:1\" }"));
    let line = gateway.wait_log("the keys that need a restart", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("need a restart"))
    });
    let (_, named) = line["message"].as_str().unwrap().rsplit_once(": ").unwrap();
    let mut named: BTreeSet<&str> = named.split(", ").collect();
    // The log names `log.format` or `log.color` for both.
    named.extend(["log.format", "log.color"]);
    for [key, _, reload] in documented_keys() {
        let kept = named.iter().any(|named| {
            key.strip_prefix(named)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        assert_eq!(reload, if kept { "restart" } else { "yes" }, "{key}; the log: {line}");
    }
    let page = Page::read("docs/operation.md");
    let listed =
        page.prose().into_iter().find(|(_, line)| line.contains("need a restart")).unwrap();
    assert_eq!(code(listed.1).iter().map(String::as_str).collect::<BTreeSet<_>>(), named);
}
