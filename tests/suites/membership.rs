//! The promises of a store about itself: whether it answers, and how many gateways share it.

use std::sync::Arc;

use tollgate::store::Membership;

use super::until_async;

/// Starts the store, which has not started yet, and leaves its probe running.
pub async fn starts(store: &Arc<dyn Membership>) {
    assert_eq!(store.gateways().get(), 1, "this gateway counts before the first answer");
    store.start();
    store.start();
    let probed = Arc::clone(store);
    tokio::spawn(async move { probed.run_probe().await });
    until_async("the store is available", async || store.available()).await;
    assert!(store.has_answered());
    assert_eq!(store.open_breakers(), 0);
    until_async("one gateway is counted", async || store.gateways().get() == 1).await;
}
