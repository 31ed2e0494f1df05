//! How requests are shared out among endpoints. It must not know how the next endpoint is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use support::*;

/// A configuration whose upstream has these endpoints and further keys.
fn config(endpoints: &[String], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("{{ url: \"{url}\" }}")).collect();
    format!(
        "auth: {}
upstreams: {{ up: {{ endpoints: [ {} ], {more} }} }}
routes: [ {{ prefix: /open, upstream: up, auth: none }}, {{ prefix: /, upstream: up }} ]",
        auth(
            "[ { api_key: a, organization_id: acme }, { api_key: b, organization_id: acme }, { api_key: c } ]"
        ),
        endpoints.join(", ")
    )
}

fn origins(count: usize) -> (Vec<Origin>, Vec<String>) {
    let origins: Vec<_> = (0..count).map(|_| Origin::start()).collect();
    let urls = origins.iter().map(Origin::url).collect();
    (origins, urls)
}

/// How many requests for `path` each origin got.
fn shares(origins: &[Origin], path: &str) -> Vec<usize> {
    origins.iter().map(|origin| origin.requests_for(path).len()).collect()
}

/// The place of the origin that got the only request for `path`.
fn owner(origins: &[Origin], path: &str) -> usize {
    let shares = shares(origins, path);
    assert_eq!(shares.iter().sum::<usize>(), 1, "{path}: {shares:?}");
    shares.iter().position(|share| *share == 1).unwrap()
}

#[test]
fn turns_go_by_weight_and_past_an_endpoint_that_is_away() {
    let (origins, urls) = origins(3);
    let endpoints = [(&*urls[0], 1), (&*urls[1], 3), (&*urls[2], 2), ("http://127.0.0.1:1", 2)]
        .map(|(url, weight)| format!("{{ url: \"{url}\", weight: {weight} }}"));
    let gateway = Gateway::start(&format!(
        "upstreams: {{ up: {{ endpoints: [ {} ], breaker: {{ failures: 1, open_for: 1h }} }} }}
routes: [ {{ prefix: /, upstream: up, auth: none }} ]",
        endpoints.join(", ")
    ));
    for _ in 0..8 {
        assert_eq!(gateway.get("/first").status(), 200);
    }
    for _ in 0..60 {
        assert_eq!(gateway.get("/then").status(), 200);
    }
    for (share, expected) in shares(&origins, "/then").into_iter().zip([10usize, 30, 20]) {
        assert!(share.abs_diff(expected) <= 1, "{:?}", shares(&origins, "/then"));
    }
}

#[test]
fn the_endpoint_with_the_fewest_requests_under_way_gets_the_next() {
    let (origins, urls) = origins(2);
    let gateway = Gateway::start(&config(&urls, "balance: least_connections"));
    let gates = [origins[0].hold("/open/held"), origins[1].hold("/open/held")];
    let mut held: Vec<_> = (0..6)
        .map(|_| {
            let mut client = gateway.connect();
            client.send(request("GET", "/open/held", &[], b""));
            client
        })
        .collect();
    wait_for("three requests each", || (shares(&origins, "/open/held") == [3, 3]).then_some(()));
    let [first, second] = gates;
    drop(second);
    wait_for("three answers", || {
        let answered = gateway.log().into_iter().filter(|line| line["path"] == "/open/held");
        (answered.count() == 3).then_some(())
    });
    for _ in 0..10 {
        assert_eq!(gateway.get("/open/x").status(), 200);
    }
    assert_eq!(shares(&origins, "/open/x"), [0, 10], "the first has requests under way");
    drop(first);
    for client in &mut held {
        assert_eq!(client.read().text(), "held");
    }
    for _ in 0..10 {
        assert_eq!(gateway.get("/open/y").status(), 200);
    }
    let shares = shares(&origins, "/open/y");
    assert!((4..=6).contains(&shares[0]), "they are equal again: {shares:?}");
}

#[test]
fn requests_with_a_key_in_common_go_to_one_endpoint() {
    let (origins, urls) = origins(4);
    let keys: Vec<String> = (0..40).map(|nth| format!("key-{nth}")).collect();
    let ask = |gateway: &Gateway, round: &str| -> BTreeMap<String, usize> {
        let asked = keys.iter().map(|key| {
            let path = format!("/open/{round}/{key}");
            assert_eq!(gateway.call("GET", &path, &[("X-Shard", key)], b"").status(), 200);
            (key.clone(), owner(&origins, &path))
        });
        asked.collect()
    };
    let rules =
        "balance: hash, hash: { by: \"header:x-shard\" }, breaker: { failures: 1, open_for: 1h }";
    let gateway = Gateway::start(&config(&urls, rules));
    let first = ask(&gateway, "first");
    assert_eq!(ask(&gateway, "again"), first);
    let another = Gateway::start_with_one_thread(&config(&urls, rules));
    assert_eq!(ask(&another, "another"), first, "all gateways agree");

    // An endpoint leaves: its keys move, and no others. It comes back, and they come back.
    let mut reloads = 1.0;
    for (name, endpoints) in [("without", &urls[..3]), ("back", &urls[..])] {
        gateway.reload(&config(endpoints, rules));
        reloads += 1.0;
        wait_for("the reload", || {
            (gateway.metric("tollgate_config_generation") == Some(reloads)).then_some(())
        });
        let now = ask(&gateway, name);
        for (key, owner) in &first {
            match (*owner, name) {
                (3, "without") => assert_ne!(now[key], 3),
                (owner, _) => assert_eq!(now[key], owner, "{name}: {key}"),
            }
        }
    }
    // Without the field, the requests take turns.
    for _ in 0..8 {
        gateway.get("/open/none");
    }
    assert_eq!(shares(&origins, "/open/none"), [2, 2, 2, 2]);
}

#[test]
fn tokens_organizations_and_clients_are_keys() {
    let (origins, urls) = origins(8);
    for (by, together) in [("token", false), ("organization", true), ("ip", true)] {
        let gateway =
            Gateway::start(&config(&urls, &format!("balance: hash, hash: {{ by: {by} }}")));
        let of = |api_key: &str| {
            let paths: Vec<_> = (0..3).map(|nth| format!("/{by}/{api_key}/{nth}")).collect();
            for path in &paths {
                assert_eq!(gateway.get_as(api_key, path).status(), 200);
            }
            let owners: Vec<_> = paths.iter().map(|path| owner(&origins, path)).collect();
            owners.iter().all(|owner| *owner == owners[0]).then_some(owners[0])
        };
        let (a, b) = (of("a").unwrap(), of("b").unwrap());
        if together {
            assert_eq!(a, b, "{by}");
        }
        // A token without an organization takes turns.
        assert_eq!(of("c").is_some(), by != "organization", "{by}");
    }
}
