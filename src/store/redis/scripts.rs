//! The scripts that Redis runs for the store: each is one decision, atomic and on Redis' clock.

/// A script, and which entry of a session's table holds its hash.
#[derive(Clone, Copy)]
pub(super) struct Script {
    pub(super) source: &'static str,
    pub(super) index: usize,
}

/// A script that counts: it follows the algorithms, each of which has a file.
macro_rules! counting {
    ($script:literal) => {
        concat!(
            include_str!("scripts/counting/counter.lua"),
            include_str!("scripts/counting/fixed.lua"),
            include_str!("scripts/counting/sliding.lua"),
            include_str!("scripts/counting/bucket.lua"),
            include_str!("scripts/counting/log.lua"),
            include_str!("scripts/counting/limit.lua"),
            include_str!($script),
        )
    };
}

pub(super) const TAKE: Script = Script { source: counting!("scripts/take.lua"), index: 0 };
pub(super) const PUT: Script = Script { source: include_str!("scripts/put.lua"), index: 1 };
pub(super) const HEARTBEAT: Script =
    Script { source: include_str!("scripts/heartbeat.lua"), index: 2 };
pub(super) const ADJUST: Script = Script { source: counting!("scripts/adjust.lua"), index: 3 };
pub(super) const IMPORT: Script = Script { source: include_str!("scripts/import.lua"), index: 4 };
pub(super) const SHORTEN: Script = Script { source: include_str!("scripts/shorten.lua"), index: 5 };
pub(super) const READ: Script = Script { source: include_str!("scripts/read.lua"), index: 6 };

/// Every script, to be loaded into each server.
pub(super) const SCRIPTS: [Script; 7] = [TAKE, PUT, HEARTBEAT, ADJUST, IMPORT, SHORTEN, READ];
