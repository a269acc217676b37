#!/bin/sh
# Everything that must hold, in one command. Installs what the tests need.
#
#   ./check.sh             all steps
#   ./check.sh lint unit   some of them: lint docs unit e2e conformance
#
# Every step fails loudly; none is skipped because something is missing.
set -eu
cd "$(dirname "$0")"

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'check.sh: %s\n' "$*" >&2; exit 1; }

prepare() {
    command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
    command -v cc >/dev/null || fail "a C compiler is missing: apt-get install gcc libc6-dev"
    # The pure crates prove their purity by building for a target without an
    # operating system.
    if [ ! -d "$(rustc --print target-libdir --target wasm32-unknown-unknown)" ]; then
        rustup target add wasm32-unknown-unknown ||
            fail "the target wasm32-unknown-unknown is missing and rustup cannot add it"
    fi
}

lint() {
    say "formatting"
    cargo fmt --all --check
    say "clippy"
    cargo clippy --workspace --all-targets --locked -- -D warnings
}

docs() {
    say "documentation"
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
}

# Unit, property, simulation and documentation tests of every crate.
unit() {
    say "unit, property and simulation tests"
    cargo test --workspace --exclude rendez-tests --locked
}

# The whole system: real relay, real agent, real command line.
e2e() {
    say "tidy, end-to-end and bad-input tests"
    cargo build --workspace --bins --locked
    cargo test -p rendez-tests --locked
}

# Against the stock Codex binary, which is kept off every network but loopback.
conformance() {
    say "conformance with stock Codex"
    command -v npm >/dev/null || fail "npm is missing: it brings the stock Codex binary"
    sh tests/stock/install.sh
    cargo build --workspace --bins --locked
    cargo test -p rendez-tests --test conformance --no-run --locked
    sh tests/netns.sh cargo test -p rendez-tests --test conformance --locked --offline
}

steps="${*:-lint docs unit e2e conformance}"
prepare
for step in $steps; do
    case "$step" in
    lint | docs | unit | e2e | conformance) "$step" ;;
    *) fail "no step is called '$step'; there are lint, docs, unit, e2e and conformance" ;;
    esac
done
say "all good: $steps"
