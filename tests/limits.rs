//! Limits as clients meet them: the same suite on Redis and on the embedded store.
//! It must not know where counts are kept. Day windows keep the suite off window boundaries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::token::now;
use support::*;

/// The gateways that count together: two on one Redis, or one with the embedded store.
struct World {
    redis: Option<Redis>,
    gateways: Vec<Gateway>,
    origin: Origin,
}

static SHARED_STORE: Shared<World> = Shared::new();
static EMBEDDED_STORE: Shared<World> = Shared::new();

/// Both stores, by name.
fn worlds() -> [(&'static str, Arc<World>); 2] {
    let redis = SHARED_STORE.get(|| start(Some(Redis::start()), 2));
    let embedded = EMBEDDED_STORE.get(|| start(None, 1));
    [("redis", redis), ("embedded", embedded)]
}

fn start(redis: Option<Redis>, gateways: usize) -> World {
    let origin = Origin::start();
    let store =
        redis.as_ref().map(|redis| format!("redis: {{ url: \"{}\", timeout: 5s }}", redis.url()));
    let yaml = format!(
        r#"{store}
plans: {{ basic: {{ limits: [ 3/day ] }} }}
limits: {{ default: [ 4/day ], window: 1d }}
auth: {auth}
upstreams: {{ up: {{ endpoints: [ "{up}" ] }} }}
trusted_proxies: [ 127.0.0.1/32 ]
routes:
  - {{ prefix: /free, upstream: up, auth: none }}
  - {{ prefix: /, upstream: up }}
  - {{ prefix: /address, upstream: up, limits: [ {{ rate: 3/day, by: ip }} ] }}
  - {{ prefix: /token, upstream: up, limits: [ {{ rate: 2/day, by: token }} ] }}
  - {{ prefix: /public, upstream: up, auth: none, limits: [ {{ rate: 2/day, by: ip, name: visits }} ] }}
  - {{ prefix: /total, upstream: up, auth: none, limits: [ {{ rate: 4/day, by: route }} ] }}
"#,
        store = store.unwrap_or_default(),
        auth = auth(
            "[ { api_key: crowd, limits: [ 100/day ] },
               { api_key: several, limits: [ 2/second, 7/day ] },
               { api_key: outer, limits: [ 100/day, 3/hour ], organization_id: acme },
               { api_key: own, plan: basic, limits: [ 2/day ] },
               { api_key: planned, plan: basic },
               { api_key: other, plan: basic },
               { api_key: default },
               { api_key: bare, rate_limit: 5 },
               { api_key: bucket, limits: [ { rate: 240/day, burst: 5 } ] },
               { api_key: log, limits: [ { rate: 3/day, algorithm: sliding_log } ] },
               { api_key: sliding, limits: [ { rate: 4/day, algorithm: sliding_window } ] },
               { api_key: first, organization_id: firm, limits: [ { rate: 4/day, by: organization }, 100/day ] },
               { api_key: second, organization_id: firm, limits: [ { rate: 4/day, by: organization }, 100/day ] },
               { api_key: routed, limits: [ 10/day ] },
               { api_key: visitor, limits: [ 100/day ] },
               { api_key: brief, limits: [ 1/second ] },
               { api_key: paced, limits: [ 2/day ] } ]"
        ),
        up = origin.url(),
    );
    let gateways = (0..gateways).map(|_| Gateway::start_with_one_thread(&yaml)).collect();
    World { redis, gateways, origin }
}

impl World {
    /// One request, to each gateway in turn.
    fn get(&self, nth: usize, api_key: &str) -> Message {
        self.gateways[nth % self.gateways.len()].get_as(api_key, "/")
    }

    /// How many of `requests` one after the other are admitted.
    fn admitted(&self, requests: usize, api_key: &str) -> usize {
        (0..requests).filter(|nth| self.get(*nth, api_key).status() == 200).count()
    }
}

#[test]
fn all_gateways_together_admit_the_limit_exactly() {
    for (store, world) in worlds() {
        let (admitted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let credential = bearer("crowd");
        std::thread::scope(|scope| {
            for nth in 0..8 {
                let (world, admitted, refused, credential) =
                    (&world, &admitted, &refused, &credential);
                scope.spawn(move || {
                    let mut client = world.gateways[nth % world.gateways.len()].connect();
                    for _ in 0..40 {
                        match client
                            .call("GET", "/crowd", &[("Authorization", credential)], b"")
                            .status()
                        {
                            200 => admitted.fetch_add(1, Ordering::Relaxed),
                            429 => refused.fetch_add(1, Ordering::Relaxed),
                            other => panic!("{other}"),
                        };
                    }
                });
            }
        });
        assert_eq!((admitted.into_inner(), refused.into_inner()), (100, 220), "{store}");
        assert_eq!(
            world.origin.requests_for("/crowd").len(),
            100,
            "{store}: what was admitted was forwarded"
        );
    }
}

#[test]
fn refused_requests_consume_nothing() {
    for (store, world) in worlds() {
        // Far more is asked for than either limit admits. If a refusal of `second` counted against `day`,
        // the day would be over before seven were admitted.
        let mut admitted = 0;
        let last = wait_for("the day's limit to be the one that refuses", || {
            let answer = world.get(admitted, "several");
            admitted += usize::from(answer.status() == 200);
            Some(answer).filter(|a| a.status() == 429 && a.json()["limit"]["name"] == "day")
        });
        assert_eq!(admitted, 7, "{store}");
        assert!(
            last.header("retry-after").unwrap().parse::<u64>().unwrap() > 1,
            "{store}: {last:?}"
        );
    }
}

#[test]
fn a_request_passes_every_limit_or_consumes_none() {
    for (store, world) in worlds() {
        assert_eq!(world.admitted(6, "outer"), 3, "{store}");
        let refused = world.get(0, "outer");
        let rest = refused.header("ratelimit").unwrap();
        assert!(
            rest.contains("\"day\";r=97;"),
            "{store}: three of a hundred are gone, not ten: {rest}"
        );
        assert!(rest.contains("\"hour\";r=0;"), "{store}: {rest}");
        assert_eq!(refused.json()["limit"]["name"], "hour", "{store}");
        assert_eq!(refused.header("x-ratelimit-limit").unwrap(), "3", "{store}");
    }
}

#[test]
fn the_record_is_asked_first_then_its_plan_then_the_default() {
    for (store, world) in worlds() {
        for (api_key, limit) in [("own", 2), ("planned", 3), ("default", 4), ("bare", 5)] {
            assert_eq!(world.admitted(limit + 3, api_key), limit, "{store}: {api_key}");
        }
        assert_eq!(
            world.get(0, "other").status(),
            200,
            "{store}: tokens of one plan do not share its limit"
        );
        let free = || world.gateways[0].get("/free");
        assert!((0..20).all(|_| free().status() == 200), "{store}: no token, no limit");
        assert_eq!(free().header("ratelimit"), None, "{store}");
    }
}

#[test]
fn retry_after_is_the_end_of_the_window() {
    for (store, world) in worlds() {
        for (nth, (status, left)) in [(200, 1), (200, 0), (429, 0)].into_iter().enumerate() {
            let answer = world.get(nth, "paced");
            let rest = 86_400 - now() % 86_400;
            assert_eq!(answer.status(), status, "{store}");
            assert_eq!(
                answer.header("x-ratelimit-remaining").unwrap(),
                left.to_string(),
                "{store}"
            );
            let reset: u64 = answer.header("x-ratelimit-reset").unwrap().parse().unwrap();
            assert!(reset.abs_diff(rest) <= 2, "{store}: {reset} is not close to {rest}");
            if let Some(retry) = answer.header("retry-after") {
                assert!(
                    retry.parse::<u64>().unwrap() >= reset,
                    "{store}: {retry} is before {reset}"
                );
            }
        }

        let refused = wait_for("the second request of a second", || {
            let answers = [world.get(0, "brief"), world.get(1, "brief")];
            answers.into_iter().find(|answer| answer.status() == 429)
        });
        assert_eq!(refused.header("retry-after").unwrap(), "1", "{store}");
        wait_for("the next window", || (world.get(0, "brief").status() == 200).then_some(()));
    }
}

#[test]
fn window_keys_expire_by_themselves() {
    let world = &worlds()[0].1;
    world.get(0, "other");
    world.get(1, "brief");
    let redis = world.redis.as_ref().unwrap();
    let keys = redis.command(&["KEYS", "*"]);
    assert!(keys.lines().count() >= 1, "nothing is counted in Redis");
    for key in keys.lines() {
        let ttl: i64 = redis.command(&["PTTL", key]).parse().unwrap();
        // -2: the key has expired since it was listed.
        assert!(ttl == -2 || (0..=2 * 86_400_000).contains(&ttl), "{key} lives for {ttl} ms");
    }
}

#[test]
fn every_algorithm_admits_what_it_says() {
    for (store, world) in worlds() {
        for (api_key, admits, waits) in [("bucket", 5, 360), ("log", 3, 86_400), ("sliding", 4, 0)]
        {
            assert_eq!(world.admitted(9, api_key), admits, "{store}: {api_key}");
            let refused = world.get(0, api_key);
            assert_eq!(refused.json()["limit"]["remaining"], 0, "{store}: {api_key}");
            let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            let near = waits == 0 || (retry <= waits && retry + 60 >= waits);
            assert!(near, "{store}: {api_key} is told to wait {retry} s, not {waits}");
        }
    }
}

#[test]
fn an_organization_has_one_count() {
    for (store, world) in worlds() {
        assert_eq!(world.admitted(3, "first") + world.admitted(3, "second"), 4, "{store}");
        let refused = world.get(0, "first");
        assert_eq!(refused.json()["limit"]["name"], "day-organization", "{store}");
        let rest = refused.header("ratelimit").unwrap();
        assert!(rest.contains("\"day-organization\";r=0;"), "{store}: {rest}");
    }
}

#[test]
fn a_route_counts_besides_the_token_and_a_refusal_consumes_neither() {
    for (store, world) in worlds() {
        let get = |nth: usize, api_key, target| {
            world.gateways[nth % world.gateways.len()].get_as(api_key, target)
        };
        let admitted = (0..12).filter(|nth| get(*nth, "routed", "/address/x").status() == 200);
        assert_eq!(admitted.count(), 3, "{store}");
        let refused = get(0, "routed", "/address/x");
        assert_eq!(refused.json()["limit"]["name"], "route-day-ip", "{store}");
        let policy = refused.header("ratelimit-policy").unwrap();
        assert!(
            policy.contains("\"day\";q=10;") && policy.contains("\"route-day-ip\";q=3;"),
            "{store}: {policy}"
        );
        assert_eq!(get(1, "visitor", "/address").status(), 429, "{store}: the same address");
        let rest = (0..20).filter(|nth| get(*nth, "routed", "/").status() == 200).count();
        assert_eq!(rest, 7, "{store}: what the route refused was not counted for the token");
        for token in ["visitor", "default"] {
            let of_token = (0..4).filter(|nth| get(*nth, token, "/token").status() == 200);
            assert_eq!(of_token.count(), 2, "{store}: each token for itself");
        }
    }
}

#[test]
fn routes_without_tokens_count_addresses_or_everyone() {
    for (store, world) in worlds() {
        let from = |nth: usize, client: &str| {
            let gateway = &world.gateways[nth % world.gateways.len()];
            gateway.call("GET", "/public", &[("X-Forwarded-For", client)], b"").status()
        };
        let admitted = |clients: &[&str]| {
            clients.iter().enumerate().filter(|(nth, client)| from(*nth, client) == 200).count()
        };
        assert_eq!(admitted(&["192.0.2.1"; 5]), 2, "{store}");
        assert_eq!(admitted(&["192.0.2.2", "192.0.2.3"]), 2, "{store}");
        let one_network = ["2001:db8::1", "2001:db8::2", "2001:db8::3:4", "2001:db8::5"];
        assert_eq!(admitted(&one_network), 2, "{store}: the first 64 bits are one client");
        assert_eq!(admitted(&["2001:db8:0:1::1"]), 1, "{store}");

        let total = (0..9)
            .filter(|nth| world.gateways[nth % world.gateways.len()].get("/total").status() == 200);
        assert_eq!(total.count(), 4, "{store}");
    }
}
