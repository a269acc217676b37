#!/bin/sh
# Everything that must hold, in one command. Installs what the tests need.
#
#   ./check.sh             all steps
#   ./check.sh lint tests  some of them: lint docs tests conformance
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

# Unit, property and simulation tests of every crate, tidy, and the whole
# system: real relay, real agent, real command line. All targets are built at
# once, so that every dependency is compiled for one set of features only.
tests() {
    say "build"
    cargo build --workspace --all-targets --locked
    say "tests"
    cargo test --workspace --locked
}

# In a network namespace of their own: conformance with the stock Codex binary,
# which is kept off every network but loopback, and links that go down.
conformance() {
    say "conformance with stock Codex, and real links"
    command -v npm >/dev/null || fail "npm is missing: it brings the stock Codex binary"
    sh tests/stock/install.sh
    cargo build --workspace --all-targets --locked
    sh tests/netns.sh \
        cargo test --workspace --test conformance --test survive_netns --locked --offline
}

steps="${*:-lint docs tests conformance}"
prepare
for step in $steps; do
    case "$step" in
    lint | docs | tests | conformance) "$step" ;;
    *) fail "no step is called '$step'; there are lint, docs, tests and conformance" ;;
    esac
done
say "all good: $steps"
