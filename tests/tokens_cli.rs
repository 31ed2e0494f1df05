//! `tollgate token`: keys, rotation, lists and imports, against a real Redis and a real gateway.
//! It must not know how a command does what it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Output, Stdio};
use std::thread::{self, JoinHandle};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

/// A configuration for a gateway on `redis`, without the keys that the helper adds.
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

/// The JSON output of a command that succeeds.
fn program(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat(), "");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)))
}

/// Runs a command that ends with `code`; gives its output.
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
    // The output names no secret and no signing key.
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
    // A credential on the command line has leaked already, and the message does not repeat it.
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
    // A configuration that admits no client is not valid, so its first key is made without it.
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
    // The tokens share their counters, and are asked for often.
    let gateway = Gateway::start(&config(&redis.url(), &origin).replace("7/day", "70000/day"));
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

        // The record ends before the grace ends, and a rotation must not make it live longer.
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
    let half = format!("redis://half:half@127.0.0.1:{}", redis.port());
    let id = text(&old, "api_key");
    let output = run(&["rotate", &id, "--grace", "1h", "--redis", &half, "--json"], "");
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    let new: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("the old one as before") && error.contains(&id), "{error}");
    for made in [&old, &new] {
        assert_eq!(status(&gateway, &text(made, "credential")), 200);
    }
    // This user may not write at all, so there is no new record.
    redis.command(&["ACL", "SETUSER", "half", "-hset"]);
    let output = run(&["rotate", &id, "--grace", "1h", "--redis", &half, "--json"], "");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0), "{}", said(&output));
    assert!(said(&output).contains("the old token works as before"), "{}", said(&output));
    assert_eq!(redis.command(&["DBSIZE"]), "3", "two records and the gateways' own key");
}

#[test]
fn an_import_takes_the_good_lines_and_names_the_bad_ones() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis.url(), &origin));
    let file = gateway.config.to_str().unwrap();
    let dir = TempDir::new().unwrap();
    let keys = ["legacy-key-number-one", "legacy,key;number=two"];
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let csv = format!(
        "key,key_sha256,api_key,limits,allowed_routes,plan,expires_at,organization_id\r\n\
         {},,,5/day;3/hour,/x;/y/*,,2035-01-31T12:00:00Z,acme\r\n\
         \"{}\",,,,,basic,,\r\n\
         ,{hash},,\"[\"\"9/day\"\"]\",,,,\r\n\
         \r\n\
         ,,bob,,,,,\r\n\
         unused-secret-1,,,5/fortnight,,,,\r\n\
         unused-secret-2,,,,,gold,,\r\n\
         tg_unused-secret-3,,,,,,,\r\n\
         unused-secret-4\r\n\
         {},,,,,,,\r\n\
         unused-secret-5,,,,,,2001-01-01T00:00:00Z,\r\n",
        keys[0],
        keys[1],
        "unused-secret-6".repeat(5_000),
    );
    let path = write(&dir, "t.csv", &csv);
    let path = path.to_str().unwrap();
    let dry = run(&["import", path, "--dry-run", "-c", file], "");
    assert_eq!(dry.status.code(), Some(65), "{}", said(&dry));
    assert!(said(&dry).contains("good 5, bad 5; nothing was written"), "{}", said(&dry));
    assert_eq!(redis.command(&["KEYS", "token:*"]), "");

    let output = run(&["import", path, "-c", file], "");
    assert_eq!(output.status.code(), Some(65), "{}", said(&output));
    let all = said(&output);
    let counts = "imported 4, replaced 0, unchanged 0, differing 0, expired 1, bad 5";
    assert!(all.contains(counts), "{all}");
    for (line, field) in [(7, "limits"), (8, "plan"), (9, "key: "), (10, "columns"), (11, "64 KiB")]
    {
        let found =
            all.lines().any(|l| l.starts_with(&format!("line {line}: ")) && l.contains(field));
        assert!(found, "line {line}: {all}");
    }
    let kept = everything(&redis);
    for output in [&all, &said(&dry), &kept] {
        assert!(!output.contains("unused-secret"), "{output}");
        assert!(keys.iter().all(|key| !output.contains(key)), "{output}");
    }
    for key in keys {
        assert_eq!(status(&gateway, key), 200, "{key}");
    }
    assert_eq!(origin.requests()[0].all("x-organization-id"), ["acme"]);
    assert_eq!(status(&gateway, "abc"), 200, "known by its hash");
    assert_eq!(status(&gateway, &token("bob")), 200);
    let shown = run(&["show", "-", "--json", "-c", file], keys[0]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let key = text(&shown, "storage_key");
    assert_eq!(shown["record"]["limits"], json!(["5/day", "3/hour"]));
    assert_eq!(redis.command(&["PEXPIRETIME", &key]), "2053857600000");

    // The same import again changes nothing; a record that differs is overwritten with --replace only.
    let json = format!(
        "{}\n{}\n{}\n",
        json!({"key": keys[0], "limits": ["5/day", "3/hour"], "allowed_routes": ["/x", "/y/*"],
            "expires_at": "2035-01-31T12:00:00Z", "organization_id": "acme"}),
        json!({"key": keys[1], "plan": "basic", "name": "changed"}),
        json!({"api_key": "alice", "limits": [{"rate": "5/minute", "burst": 9}]}),
    );
    let words = ["import", "-", "--format", "jsonl", "-c", file];
    let output = run(&words, &json);
    assert_eq!(output.status.code(), Some(65), "{}", said(&output));
    let counts = "imported 1, replaced 0, unchanged 1, differing 1, expired 0, bad 0";
    assert!(said(&output).contains(counts), "{}", said(&output));
    assert!(said(&output).contains("line 2: token:"), "{}", said(&output));
    assert!(!everything(&redis).contains("changed"));
    let output = run(&[&words[..], &["--replace"]].concat(), &json);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let counts = "imported 0, replaced 1, unchanged 2, differing 0, expired 0, bad 0";
    assert!(said(&output).contains(counts), "{}", said(&output));
    assert!(everything(&redis).contains("changed"));

    fails(64, &["import", "-", "-c", file]);
    fails(65, &["import", "nowhere.csv", "-c", file]);
    fails(64, &["import", path]);
    let away = fails(69, &["import", path, "--redis", "redis://127.0.0.1:1"]);
    assert!(away.contains("goes on where this one stopped") && away.contains("unknown"), "{away}");
}

/// Records in the large import.
const MANY: usize = 100_000;

fn line(nth: usize) -> String {
    format!("the-key-number-{nth},5/minute;100/day,/api/*,2035-01-31T12:00:00Z,customer {nth}\n")
}

const HEADER: &str = "key,limits,allowed_routes,expires_at,name\n";

/// An import of standard input, which does not end while what the thread gives back is kept.
fn importing(url: &str, lines: usize) -> (Child, JoinHandle<ChildStdin>) {
    let mut command = tollgate();
    command.args(["token", "import", "-", "--format", "csv", "--redis", url]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let feed = thread::spawn(move || {
        let text = HEADER.to_owned() + &(0..lines).map(line).collect::<String>();
        // A command that was killed does not read on.
        let _ = input.write_all(text.as_bytes());
        input
    });
    (child, feed)
}

fn count(redis: &Redis) -> usize {
    redis.command(&["DBSIZE"]).parse().unwrap()
}

#[test]
fn a_large_import_that_was_killed_goes_on_where_it_stopped() {
    let redis = Redis::start();
    let dir = TempDir::new().unwrap();
    let (mut child, feed) = importing(&redis.url(), MANY);
    wait_for("some records", || (count(&redis) >= 1_000).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(feed.join().unwrap());
    let done = count(&redis);
    assert!((1_000..MANY).contains(&done), "{done}");
    let broken = "local broken = 0
        for _, key in ipairs(redis.call('KEYS', '*')) do
            local whole = redis.call('HLEN', key) == 5 and redis.call('PTTL', key) > 0
            if not whole then broken = broken + 1 end
        end
        return broken";
    assert_eq!(redis.command(&["EVAL", broken, "0"]), "0", "no record is half written");

    let all: String = (0..MANY).map(line).collect();
    let path = write(&dir, "all.csv", &format!("{HEADER}{all}"));
    let output = run(&["import", path.to_str().unwrap(), "--redis", &redis.url()], "");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let counts = format!("imported {}, replaced 0, unchanged {done}, ", MANY - done);
    assert!(said(&output).starts_with(&counts), "{counts}: {}", said(&output));
    assert_eq!(count(&redis), MANY);
    assert_eq!(redis.command(&["EVAL", broken, "0"]), "0");
    assert!(!everything(&redis).contains("the-key-number"));
    assert!(said(&output).lines().count() == 1, "no progress where no terminal is");
}

#[test]
fn an_import_that_cannot_go_on_says_how_far_it_came() {
    let mut redis = Redis::start();
    for (code, words) in [(130, "interrupted"), (69, "redis")] {
        redis.command(&["FLUSHALL"]);
        let (child, feed) = importing(&redis.url(), 1_024);
        let mut input = feed.join().unwrap();
        wait_for("the records", || (count(&redis) == 1_024).then_some(()));
        if code == 69 {
            redis.kill();
            // It may end before it has read all.
            let _ = input.write_all((0..2_048).map(line).collect::<String>().as_bytes());
        } else {
            signal("INT", child.id());
        }
        let output = child.wait_with_output().unwrap();
        drop(input);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let said = said(&output);
        assert!(said.contains(words) && said.contains("goes on where this one stopped"), "{said}");
        assert!(said.starts_with("imported 1024, "), "{said}");
    }
}

#[test]
fn a_full_redis_ends_an_import_and_is_not_filled_further() {
    let redis = Redis::start_with("maxmemory 3mb");
    let dir = TempDir::new().unwrap();
    let all: String = (0..20_000).map(line).collect();
    let path = write(&dir, "all.csv", &format!("{HEADER}{all}"));
    let words = ["import", path.to_str().unwrap(), "--redis", &redis.url()];
    let refused = fails(69, &words);
    assert!(refused.contains("OOM") && refused.contains("goes on"), "{refused}");
    let done = count(&redis);
    assert!((1..20_000).contains(&done), "{done}");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let output = run(&words, "");
    let counts = format!("imported {}, replaced 0, unchanged {done}, ", 20_000 - done);
    assert!(said(&output).starts_with(&counts), "{counts}: {}", said(&output));
}

#[test]
fn a_list_comes_in_pages() {
    let redis = Redis::start();
    let url = redis.url();
    let records: String =
        (0..2_500).map(|nth| format!("{{\"api_key\":\"jwt-{nth}\"}}\n")).collect();
    let output = run(&["import", "-", "--format", "jsonl", "--redis", &url], &records);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let all: BTreeSet<String> = (0..2_500).map(|nth| format!("jwt-{nth}")).collect();
    let ids = |listed: &Value| -> Vec<String> {
        listed.as_array().unwrap().iter().map(|entry| text(entry, "api_key")).collect()
    };
    assert_eq!(BTreeSet::from_iter(ids(&program(&["list", "--redis", &url]))), all);
    let table = said(&run(&["list", "--redis", &url], ""));
    assert_eq!(table.lines().count(), 2_501);
    assert!(table.starts_with("API KEY"), "{}", &table[..80]);

    let mut found = BTreeSet::new();
    let mut start = Some("0.0".to_owned());
    for _ in 0..100 {
        let Some(at) = start.take() else { break };
        let words = ["list", "--page-size", "100", "--start", &at, "--redis", &url, "--json"];
        let output = run(&words, "");
        let page = ids(&serde_json::from_slice(&output.stdout).unwrap());
        assert!(page.len() < 300, "{}", page.len());
        found.extend(page);
        let more = String::from_utf8(output.stderr).unwrap();
        assert!(more.is_empty() || found.len() >= 100);
        start = more.trim().rsplit_once(' ').map(|(_, start)| start.to_owned());
    }
    assert_eq!((start, found), (None, all));
    let refused = fails(64, &["list", "--start", "here", "--redis", &url]);
    assert!(refused.contains("is not where a page starts"), "{refused}");
    redis.command(&["FLUSHALL"]);
    assert_eq!(program(&["list", "--redis", &url]), json!([]));
}

#[test]
fn a_cluster_takes_an_import_and_finds_keys_on_every_node() {
    let cluster = RedisCluster::start();
    let url = cluster.url();
    let records: String = (0..1_000)
        .map(|nth| format!("{{\"key\":\"cluster-key-{nth}\",\"rate_limit\":{}}}\n", nth + 1))
        .collect();
    let words = ["import", "-", "--format", "jsonl", "--redis", &url];
    for counts in
        ["imported 1000, replaced 0, unchanged 0,", "imported 0, replaced 0, unchanged 1000,"]
    {
        let output = run(&words, &records);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).starts_with(counts), "{}", said(&output));
    }
    let sizes: Vec<usize> = cluster.nodes()[..3].iter().map(count).collect();
    assert!(
        sizes.iter().sum::<usize>() == 1_000 && sizes.iter().all(|size| *size > 200),
        "{sizes:?}"
    );
    let listed = program(&["list", "--redis", &url]);
    assert_eq!(listed.as_array().unwrap().len(), 1_000);
    for entry in &listed.as_array().unwrap()[..5] {
        let new = program(&["rotate", &text(entry, "api_key"), "--grace", "1h", "--redis", &url]);
        assert_eq!(new["rate_limit"], entry["record"]["rate_limit"]);
        let revoked = run(&["revoke", &text(&new, "api_key"), "--redis", &url], "");
        assert_eq!(revoked.status.code(), Some(0), "{}", said(&revoked));
    }
}

#[test]
fn sentinels_lead_an_import_to_the_primary() {
    let sentinels = Sentinels::start();
    let url = sentinels.url();
    let records: String =
        (0..300).map(|nth| format!("{{\"key\":\"sentinel-key-{nth}\"}}\n")).collect();
    let output = run(&["import", "-", "--format", "jsonl", "--redis", &url], &records);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).starts_with("imported 300, "), "{}", said(&output));
    assert_eq!(program(&["list", "--redis", &url]).as_array().unwrap().len(), 300);
}

/// The claims of a JWT.
fn claimed(jwt: &str) -> Value {
    let part = jwt.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn where_claims_stand_for_records_nothing_is_done_to_records_that_nobody_reads() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let dir = TempDir::new().unwrap();
    let yaml = config(&redis.url(), &origin)
        + &format!(
            "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: \"{SECRET}\" }} ], require_record: false }}, tokens: [ {{ api_key: kept }} ] }}\n"
        );
    let file = write(&dir, "t.yaml", &with_prefix(&yaml));
    let file = file.to_str().unwrap();
    for id in ["bob", "kept"] {
        redis.record(id, &[("plan", "basic"), ("expires_at", "2035-01-31T12:00:00Z")]);
    }
    let before = everything(&redis);
    let refused = fails(64, &["rotate", "bob", "-c", file]);
    assert!(refused.contains("token create") && refused.contains("revoke"), "{refused}");
    let words = ["import", "-", "--format", "jsonl", "-c", file];
    let output = run(&words, "{\"api_key\":\"alice\"}\n");
    assert_eq!(output.status.code(), Some(65), "{}", said(&output));
    assert!(said(&output).contains("nobody reads this record"), "{}", said(&output));
    fails(65, &["revoke", "kept", "-c", file]);
    assert_eq!(everything(&redis), before);
    assert_eq!(run(&words, "{\"key\":\"abc\"}\n").status.code(), Some(0));

    let odd = ["0123456789abcdef", "0123456789ABCDEF", &"AB".repeat(32)];
    for id in odd {
        let output = run(&["revoke", id, "-c", file], "");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(redis.command(&["EXISTS", &format!("revoked:{id}")]), "1", "{id}");
    }
}

#[test]
fn a_jwt_whose_id_looks_like_that_of_a_key_is_found() {
    let redis = Redis::start();
    let url = redis.url();
    for id in ["0123456789abcdef", "0123456789ABCDEF", &"AB".repeat(32)] {
        redis.record(id, &[("plan", id)]);
    }
    for id in ["0123456789abcdef", "0123456789ABCDEF", &"AB".repeat(32)] {
        if id != "0123456789ABCDEF" {
            assert_eq!(program(&["show", id, "--redis", &url])["record"]["plan"], id);
        }
        let output = run(&["revoke", id, "--redis", &url], "");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(redis.command(&["EXISTS", &format!("token:{id}")]), "0");
    }
    let long = "not-known-to-anybody".repeat(4);
    assert!(!fails(65, &["show", &long, "--redis", &url]).contains(&long));
}

#[test]
fn rotation_carries_over_the_claims_of_a_jwt_that_it_has_in_hand() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = Gateway::start(&config(&redis.url(), &origin));
    let file = gateway.config.to_str().unwrap();
    redis.record("bob", &[("organization_id", "acme")]);
    let mut granted = json!({
        "allowed_routes": ["/x"], "limits": ["5/day"], "plan": "basic",
        "organization_id": "o",
    });
    let expires = token::now() + 2_000;
    let mut of_bob = granted.clone();
    of_bob["api_key"] = "bob".into();
    of_bob["exp"] = (token::now() + 3_600).into();
    of_bob["expires_at"] = expires.into();
    let words = ["rotate", "-", "--grace", "1h", "--json", "-c", file];
    let output = run(&words, &token::claims(of_bob.clone()));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let new: Value = serde_json::from_slice(&output.stdout).unwrap();
    let claimed_now = claimed(&text(&new, "credential"));
    for (name, value) in granted.as_object_mut().unwrap() {
        assert_eq!(&claimed_now[name.as_str()], value, "{name}");
    }
    assert_eq!(claimed_now["exp"], expires);
    assert_eq!(output.stderr, b"");

    // Claims that no gateway would accept are not signed again.
    let before = everything(&redis);
    let mut of_two_minds = of_bob.clone();
    of_two_minds["rate_limit"] = 7.into();
    let output = run(&words, &token::claims(of_two_minds));
    assert_eq!((output.status.code(), output.stdout.len()), (Some(65), 0), "{}", said(&output));
    assert!(said(&output).contains("limits: stands beside rate_limit"), "{}", said(&output));
    assert_eq!(everything(&redis), before);

    // Any client can make up claims: `rotate` does not sign claims that no key of the configuration signed.
    let header = json!({ "alg": "HS256" });
    let forged = format!("{}.c2ln", token::unsigned(&header, &of_bob));
    let output = run(&words, &forged);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(65), 0), "{}", said(&output));
    assert_eq!(everything(&redis), before);

    // Given an id, `rotate` does not know the claims.
    let output = run(&["rotate", "bob", "--ttl", "1h", "--json", "-c", file], "");
    let new: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(claimed(&text(&new, "credential")).get("plan"), None);
    assert!(said(&output).contains("is not carried over"), "{}", said(&output));
}

#[test]
fn rotation_ends_nothing_where_the_new_credential_is_of_no_use() {
    let redis = Redis::start();
    let url = redis.url();
    let old = program(&["create", "--kind", "key", "--redis", &url]);
    let key = text(&old, "storage_key");
    let before = redis.command(&["HGETALL", &key]);
    let rotate = |stdout: Stdio| {
        let mut command = tollgate();
        command.args(["token", "rotate", &text(&old, "api_key"), "--grace", "0s", "--redis", &url]);
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    for stdout in [Stdio::piped(), File::create("/dev/full").unwrap().into()] {
        let output = rotate(stdout);
        assert_eq!(output.status.code(), Some(69), "{}", said(&output));
        assert!(said(&output).contains("the old token works as before"), "{}", said(&output));
        assert_eq!(redis.command(&["HGETALL", &key]), before);
    }

    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    redis.record(hash, &[("disabled", "true")]);
    let refused = fails(65, &["rotate", hash, "--redis", &url]);
    assert!(refused.contains("disabled"), "{refused}");

    // The expiry in the record and the expiry of the key are the same time.
    redis.record(hash, &[("plan", "basic")]);
    redis.command(&["PEXPIRE", &format!("token:{hash}"), "1000777"]);
    let new = text(&program(&["rotate", hash, "--redis", &url]), "storage_key");
    let at = redis.command(&["PEXPIRETIME", &new]);
    assert!(at.ends_with("000"), "{at}");
}

#[test]
fn a_record_that_is_no_text_hides_no_other() {
    let redis = Redis::start();
    let url = redis.url();
    let script = "for i = 1, 50 do
            redis.call('HSET', ARGV[1] .. i, 'name', '\\255\\254')
            redis.call('SET', ARGV[2] .. i, '\\255\\254')
        end";
    redis.command(&["EVAL", script, "0", "token:hash", "token:string"]);
    redis.record("good", &[("plan", "basic")]);
    let listed = program(&["list", "--redis", &url]);
    assert_eq!(listed.as_array().unwrap().len(), 101);
    for id in ["hash7", "string7"] {
        let shown = program(&["show", id, "--redis", &url]);
        assert!(text(&shown["record"], "unreadable").contains("UTF-8"), "{shown}");
    }
    fails(65, &["rotate", "hash7", "--ttl", "1h", "--redis", &url]);
    assert_eq!(run(&["revoke", "hash7", "--redis", &url], "").status.code(), Some(0));
}

#[test]
fn a_small_page_of_a_large_keyspace_takes_few_calls() {
    let redis = Redis::start();
    redis.command(&["EVAL", "for i = 1, 5000 do redis.call('SET', 'other:' .. i, 1) end", "0"]);
    redis.command(&["CONFIG", "RESETSTAT"]);
    fails(0, &["list", "--page-size", "1", "--redis", &redis.url()]);
    let statistics = redis.command(&["INFO", "commandstats"]);
    let (_, scans) = statistics.split_once("cmdstat_scan:calls=").unwrap();
    let scans: u32 = scans.split_once(',').unwrap().0.parse().unwrap();
    assert!(scans < 200, "{scans}");
}

#[test]
fn an_import_replaces_records_whole_and_mends_when_their_keys_expire() {
    let redis = Redis::start();
    let url = redis.url();
    let import = |lines: &str, replace: bool, counts: &str| {
        let words = ["import", "-", "--format", "jsonl", "--redis", &url];
        let output = run(&[&words[..], if replace { &["--replace"] } else { &[] }].concat(), lines);
        assert!(said(&output).starts_with(counts), "{counts}: {}", said(&output));
    };
    let ending = "{\"api_key\":\"ending\",\"expires_at\":\"2035-01-31T12:00:00Z\"}\n";
    let lasting = "{\"api_key\":\"lasting\",\"plan\":\"basic\"}\n";
    let both = format!("{ending}{lasting}");
    let expiries =
        || ["token:ending", "token:lasting"].map(|key| redis.command(&["PEXPIRETIME", key]));
    let right = ["2053857600000".to_owned(), "-1".to_owned()];
    import(&both, false, "imported 2,");
    for script in [
        "redis.call('PERSIST', KEYS[1]) redis.call('PEXPIRE', KEYS[2], 90000)",
        "redis.call('PEXPIREAT', KEYS[1], 2053857605000)",
    ] {
        redis.command(&["EVAL", script, "2", "token:ending", "token:lasting"]);
        assert_ne!(expiries(), right);
        import(&both, false, "imported 0, replaced 0, unchanged 2,");
        assert_eq!(expiries(), right, "{script}");
    }

    // Nothing of the old value stays, whatever its type was.
    redis.record("lasting", &[("name", "n"), ("plan", "basic"), ("other", "o")]);
    redis.command(&["PEXPIRE", "token:lasting", "90000"]);
    redis.command(&["SET", "token:ending", "{}"]);
    import(&both, true, "imported 0, replaced 2,");
    assert_eq!(expiries(), right);
    assert_eq!(redis.command(&["HLEN", "token:lasting"]), "2");
    import(&both, false, "imported 0, replaced 0, unchanged 2,");

    // An expired record is not written.
    let expired = "{\"api_key\":\"ending\",\"expires_at\":\"2001-01-01T00:00:00Z\"}\n";
    import(expired, true, "imported 0, replaced 0, unchanged 0, differing 0, expired 1, bad 0");
    assert_eq!(expiries(), right);
}

#[test]
fn of_lines_about_one_token_the_first_is_written_first() {
    let redis = Redis::start();
    let url = redis.url();
    let lines: String = (0..100)
        .flat_map(|round| (0..100).map(move |id| (round, id)))
        .map(|(round, id)| format!("{{\"api_key\":\"jwt-{id}\",\"name\":\"round {round}\"}}\n"))
        .collect();
    // The command writes as much as it reads: through two pipes, test and command would wait for each other.
    let dir = TempDir::new().unwrap();
    let path = write(&dir, "t.jsonl", &lines);
    let words = ["import", path.to_str().unwrap(), "--redis", &url, "--replace"];
    for (replace, counts, name) in [
        (false, "imported 100, replaced 0, unchanged 0, differing 9900,", "round 0"),
        (true, "imported 0, replaced 9900, unchanged 100, differing 0,", "round 99"),
    ] {
        let output = run(&words[..if replace { 5 } else { 4 }], "");
        let all = said(&output);
        assert!(all.contains(counts), "{}", &all[..200.min(all.len())]);
        for id in 0..100 {
            assert_eq!(redis.command(&["HGET", &format!("token:jwt-{id}"), "name"]), name);
        }
    }
}

#[test]
fn a_full_redis_is_not_filled_further_by_replacing() {
    let redis = Redis::start();
    let url = redis.url();
    let lines = |name: &str| -> String {
        let line = |nth| format!("{{\"api_key\":\"jwt-{nth}\",\"name\":\"{name}\"}}\n");
        "{\"api_key\":\"keep\"}\n".to_owned() + &(0..1_000).map(line).collect::<String>()
    };
    let words = ["import", "-", "--format", "jsonl", "--redis", &url, "--replace"];
    assert_eq!(run(&words, &lines("first")).status.code(), Some(0));
    // Mending an expiry needs no memory, and must not let a write through that needs memory.
    redis.command(&["PEXPIRE", "token:keep", "90000"]);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let output = run(&words, &lines(&"second".repeat(100)));
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("OOM"), "{}", said(&output));
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(count(&redis), 1_001);
    assert!(!everything(&redis).contains("second"));
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}
