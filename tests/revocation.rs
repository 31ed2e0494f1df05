//! What changes in Redis is in effect at every gateway at once, although records are kept for an hour.
//! It must not know how gateways hear of changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::*;

struct World {
    redis: Redis,
    gateways: Vec<Gateway>,
    _origin: Origin,
}

fn world() -> World {
    let (redis, origin) = (Redis::start(), Origin::start());
    let yaml = format!(
        "redis: {{ url: \"{}\", timeout: 2s }}
auth: {}
limits: {{ default: [ 100000/day ], on_store_failure: local }}
upstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]",
        redis.url(),
        auth("[]").replace("max_failures", "cache: { ttl: 1h, max_stale: 1h }, max_failures"),
        origin.url(),
    );
    let gateways = (0..3).map(|_| Gateway::start_with_one_thread(&yaml)).collect();
    World { redis, gateways, _origin: origin }
}

impl World {
    fn statuses(&self, api_key: &str) -> Vec<u16> {
        self.gateways.iter().map(|gateway| gateway.get_as(api_key, "/").status()).collect()
    }

    fn wait_everywhere(&self, api_key: &str, status: u16) {
        wait_for(&format!("{api_key} to meet {status} everywhere"), || {
            self.statuses(api_key).iter().all(|seen| *seen == status).then_some(())
        });
    }
}

#[test]
fn a_changed_record_is_in_effect_everywhere() {
    let world = world();
    assert_eq!(world.statuses("alice"), [401; 3], "not known yet");
    world.redis.record("alice", &[("name", "x")]);
    world.wait_everywhere("alice", 200);
    world.redis.command(&["HSET", "token:alice", "disabled", "true"]);
    world.wait_everywhere("alice", 401);
    world.redis.command(&["HSET", "token:alice", "disabled", "false"]);
    world.wait_everywhere("alice", 200);
    world.redis.command(&["HSET", "token:alice", "allowed_routes", "[\"/other\"]"]);
    world.wait_everywhere("alice", 403);
    world.redis.command(&["DEL", "token:alice"]);
    world.wait_everywhere("alice", 401);

    world.redis.record("brief", &[("name", "x")]);
    world.wait_everywhere("brief", 200);
    world.redis.command(&["PEXPIRE", "token:brief", "50"]);
    world.wait_everywhere("brief", 401);

    world.redis.record("bob", &[("name", "x")]);
    world.wait_everywhere("bob", 200);
    world.redis.command(&["FLUSHALL"]);
    world.wait_everywhere("bob", 401);
}

#[test]
fn a_revocation_that_nobody_hears_of_is_in_effect_after_the_connection_is_back() {
    let world = world();
    for round in 0..5 {
        let api_key = format!("t{round}");
        world.redis.record(&api_key, &[("name", "x")]);
        world.wait_everywhere(&api_key, 200);
        world.redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        world.redis.command(&["DEL", &format!("token:{api_key}")]);
        world.wait_everywhere(&api_key, 401);
    }
}

#[test]
fn a_token_that_is_revoked_under_load_is_not_admitted_again() {
    let world = world();
    world.redis.record("hot", &[("name", "x")]);
    world.wait_everywhere("hot", 200);
    let revoked = AtomicBool::new(false);
    thread::scope(|scope| {
        for gateway in &world.gateways {
            let revoked = &revoked;
            scope.spawn(move || {
                let credential = bearer("hot");
                let mut client = gateway.connect();
                let mut ask =
                    || client.call("GET", "/", &[("Authorization", &credential)], b"").status();
                while !revoked.load(Ordering::SeqCst) {
                    let status = ask();
                    assert!(status == 200 || revoked.load(Ordering::SeqCst), "{status}");
                }
                wait_for("the revocation", || (ask() == 401).then_some(()));
                assert!((0..200).all(|_| ask() == 401), "it came back");
            });
        }
        thread::sleep(std::time::Duration::from_millis(300));
        revoked.store(true, Ordering::SeqCst);
        world.redis.command(&["DEL", "token:hot"]);
    });
}

#[test]
fn an_outage_serves_a_thousand_known_tokens_and_calls_no_unknown_one_wrong() {
    let mut world = world();
    let gateway = &world.gateways[0];
    let key = |nth: usize| format!("imported-key-{nth}");
    let hash = |nth: usize| tollgate::record::key::hash(&key(nth)).unwrap();
    let keys_of = |nth| [format!("token:known-{nth}"), format!("token:{}", hash(nth))];
    let stored: Vec<_> = (0..500).flat_map(keys_of).collect();
    let script = "for _, key in ipairs(ARGV) do redis.call('HSET', key, 'name', 'x') end";
    let words: Vec<&str> =
        ["EVAL", script, "0"].into_iter().chain(stored.iter().map(|key| &**key)).collect();
    world.redis.command(&words);
    let statuses = |credential: &dyn Fn(usize) -> (&'static str, String), count: usize| {
        let mut client = gateway.connect();
        let mut seen = std::collections::BTreeMap::<u16, usize>::new();
        for nth in 0..count {
            let (field, value) = credential(nth);
            let status = client.call("GET", "/", &[(field, &value)], b"").status();
            *seen.entry(status).or_default() += 1;
        }
        seen.into_iter().collect::<Vec<_>>()
    };
    let jwts = |prefix: &'static str| {
        move |nth: usize| ("Authorization", bearer(&format!("{prefix}-{nth}")))
    };
    let keys = |nth: usize| ("X-API-Key", key(nth));
    assert_eq!(statuses(&jwts("known"), 500), [(200, 500)]);
    assert_eq!(statuses(&keys, 500), [(200, 500)]);
    world.redis.kill();
    assert_eq!(statuses(&jwts("known"), 500), [(200, 500)]);
    assert_eq!(statuses(&keys, 500), [(200, 500)]);
    assert_eq!(statuses(&jwts("unknown"), 500), [(503, 500)]);
    assert_eq!(statuses(&|nth| ("X-API-Key", key(nth + 500)), 500), [(503, 500)]);
    // A token that no store could make valid is still called invalid.
    assert_eq!(statuses(&|_| ("X-API-Key", "tg_mistyped".into()), 1), [(401, 1)]);
}
