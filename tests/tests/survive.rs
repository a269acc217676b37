//! Streams survive faults: real processes, with every kind of fault on their path.
//! `rendez_tests::survive::scenario` states the properties.
//!
//! Four `rendez exec` move bytes up, bytes down, 200,000 lines and the time through
//! a real relay and a real agent. Meanwhile, at random moments, the relay is killed
//! or restarted, sockets are reset or half-closed, a network is stalled or down for
//! ten seconds, or an endpoint is frozen.
//!
//! The default is small, for a debug build on two busy cores. In full, with
//! optimised binaries:
//!
//! ```sh
//! cargo build --release -p rendez
//! for seed in 1 2 3; do
//!     SEED=$seed SURVIVE_MIB=256 SURVIVE_CUTS=20 RENDEZ_BINARY_DIR=$PWD/target/release \
//!         cargo test -p rendez-tests --test survive -- --nocapture
//! done
//! ```
//!
//! The aim is a median of 1.5 s from the end of a fault to flowing bytes. The test
//! asserts a generous bound only, and prints the measurement.
//!
//! `survive_netns` is the same with real links between network namespaces.

use anyhow::Result;
use rendez_tests::survive::scenario::{Plan, run_plan};

#[tokio::test]
async fn streams_survive_faults() -> Result<()> {
    run_plan(
        Plan { seed: 1, mebibytes: 48, faults: 14, freeze_secs: None }.or_from_environment()?,
        None,
    )
    .await
}
