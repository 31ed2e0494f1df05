//! What clients see of a Redis that fails over: a cluster, and a primary that Sentinels replace.
//! It must not know how the gateway finds the new primary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use support::topology::{ELECTION, is_primary};
use support::*;
use tempfile::TempDir;

/// Primaries of a cluster.
const PRIMARIES: usize = 3;

/// More than a test asks for.
const PLENTY: &str = "1000000/day";

/// While Redis is away the gateway answers 503, so that no gateway counts by itself.
fn gateway(url: &str, origin: &Origin) -> Gateway {
    Gateway::start(&format!(
        r#"
redis: {{ url: "{url}", timeout: 2s }}
auth:
  jwt: {{ keys: [ {{ algorithm: HS256, secret: "{SECRET}" }} ] }}
  cache: {{ ttl: 1h, entries: 1000, max_stale: 1h }}
limits: {{ default: [ 5/day ], window: 1d, on_store_failure: deny }}
upstreams: {{ up: {{ endpoints: [ "{origin}" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
"#,
        origin = origin.url(),
    ))
}

/// Runs `tollgate token …` on `gateway`'s configuration; what it says, if that is JSON.
fn run(gateway: &Gateway, arguments: &[&str]) -> Value {
    let file = gateway.config.to_str().unwrap();
    let mut command = tollgate();
    let output = command.arg("token").args(arguments).args(["-c", file]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Makes a token and gives its `api_key`.
fn create(gateway: &Gateway, limit: &str) -> String {
    let made = run(gateway, &["create", "--limit", limit, "--json"]);
    made["api_key"].as_str().unwrap().to_owned()
}

/// Asks one request after the other until `limit` were admitted, and as often again.
fn use_up(gateways: &[Gateway], api_key: &str, limit: usize) {
    let mut admitted = 0;
    let mut ask = |nth: usize| {
        let status = gateways[nth % gateways.len()].get_as(api_key, "/").status();
        assert!([200, 429].contains(&status), "{api_key}: {status}");
        admitted += usize::from(status == 200);
        admitted
    };
    let mut asked = 0;
    wait_for("the limit to be used up", || {
        asked += 1;
        (ask(asked) == limit).then_some(())
    });
    for nth in 0..2 * limit {
        assert_eq!(ask(asked + nth), limit, "{api_key} got more than its limit");
    }
}

/// Requests of several tokens at several gateways, one after the other without end.
struct Load {
    answers: Receiver<(String, u16)>,
}

impl Load {
    /// Runs `work` while the load lasts; fails when an answer is none that an outage explains.
    fn during<T>(gateways: &[Gateway], tokens: &[&String], work: impl FnOnce(&Self) -> T) -> T {
        let (sender, answers) = channel();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for gateway in gateways {
                for token in tokens {
                    let (sender, ended) = (sender.clone(), &ended);
                    let credential = bearer(token);
                    scope.spawn(move || {
                        let mut client = gateway.connect();
                        while !ended.load(Ordering::Relaxed) {
                            let answer =
                                client.call("GET", "/", &[("Authorization", &credential)], b"");
                            let _ = sender.send((token.to_string(), answer.status()));
                            thread::sleep(Duration::from_millis(2));
                        }
                    });
                }
            }
            drop(sender);
            let _end = EndOnDrop(&ended);
            work(&Self { answers })
        })
    }

    /// The answers to each token, from now until `enough`.
    fn until(
        &self,
        what: &str,
        mut enough: impl FnMut(&BTreeMap<String, Vec<u16>>) -> bool,
    ) -> BTreeMap<String, Vec<u16>> {
        self.answers.try_iter().for_each(allowed);
        let mut seen: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        wait_longer_for(ELECTION, what, || {
            for answer in self.answers.try_iter() {
                seen.entry(answer.0.clone()).or_default().push(answer.1);
                allowed(answer);
            }
            enough(&seen).then_some(())
        });
        seen
    }

    /// Until each of `tokens` was admitted `times` in a row, from now on.
    fn admits(&self, tokens: &[&String], times: usize) {
        self.until("every token to be admitted again", |seen| {
            tokens.iter().all(|token| {
                let last = seen.get(*token).map_or(&[][..], |all| &all[..]);
                last.iter().rev().take_while(|status| **status == 200).count() >= times
            })
        });
    }
}

fn count(seen: &BTreeMap<String, Vec<u16>>, token: &str, status: u16) -> usize {
    seen.get(token).map_or(0, |answers| answers.iter().filter(|s| **s == status).count())
}

/// Never 401: nothing is known about a token while its record cannot be read.
fn allowed((token, status): (String, u16)) {
    assert!([200, 429, 503].contains(&status), "{token}: {status}");
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_cluster_is_one_store_and_follows_its_primaries() {
    let (mut cluster, origin) = (RedisCluster::start(), Origin::start());
    let gateways = [0, 1].map(|_| gateway(&cluster.url(), &origin));

    let plenty = tokens_of_each_primary(&cluster, &gateways[0], PLENTY);
    let few = tokens_of_each_primary(&cluster, &gateways[0], "7/day");
    for token in &few {
        use_up(&gateways, token, 7);
    }
    the_command_line_sees_all_nodes(&gateways[0], &[&plenty[..], &few].concat());
    assert!(said_by_show(&cluster.url_of_a_replica()).contains("must start with redis-cluster://"));

    Load::during(&gateways, &plenty.iter().collect::<Vec<_>>(), |load| {
        load.admits(&plenty.iter().collect::<Vec<_>>(), 3);
        forgotten_scripts_heal(load, cluster.nodes());
        a_handover_heals(load, &cluster, &plenty);
        a_killed_primary_is_replaced(load, &mut cluster, &plenty);
        a_silent_primary_is_replaced(load, &mut cluster, &plenty);
    });
    // Replication is asynchronous: counts of the last moment before the kill may be lost. A limit that was used up well
    // before the kill stays used up.
    let late = gateway(&cluster.url(), &origin);
    for gateway in gateways.iter().chain([&late]) {
        for token in &few {
            assert_eq!(gateway.get_as(token, "/").status(), 429, "{token}");
        }
    }
    for token in &plenty {
        assert_eq!(late.get_as(token, "/").status(), 200, "{token}");
    }
}

/// A token whose counters and record are on the first primary, one on the second, one on the third.
fn tokens_of_each_primary(cluster: &RedisCluster, gateway: &Gateway, limit: &str) -> Vec<String> {
    let mut homes: [Option<String>; PRIMARIES] = Default::default();
    wait_longer_for(ELECTION, "tokens on every primary", || {
        let token = create(gateway, limit);
        let home = cluster.home(&format!("{{token:{token}}}"));
        homes[home].get_or_insert(token);
        homes.iter().all(Option::is_some).then_some(())
    });
    homes.into_iter().flatten().collect()
}

fn the_command_line_sees_all_nodes(gateway: &Gateway, tokens: &[String]) {
    let revoked = create(gateway, PLENTY);
    assert_eq!(gateway.get_as(&revoked, "/").status(), 200);
    let listed = run(gateway, &["list", "--json"]);
    let listed: BTreeSet<_> =
        listed.as_array().unwrap().iter().map(|entry| entry["api_key"].as_str().unwrap()).collect();
    for token in tokens.iter().chain([&revoked]) {
        assert!(listed.contains(token.as_str()), "{token} is not in {listed:?}");
        assert!(run(gateway, &["show", token, "--json"])["record"].is_object(), "{token}");
    }
    run(gateway, &["revoke", &revoked]);
    wait_for("the revoked token to be refused", || {
        (gateway.get_as(&revoked, "/").status() == 401).then_some(())
    });
}

fn forgotten_scripts_heal(load: &Load, nodes: &[Redis]) {
    for node in nodes {
        node.command(&["SCRIPT", "FLUSH"]);
    }
    let answers = load.until("answers after the flush", |seen| {
        !seen.is_empty() && seen.values().all(|all| all.len() >= 20)
    });
    let failed = answers.values().flatten().filter(|status| **status != 200).count();
    assert_eq!(failed, 0, "of {answers:?}");
}

/// The third primary hands over to its replica on purpose.
fn a_handover_heals(load: &Load, cluster: &RedisCluster, tokens: &[String]) {
    cluster.replica(2).command(&["CLUSTER", "FAILOVER"]);
    let answers = load.until("the handover", |seen| {
        is_primary(cluster.replica(2))
            && seen.len() == tokens.len()
            && seen.values().all(|all| all.len() >= 20)
    });
    let failed: usize = tokens.iter().map(|token| count(&answers, token, 503)).sum();
    load.admits(&tokens.iter().collect::<Vec<_>>(), 5);
    eprintln!("cluster: {failed} requests failed during a handover");
}

fn a_killed_primary_is_replaced(load: &Load, cluster: &mut RedisCluster, tokens: &[String]) {
    let (orphan, others) = (&tokens[0], &tokens[1..]);
    cluster.wait_replicated(0);
    cluster.primary(0).kill();
    let killed = Instant::now();
    // While one primary is missed, the others serve.
    load.until("the others to be served while one is missed", |seen| {
        count(seen, orphan, 503) > 0 && others.iter().all(|token| count(seen, token, 200) >= 5)
    });
    assert!(!is_primary(cluster.replica(0)), "the others were served only after the election");
    wait_longer_for(ELECTION, "the replica to take over", || {
        is_primary(cluster.replica(0)).then_some(())
    });
    let elected = killed.elapsed();
    load.admits(&tokens.iter().collect::<Vec<_>>(), 5);
    eprintln!("cluster: elected after {elected:?}, all admitted after {:?}", killed.elapsed());
}

/// Connections stay open, and nothing says that the primary is gone.
fn a_silent_primary_is_replaced(load: &Load, cluster: &mut RedisCluster, tokens: &[String]) {
    cluster.wait_replicated(1);
    cluster.primary(1).freeze();
    let frozen = Instant::now();
    wait_longer_for(ELECTION, "the replica to take over", || {
        is_primary(cluster.replica(1)).then_some(())
    });
    let elected = frozen.elapsed();
    load.admits(&tokens.iter().collect::<Vec<_>>(), 5);
    eprintln!("cluster: elected after {elected:?}, all admitted after {:?}", frozen.elapsed());
    cluster.primary(1).thaw();
    wait_longer_for(ELECTION, "the old primary to follow", || {
        (!is_primary(cluster.primary(1))).then_some(())
    });
    load.admits(&tokens.iter().collect::<Vec<_>>(), 5);
}

#[test]
fn a_primary_that_sentinels_replace_is_found() {
    let (mut redis, origin) = (Sentinels::start(), Origin::start());
    let gateways = [0, 1].map(|_| gateway(&redis.url(), &origin));
    let plenty = create(&gateways[0], PLENTY);
    let few = create(&gateways[0], "7/day");
    use_up(&gateways, &few, 7);

    Load::during(&gateways, &[&plenty], |load| {
        load.admits(&[&plenty], 3);
        forgotten_scripts_heal(load, redis.servers());
        redis.wait_replicated();
        // A Sentinel that accepts connections and does not answer must not stop the search.
        redis.sentinel(0).freeze();
        redis.first().kill();
        let killed = Instant::now();
        load.until("the outage", |seen| count(seen, &plenty, 503) > 0);
        let second = wait_longer_for(ELECTION, "a replica to take over", || redis.successor());
        let elected = killed.elapsed();
        load.admits(&[&plenty], 5);
        eprintln!("sentinel: elected after {elected:?}, admitted after {:?}", killed.elapsed());
        second.freeze();
        let frozen = Instant::now();
        load.until("the outage", |seen| count(seen, &plenty, 503) > 0);
        wait_longer_for(ELECTION, "the last server to take over", || redis.successor());
        let elected = frozen.elapsed();
        load.admits(&[&plenty], 5);
        eprintln!("sentinel: elected after {elected:?}, admitted after {:?}", frozen.elapsed());
    });
    let late = gateway(&redis.url(), &origin);
    for gateway in gateways.iter().chain([&late]) {
        assert_eq!(gateway.get_as(&few, "/").status(), 429);
        assert_eq!(gateway.get_as(&plenty, "/").status(), 200);
    }
}

#[test]
fn a_server_that_becomes_a_replica_is_an_outage_and_no_answer() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&redis.url(), &origin);
    let (known, strange) = (create(&gateway, PLENTY), create(&gateway, PLENTY));
    // A replica whose primary is away may answer from what it has, or not at all.
    for serves_stale_data in ["yes", "no"] {
        redis.command(&["CONFIG", "SET", "replica-serve-stale-data", serves_stale_data]);
        redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
        for token in [&known, &strange] {
            wait_for("the outage", || {
                let status = gateway.get_as(token, "/").status();
                assert!([200, 503].contains(&status), "{status}");
                (status == 503).then_some(())
            });
        }
        redis.command(&["REPLICAOF", "NO", "ONE"]);
        for token in [&known, &strange] {
            wait_for("recovery", || {
                let status = gateway.get_as(token, "/").status();
                assert!([200, 503].contains(&status), "{status}");
                (status == 200).then_some(())
            });
        }
    }
}

#[test]
fn a_url_of_another_kind_of_redis_is_named_as_such() {
    let (single, clustered) = (Redis::start(), Redis::start_with("cluster-enabled yes"));
    let port = single.port();
    for (url, expected) in [
        (clustered.url(), "CLUSTERDOWN"),
        (format!("redis-cluster://127.0.0.1:{}", clustered.port()), "it knows of no slots"),
        (format!("redis-cluster://127.0.0.1:{port}"), "cluster support disabled"),
        (format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=main"), "SENTINEL"),
        (format!("redis-sentinel://{NOBODY}?sentinelServiceName=main"), "sentinel nodes"),
    ] {
        let said = said_by_show(&url);
        assert!(said.contains(expected), "{url}: {said}");
    }
}

/// Why `tollgate token show` gets no answer from Redis.
fn said_by_show(url: &str) -> String {
    let output = tollgate().args(["token", "show", "x", "--redis", url]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{url}: {said}");
    said
}

/// A certificate authority of its own, and Redis' certificate made by it; the authority's file.
fn certificates(dir: &Path) -> PathBuf {
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let file = dir.join("ca.pem");
    fs::write(&file, authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    fs::write(dir.join("redis.pem"), server.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(dir.join("redis.key"), key.serialize_pem()).unwrap();
    file
}

#[test]
fn tls_with_a_user_and_a_database_and_not_with_a_stranger_s_certificate() {
    let (dir, origin) = (TempDir::new().unwrap(), Origin::start());
    let authority = certificates(dir.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let redis = Redis::start_with(&format!(
        "tls-port {port}
tls-cert-file {home}/redis.pem
tls-key-file {home}/redis.key
tls-ca-cert-file {home}/ca.pem
tls-auth-clients no
user gate on >opens ~* &* +@all",
        home = dir.path().display(),
    ));
    let yaml = format!(
        "redis: {{ url: \"rediss://gate:opens@127.0.0.1:{port}/3\", timeout: 2s }}
limits: {{ default: [ 2/day ], on_store_failure: deny }}
auth: {}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        auth("[]"),
        origin.url()
    );
    redis.command(&["-n", "3", "HSET", "token:alice", "name", "x"]);
    let gateway = Gateway::spawn_with(&yaml, &[("SSL_CERT_FILE", authority.to_str().unwrap())]);
    gateway.wait_ready();
    let statuses: Vec<_> = (0..3).map(|_| gateway.get_as("alice", "/").status()).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(redis.command(&["-n", "3", "EXISTS", "quota:{token:alice}:day:86400"]), "1");
    assert_eq!(redis.command(&["-n", "0", "DBSIZE"]), "0");

    // The same certificate, where its authority is not trusted.
    let doubting = Gateway::spawn(&yaml);
    let refused = doubting.get_as("alice", "/");
    assert_eq!((refused.status(), refused.code().as_str()), (503, "store_unavailable"));
    assert_eq!(doubting.get("/ready").status(), 503);
}
