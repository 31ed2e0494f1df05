//! `tollgate token`: keys, rotation, lists and imports, against a real Redis and a real gateway.
//! It must not know how a command does what it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

/// What a gateway on `redis` needs besides what the helper adds.
fn config(redis: &str, origin: &Origin) -> String {
    let origin = origin.url();
    format!(
        "redis: {{ url: \"{redis}\", timeout: 2s }}\nplans: {{ basic: {{ limits: [ 7/day ] }} }}
upstreams: {{ up: {{ endpoints: [ \"{origin}\" ] }} }}\nroutes: [ {{ prefix: /, upstream: up }} ]\n"
    )
}

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = tollgate();
    command.arg("token").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output and standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a command that succeeds says in JSON.
fn program(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat(), "");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)))
}

/// Runs a command that ends with `code`; gives what it says.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments, "");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_else(|| panic!("no `{member}` in {value}")).to_owned()
}

fn status(gateway: &Gateway, credential: &str) -> u16 {
    gateway.call("GET", "/x", &[("Authorization", &format!("Bearer {credential}"))], b"").status()
}

/// Every key and every value.
fn everything(redis: &Redis) -> String {
    let script = "local all = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
            local kind = redis.call('TYPE', key).ok
            all[#all + 1] = key
            if kind == 'hash' then all[#all + 1] = table.concat(redis.call('HGETALL', key), ' ') end
            if kind == 'string' then all[#all + 1] = redis.call('GET', key) end
        end
        return table.concat(all, ' ')";
    redis.command(&["EVAL", script, "0"])
}

#[test]
fn a_key_is_made_used_found_and_revoked() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis.url(), &origin));
    let url = redis.url();
    let at = ["--redis", url.as_str()];
    // No secret and no key to sign with is named anywhere.
    let words = ["create", "--kind", "key", "--limit", "5/day", "--name", "ci"];
    let made = program(&[&words[..], &at].concat());
    let (key, id) = (text(&made, "credential"), text(&made, "api_key"));
    let hash = text(&made, "storage_key").strip_prefix("token:").unwrap().to_owned();
    assert!(key.starts_with("tg_") && key.len() == 41, "{made}");
    assert_eq!((hash.len(), &hash[..16]), (64, id.as_str()));
    assert_eq!(made["kind"], "key");
    assert!(text(&made, "curl").contains(&format!("Authorization: Bearer {key}")));
    let record = format!("token:{hash}");
    assert_eq!(redis.command(&["HGET", &record, "api_key"]), id);
    let ttl: i64 = redis.command(&["TTL", &record]).parse().unwrap();
    assert!((ttl - 86_400).abs() < 60, "{ttl}");
    assert_eq!(status(&gateway, &key), 200);
    assert_eq!(origin.one("/x").all("x-token-id"), [id.as_str()]);

    let shown = program(&["show", &id, "--redis", &url]);
    assert_eq!(shown["record"]["limits"], json!(["5/day"]));
    assert_eq!(shown, program(&["show", &hash.to_uppercase(), "--redis", &url]));
    let from_input = run(&["show", "-", "--json", "--redis", &url], &format!("{key}\n"));
    assert_eq!(serde_json::from_slice::<Value>(&from_input.stdout).unwrap(), shown);
    let listed = run(&["list", "--redis", &url], "");
    for output in [shown.to_string(), said(&listed), everything(&redis)] {
        assert!(output.contains(&id) && !output.contains(&key), "{output}");
    }
    // On the command line it has leaked already; it is not repeated.
    let refused = fails(64, &["revoke", &key, "--redis", &url]);
    assert!(!refused.contains(&key), "{refused}");

    let twin = format!("{id}{}", "0".repeat(48));
    redis.record(&twin, &[("plan", "basic")]);
    let several = fails(65, &["revoke", &id, "--redis", &url]);
    assert!(several.contains(&hash) && several.contains(&twin), "{several}");
    assert_eq!(run(&["revoke", &twin, "--redis", &url], "").status.code(), Some(0));
    assert_eq!(run(&["revoke", &id, "--redis", &url], "").status.code(), Some(0));
    wait_for("the revoked key to be refused", || (status(&gateway, &key) == 401).then_some(()));
    for command in ["show", "revoke", "rotate"] {
        fails(65, &[command, &id, "--redis", &url]);
        fails(65, &[command, &hash, "--redis", &url]);
    }
}

#[test]
fn without_redis_the_entry_of_a_key_is_printed_and_works() {
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let yaml = config("", &origin);
    let (_, yaml) = yaml.split_once('\n').unwrap();
    // A configuration that lets nobody in is not valid: its first key is made without it.
    let output = run(&["create", "--kind", "key"], "");
    let said = said(&output);
    let (_, entry) = said.split_once("\n\nauth:").unwrap_or_else(|| panic!("{said}"));
    let (entry, _) = entry.split_once("\n\n").unwrap();
    assert!(entry.contains("key_sha256: ") && !entry.contains("api_key"), "{said}");
    let key = said.lines().find_map(|line| line.strip_prefix("credential")).unwrap().trim();
    let gateway = Gateway::start(&format!("{yaml}auth:{entry}\n"));
    assert_eq!(status(&gateway, key), 200);

    let file = write(&dir, "t.yaml", &format!("{yaml}auth:{entry}\n"));
    let another = run(&["create", "--kind", "key", "-c", file.to_str().unwrap()], "");
    let another = String::from_utf8(another.stdout).unwrap();
    assert!(another.contains("this configuration has no redis"), "{another}");
    let listed = program(&["list", "-c", file.to_str().unwrap()]);
    assert_eq!(listed[0]["kept_in"], "configuration");
    let id = text(&listed[0], "api_key");
    assert_eq!(id.len(), 16);
    for command in ["revoke", "rotate"] {
        let refused = fails(65, &[command, &id, "-c", file.to_str().unwrap()]);
        assert!(refused.contains("auth.tokens"), "{refused}");
    }
}

#[test]
fn rotation_lets_both_work_for_a_while_and_then_the_new_one() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis.url(), &origin));
    let file = gateway.config.to_str().unwrap();
    for kind in ["key", "jwt"] {
        let words = ["create", "--kind", kind, "--organization", "acme", "--plan", "basic"];
        let old = program(&[&words[..], &["--name", "n", "--routes", "/x", "-c", file]].concat());
        let new = program(&["rotate", &text(&old, "api_key"), "--grace", "4s", "-c", file]);
        let (old_key, new_key) = (text(&old, "storage_key"), text(&new, "storage_key"));
        assert_eq!((&new["kind"], &old["kind"]), (&json!(kind), &json!(kind)));
        assert_eq!(new["replaces"]["storage_key"], old["storage_key"]);
        for field in ["organization_id", "plan", "name", "allowed_routes", "expires_at"] {
            assert_eq!(new[field], old[field], "{field}");
            let stored = redis.command(&["HGET", &new_key, field]);
            assert!(!stored.is_empty(), "{field}");
        }
        let left: i64 = redis.command(&["PTTL", &old_key]).parse().unwrap();
        assert!(left <= 4_000, "{left}");
        assert_eq!(redis.command(&["HGET", &old_key, "expires_at"]), new["replaces"]["expires_at"]);
        let [old, new] = [old, new].map(|made| text(&made, "credential"));
        if left > 1_000 {
            assert_eq!(status(&gateway, &old), 200, "{kind}");
        }
        assert_eq!(status(&gateway, &new), 200, "{kind}");
        wait_for("the old one to end", || (status(&gateway, &old) == 401).then_some(()));
        assert_eq!(status(&gateway, &new), 200, "{kind}");
        wait_for("its record to be gone", || {
            (redis.command(&["EXISTS", &old_key]) == "0").then_some(())
        });

        let id = new_key.strip_prefix("token:").unwrap();
        let words = ["rotate", id, "--grace", "0s", "--ttl", "2h", "-c", file];
        let newer = program(&words);
        assert_eq!(newer["replaces"]["revoked"], true);
        assert_eq!(redis.command(&["EXISTS", &new_key]), "0");
        let newer_key = text(&newer, "storage_key");
        let left: i64 = redis.command(&["TTL", &newer_key]).parse().unwrap();
        assert!((7_100..=7_200).contains(&left), "{left}");
        wait_for("the revoked one to end", || (status(&gateway, &new) == 401).then_some(()));
        assert_eq!(status(&gateway, &text(&newer, "credential")), 200);

        // It ends before the grace does: nothing becomes longer.
        let before = redis.command(&["HGETALL", &newer_key]);
        let last = program(&["rotate", newer_key.strip_prefix("token:").unwrap(), "-c", file]);
        assert_eq!(redis.command(&["HGETALL", &newer_key]), before);
        assert_eq!(last["expires_at"], newer["expires_at"]);
    }

    // Records of other programs: a string, and a hash that only its key's expiry ends.
    let (url, forever) = (redis.url(), token("forever"));
    let routes =
        r#"{"allowed_routes": [], "limits": [{"rate": "9/day", "burst": 90}], "x": 1e300}"#;
    redis.command(&["SET", "token:forever", routes]);
    fails(64, &["rotate", "forever", "-c", file]);
    program(&["rotate", "forever", "--ttl", "1h", "--grace", "1h", "-c", file]);
    let left: i64 = redis.command(&["TTL", "token:forever"]).parse().unwrap();
    assert!((3_500..=3_600).contains(&left), "{left}");
    let record: Value = serde_json::from_str(&redis.command(&["GET", "token:forever"])).unwrap();
    assert_eq!(record["allowed_routes"], json!([]));
    assert_eq!(status(&gateway, &forever), 200);

    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    redis.record(hash, &[("plan", "basic")]);
    redis.command(&["EXPIRE", &format!("token:{hash}"), "1000"]);
    let new = program(&["rotate", hash, "--redis", &url]);
    let left: i64 = redis.command(&["TTL", &text(&new, "storage_key")]).parse().unwrap();
    assert!((900..=1_000).contains(&left), "{left}");
}

#[test]
fn a_rotation_that_fails_in_the_middle_leaves_both_working() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis.url(), &origin));
    let url = redis.url();
    let old = program(&["create", "--kind", "key", "--redis", &url]);
    // This user may write a record, and not shorten one.
    redis.command(&["ACL", "SETUSER", "half", "on", ">half", "~*", "&*", "+@all", "-hget"]);
    let half = url.replace("redis://", "redis://half:half@");
    let id = text(&old, "api_key");
    let output = run(&["rotate", &id, "--grace", "1h", "--redis", &half, "--json"], "");
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    let new: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("the old one as before") && error.contains(&id), "{error}");
    for made in [&old, &new] {
        assert_eq!(status(&gateway, &text(made, "credential")), 200);
    }
    // It may not write at all: there is no new one.
    redis.command(&["ACL", "SETUSER", "half", "-hset"]);
    let output = run(&["rotate", &id, "--grace", "1h", "--redis", &half, "--json"], "");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0), "{}", said(&output));
    assert!(said(&output).contains("the old token works as before"), "{}", said(&output));
    assert_eq!(redis.command(&["DBSIZE"]), "3", "two records and the gateways' own key");
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}
