//! Configurations and records that do not fit together, or not at all: refused, and the message says which.
//! It must not know where a configuration is checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::*;

fn config(redis: &Redis, origin: &Origin, more: &str) -> String {
    format!(
        "redis: {{ url: \"{}\", timeout: 2s }}\nupstreams: {{ up: {{ endpoints: [ \"{}\" ] }} }}
routes: [ {{ prefix: /, upstream: up }} ]\n{more}",
        redis.url(),
        origin.url()
    )
}

const GOLD: &str = "plans: { gold: { limits: [ 100/day ] } }\n";

#[test]
fn a_plan_that_does_not_exist_is_no_way_around_limits() {
    let (redis, origin) = (Redis::start(), Origin::start());
    redis.record("typo", &[("plan", "glod")]);
    redis.record("own", &[("plan", "glod"), ("limits", r#"["100/day"]"#)]);
    redis.record("gold", &[("plan", "gold")]);
    redis.record("none", &[("name", "no plan")]);
    let gateway = Gateway::start(&config(&redis, &origin, GOLD));
    let refused = gateway.get_as("typo", "/");
    assert_eq!((refused.status(), refused.code().as_str()), (403, "unknown_plan"));
    assert!(!refused.text().contains("glod"), "a client need not know: {}", refused.text());
    for api_key in ["own", "gold", "none"] {
        assert_eq!(gateway.get_as(api_key, "/").status(), 200, "{api_key}");
    }
    let names = |what: &'static str, plan: &'static str| {
        gateway.wait_log(what, |line| {
            line["level"].as_str().is_some_and(|level| level.eq_ignore_ascii_case("warn"))
                && line["message"].as_str().is_some_and(|m| m.contains(&format!("`{plan}`")))
        })
    };
    let line = names("a warning that names the plan", "glod");
    assert!(line["message"].as_str().unwrap().contains("token typo"), "{line}");
    gateway.wait_log("the access line names it too", |line| {
        line["code"] == "unknown_plan" && line["error"].to_string().contains("`glod`")
    });
    for _ in 0..20 {
        assert_eq!(gateway.get_as("typo", "/").status(), 403);
    }
    let warnings = gateway.log().into_iter().filter(|line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("no plan"))
    });
    assert_eq!(warnings.count(), 1, "once, however many requests there are");

    // A reload takes the plan away.
    gateway.reload(&config(&redis, &origin, ""));
    wait_for("the plan to go", || (gateway.get_as("gold", "/").status() == 403).then_some(()));
    names("a warning that names the plan", "gold");
    let lenient = "limits: { default: [ 100/day ], unknown_plan: default }\n";
    gateway.reload(&config(&redis, &origin, lenient));
    wait_for("the default limits", || {
        let answer = gateway.get_as("gold", "/");
        (answer.status() == 200 && answer.header("x-ratelimit-limit").is_some()).then_some(())
    });
}
