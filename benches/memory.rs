//! What a million subjects cost the ledger in memory: `cargo bench --bench memory`. Each has asked once and is remembered, as the
//! worst moment of a flood of tokens leaves them; the ledger forgets those that are idle within seconds.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tollgate::clock::{SystemClock, UnixTime};
use tollgate::limit::ledger::{FailurePolicy, Ledger, Sync, Terms};
use tollgate::quota::{Limit, Standing};
use tollgate::store::{Adjustment, Grant, QuotaStore, StoreError};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SUBJECTS: usize = 1_000_000;
/// What comes on top must cost nothing.
const BEYOND: usize = 500_000;

/// Grants everything and keeps nothing, so that only the ledger's memory is seen.
struct Generous;

#[async_trait]
impl QuotaStore for Generous {
    async fn take(&self, _: &str, limits: &[Limit], wanted: u64) -> Result<Grant, StoreError> {
        let standing = Standing { left: 1_000, reset_after: Duration::from_secs(60) };
        let standings = limits.iter().map(|_| standing).collect();
        Ok(Grant { granted: wanted, now: UnixTime::from_secs(1_700_000_000), standings })
    }

    async fn adjust(&self, _: &str, _: &[Limit], _: &Adjustment, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let clock = Arc::new(SystemClock::default());
    let ledger = Arc::new(Ledger::new(Arc::new(Generous), clock, SUBJECTS));
    let limits: Arc<[Limit]> = [Limit::parse("1000/minute")?].into();
    let terms = Terms { sync: Sync::Exact, on_failure: FailurePolicy::Deny, gateways: 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let ask = |from: usize, to: usize| {
        runtime.block_on(async {
            for nth in from..to {
                // As long as a token that is named by a UUID.
                let subject = format!("token:01890a5d-ac96-774b-bcce-{nth:012}");
                ledger.admit(&subject, &limits, terms).await?;
            }
            Ok::<_, StoreError>(())
        })
    };
    let before = resident_bytes()?;
    ask(0, SUBJECTS)?;
    let full = resident_bytes()?;
    ask(SUBJECTS, SUBJECTS + BEYOND)?;
    let beyond = resident_bytes()?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("{} subjects: {:.0} MiB", ledger.subjects(), mib(full - before));
    println!("bytes a subject: {}", (full - before) / SUBJECTS);
    println!("{BEYOND} more, beyond the bound: {:.1} MiB", mib(beyond.saturating_sub(full)));
    Ok(())
}

/// Memory of this process that is in RAM (proc(5), statm).
fn resident_bytes() -> Result<usize, Box<dyn Error>> {
    const PAGE_BYTES: usize = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).ok_or("no second field in statm")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
