//! The pure crates build for a target without clock, threads, sockets and
//! operating system.

use std::path::Path;
use std::process::Command;

use crate::graph::{root, run};

const TARGET: &str = "wasm32-unknown-unknown";

#[test]
fn the_pure_crates_build_for_wasm32() {
    let installed = run("rustc", &["--print", "target-libdir", "--target", TARGET]);
    assert!(
        Path::new(installed.trim()).exists(),
        "the target {TARGET} is not installed, so this cannot be checked; install it with \
         `rustup target add {TARGET}` (`./check.sh` does)"
    );
    // Use another directory: the cargo that runs the tests may hold the lock on
    // target/.
    let output = Command::new(env!("CARGO"))
        .args(["check", "--locked", "--quiet", "--target", TARGET])
        .args(["-p", "rendez-proto", "-p", "rendez-endpoint", "-p", "rendez-relay-core"])
        .env("CARGO_TARGET_DIR", root().join("target/wasm"))
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the pure crates do not build for {TARGET}: something in them, or in a dependency's \
         feature, needs an operating system. Take it as an argument, or switch the feature off.\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
