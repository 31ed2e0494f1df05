//! The promises of the limits with real gateways on a real Redis, while a gateway or Redis is killed, frozen,
//! paused or emptied. The simulation tries every order of events; these tests run the real programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use support::*;

/// Requests a day that the hot token may make.
const QUOTA: u64 = 4_000;

/// The gateways of each world.
const GATEWAYS: usize = 3;

struct World {
    redis: Mutex<Redis>,
    gateways: Vec<Gateway>,
    _origin: Origin,
}

fn world(sync: &str, policy: &str) -> World {
    let (redis, origin) = (Redis::start(), Origin::start());
    make_hot(&redis);
    let yaml = format!(
        "redis: {{ url: \"{redis}\", timeout: 1s }}
limits: {{ default: [ 3/day ], sync: {sync}, on_store_failure: {policy} }}
auth: {auth}
upstreams: {{ up: {{ endpoints: [ \"{up}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]
log: {{ level: info, format: json, access: false }}",
        redis = redis.url(),
        auth = auth("[]").replace("max_failures", "cache: { ttl: 1h }, max_failures"),
        up = origin.url(),
    );
    let gateways = (0..GATEWAYS).map(|_| Gateway::start_with_one_thread(&yaml)).collect();
    World { redis: Mutex::new(redis), gateways, _origin: origin }
}

/// Makes the hot token, which all clients use.
fn make_hot(redis: &Redis) {
    redis.record("hot", &[("limits", &format!("[\"{QUOTA}/day\"]"))]);
}

/// Answers by status, while a load was running.
#[derive(Default)]
struct Answers(Mutex<HashMap<u16, u64>>, AtomicU64);

impl Answers {
    fn note(&self, status: u16) {
        *self.0.lock().entry(status).or_default() += 1;
        self.1.fetch_add(u64::from(status == 200), Ordering::SeqCst);
    }

    fn admitted(&self) -> u64 {
        self.1.load(Ordering::SeqCst)
    }

    /// Whether no other status was answered.
    fn are_only(&self, expected: &[u16]) {
        let seen = self.0.lock();
        assert!(seen.keys().all(|status| expected.contains(status)), "{seen:?}");
    }
}

impl World {
    /// Sends requests of the hot token to every gateway that lives, until `events` has returned and the
    /// quota is used up at all of them.
    fn under_load(&self, answers: &Answers, events: impl FnOnce()) {
        let happened = AtomicBool::new(false);
        let credential = bearer("hot");
        thread::scope(|scope| {
            for gateway in &self.gateways {
                for _ in 0..2 {
                    let (credential, happened) = (&credential, &happened);
                    scope.spawn(move || load(gateway, credential, answers, happened));
                }
            }
            events();
            happened.store(true, Ordering::SeqCst);
        });
    }

    fn warm_up(&self, answers: &Answers) {
        for gateway in &self.gateways {
            answers.note(gateway.get_as("hot", "/").status());
        }
    }

    fn wait_admitted(answers: &Answers, number: u64) {
        wait_for(&format!("{number} admissions"), || (answers.admitted() >= number).then_some(()));
    }
}

/// Sends requests until the events are over and the answer has been 429 for a while, or the gateway is gone.
fn load(gateway: &Gateway, credential: &str, answers: &Answers, happened: &AtomicBool) {
    let mut refused = 0;
    let started = Instant::now();
    let mut client = gateway.connect();
    while !happened.load(Ordering::SeqCst) || refused < 50 {
        assert!(started.elapsed() < Duration::from_secs(90), "the load does not end");
        client.send(request("GET", "/", &[("Authorization", credential)], b""));
        let Ok(answer) = client.try_read(false) else { return };
        answers.note(answer.status());
        refused = if answer.status() == 429 { refused + 1 } else { 0 };
        if answer.status() != 200 {
            // The gateway refuses from memory, thousands of times a second.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_killed_gateway_and_a_flushed_script_cache_change_nothing() {
    for sync in ["leased", "exact"] {
        let world = world(sync, "deny");
        let answers = Answers::default();
        world.warm_up(&answers);
        world.under_load(&answers, || {
            World::wait_admitted(&answers, QUOTA / 4);
            world.gateways[2].signal("KILL");
            World::wait_admitted(&answers, QUOTA / 2);
            world.redis.lock().command(&["SCRIPT", "FLUSH"]);
            World::wait_admitted(&answers, QUOTA * 3 / 4);
        });
        answers.are_only(&[200, 429]);
        // The share of the killed gateway, and the answers it could not send, are lost until the day ends.
        let (admitted, least) = (answers.admitted(), QUOTA - QUOTA / 8 / 3 - 3);
        assert!((least..=QUOTA).contains(&admitted), "{sync}: {admitted} of {QUOTA}");
    }
}

#[test]
fn a_frozen_and_a_paused_redis_admit_no_more_than_the_limit() {
    for sync in ["leased", "exact"] {
        let world = world(sync, "deny");
        let answers = Answers::default();
        world.warm_up(&answers);
        world.under_load(&answers, || {
            World::wait_admitted(&answers, QUOTA / 4);
            world.redis.lock().freeze();
            thread::sleep(Duration::from_millis(1_500));
            world.redis.lock().thaw();
            World::wait_admitted(&answers, QUOTA / 2);
            world.redis.lock().command(&["CLIENT", "PAUSE", "1500", "ALL"]);
            World::wait_admitted(&answers, QUOTA * 3 / 4);
        });
        answers.are_only(&[200, 429, 503]);
        assert!(answers.admitted() <= QUOTA, "{sync}: {} of {QUOTA}", answers.admitted());
    }
}

#[test]
fn counting_alone_while_redis_is_frozen_is_told_to_it_afterwards() {
    let world = world("leased", "local");
    let answers = Answers::default();
    world.warm_up(&answers);
    // Every gateway must know how many gateways there are.
    wait_for("the gateways to see each other", || {
        (world.redis.lock().command(&["ZCARD", "tollgate:gateways"]) == GATEWAYS.to_string())
            .then_some(())
    });
    thread::sleep(Duration::from_millis(1_300));
    world.under_load(&answers, || {
        World::wait_admitted(&answers, QUOTA / 4);
        world.redis.lock().freeze();
        World::wait_admitted(&answers, QUOTA / 2);
        world.redis.lock().thaw();
    });
    answers.are_only(&[200, 429]);
    let admitted = answers.admitted();
    // Each gateway admitted up to a third of what was left when Redis last answered. A gateway reports what it counted
    // before it takes more, but not before the other gateways take more: a little more than the quota is admitted,
    // not a second quota.
    assert!(admitted <= QUOTA + QUOTA / 8, "{admitted} of {QUOTA}");
}

#[test]
fn an_emptied_redis_hands_out_what_it_forgot_and_no_more() {
    for event in ["FLUSHALL", "kill"] {
        let world = world("leased", "deny");
        let answers = Answers::default();
        world.warm_up(&answers);
        let mut forgotten = 0;
        world.under_load(&answers, || {
            World::wait_admitted(&answers, QUOTA / 2);
            if event == "FLUSHALL" {
                world.redis.lock().command(&["FLUSHALL"]);
            } else {
                world.redis.lock().kill();
                thread::sleep(Duration::from_millis(300));
                world.redis.lock().restart();
            }
            forgotten = answers.admitted();
            // The record of the token is lost with the counters.
            wait_for("a 401", || answers.0.lock().contains_key(&401).then_some(()));
            make_hot(&world.redis.lock());
        });
        answers.are_only(&[200, 401, 429, 503]);
        assert!(forgotten < QUOTA, "the loss came too late to show anything");
        let admitted = answers.admitted();
        let most = forgotten + QUOTA + GATEWAYS as u64 * QUOTA / 8;
        assert!(admitted <= most, "{event}: {admitted}, {forgotten} were forgotten");
    }
}

#[test]
fn thousands_of_tokens_are_each_admitted_exactly() {
    const TOKENS: usize = 1_500;
    let world = world("leased", "deny");
    for nth in 0..TOKENS {
        world.redis.lock().command(&["HSET", &format!("token:t{nth}"), "name", "x"]);
    }
    let admitted: Vec<AtomicU64> = (0..TOKENS).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for worker in 0..6 {
            let (world, admitted) = (&world, &admitted);
            scope.spawn(move || {
                let mut client = world.gateways[worker % GATEWAYS].connect();
                for (nth, admitted) in admitted.iter().enumerate() {
                    let credential = bearer(&format!("t{nth}"));
                    let answer = client.call("GET", "/", &[("Authorization", &credential)], b"");
                    assert!(matches!(answer.status(), 200 | 429), "{answer:?}");
                    admitted.fetch_add(u64::from(answer.status() == 200), Ordering::SeqCst);
                }
            });
        }
    });
    for (nth, admitted) in admitted.iter().enumerate() {
        assert_eq!(admitted.load(Ordering::SeqCst), 3, "t{nth}");
    }
}
