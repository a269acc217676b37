//! `survive` with real links: agent and orchestrators are in their own network
//! namespaces, and an outage sets their link down for ten seconds, so that the
//! system's TCP has to detect it and recover.
//!
//! ```sh
//! cargo build -p rendez
//! cargo test -p rendez-tests --test survive_netns --no-run
//! tests/netns.sh cargo test --offline -p rendez-tests --test survive_netns -- --nocapture
//! ```
//!
//! The variables of `survive` work here, too.

use anyhow::Result;
use rendez_tests::survive::links::Link;
use rendez_tests::survive::scenario::{Plan, run_plan};

#[tokio::test]
async fn streams_survive_faults_on_real_links() -> Result<()> {
    let links = [Link::start(0).await?, Link::start(1).await?];
    run_plan(
        Plan { seed: 1, mebibytes: 16, faults: 16, freeze_secs: None }.or_from_environment()?,
        Some(links),
    )
    .await
}
