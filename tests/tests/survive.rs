//! Streams that survive: real processes, under everything that can happen to
//! their path. What must hold is in `rendez_tests::survive::scenario`.
//!
//! A real relay and a real agent; four `rendez exec` move bytes up, bytes
//! down, 200,000 lines and the time, while at random moments the relay is
//! killed or restarted, sockets are reset or half-closed, a network is dark or
//! away for ten seconds, or an end is frozen.
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
//! The aim is a median of 1.5 s from a restored path to flowing bytes. The
//! test asserts a generous bound only, and prints what it measured.
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
