#!/bin/sh
# Runs every check of the repository; `./check.sh --help` lists them.
set -eu
cd "$(dirname "$0")"

usage() {
    cat <<'END'
usage: ./check.sh [STEP...]

Without a step it runs what CI runs: lint docs tests conformance.

  lint          formatting and clippy
  docs          rustdoc without warnings
  tests         unit, property, simulation and end-to-end tests, and tidy
  conformance   stock Codex and real network links, in a network namespace
  quick         before a commit: lint, unit tests and tidy
  long          too long for CI: 1,000,000 simulated worlds (35 minutes on two
                idle cores, 75 on busy ones), endurance of real processes, a
                short run of the benchmarks

Every step fails loudly; none is skipped because something is missing. Tools
that are missing are installed where apt-get or rustup can do it. Tests do not
see the caller's proxies, locale, umask or RENDEZ_* variables. RUST_TEST_THREADS
is honoured.
END
}

say() { printf '\n== %s ==\n' "$*"; }
fail() { printf 'check.sh: %s\n' "$*" >&2; exit 1; }

# need PROGRAM PACKAGE...: installs the Debian packages if the program is missing.
need() {
    program=$1
    shift
    command -v "$program" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$program is missing: apt-get install $*"
    fi
    { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >&2 ||
        fail "$program is missing and apt-get could not install $*"
}

prepare() {
    command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
    need cc gcc libc6-dev
    # Tests start programs with default signal actions.
    env --default-signal true 2>/dev/null || fail "env has no --default-signal: coreutils 8.31 is needed"
    # The pure crates prove their purity by building for a target without an
    # operating system.
    if [ ! -d "$(rustc --print target-libdir --target wasm32-unknown-unknown)" ]; then
        rustup target add wasm32-unknown-unknown ||
            fail "the target wasm32-unknown-unknown is missing and rustup cannot add it"
    fi
    # Tests run without proxies, and some of them run cargo.
    host=$(rustc -vV | sed -n 's/^host: //p')
    cargo fetch --quiet --locked --target "$host" --target wasm32-unknown-unknown
}

# isolated COMMAND...: runs it without what the caller's shell would change in
# the tests' own processes. Programs that tests start inherit even less
# (tests/src/process/isolated.rs). Signal actions stay: under nohup the tests
# must outlive the terminal.
isolated() (
    foreign='RENDEZ_|CODEX_|OTEL_|OPENAI_|XDG_|SURVIVE_|LC_|LANG|SEED|BLESS|RUST_LOG|NO_COLOR'
    for variable in $(env | sed -nE "s/^(($foreign)[A-Za-z0-9_]*|[A-Za-z]*_(proxy|PROXY))=.*/\1/p"); do
        unset "$variable"
    done
    umask 022
    LC_ALL=C.UTF-8
    export LC_ALL
    exec "$@"
)

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
    isolated cargo test --workspace --locked --offline
}

# In a network namespace of their own: conformance with the stock Codex binary,
# which is kept off every network but loopback, and links that go down or are slow.
conformance() {
    say "conformance with stock Codex, and real links"
    need npm npm
    need ip iproute2
    sh tests/stock/install.sh
    cargo build --workspace --all-targets --locked
    # One namespace each: the kernel removes the links of a test a moment after its end.
    for tests in conformance slow_link_netns survive_netns; do
        isolated sh tests/netns.sh cargo test --workspace --test "$tests" --locked --offline
    done
}

quick() {
    lint
    say "unit tests and tidy"
    isolated cargo test --workspace --lib --bins --test tidy --locked --offline
}

long() {
    say "simulated worlds"
    cargo build --release -p rendez -p rendez-sim --locked
    isolated target/release/rendez-sim --seeds 1000000
    say "endurance of real processes"
    cargo build --workspace --all-targets --locked
    for seed in 1 2 3; do
        isolated env SEED="$seed" SURVIVE_MIB=256 SURVIVE_CUTS=20 \
            RENDEZ_BINARY_DIR="$PWD/target/release" \
            cargo test --workspace --test survive --locked --offline -- --nocapture
    done
    say "benchmarks"
    cargo bench --workspace --locked --no-run
    isolated cargo bench -p rendez-tests --bench idle --locked --offline -- 500
}

case "${1-}" in
-h | --help)
    usage
    exit
    ;;
esac
steps="${*:-lint docs tests conformance}"
for step in $steps; do
    case "$step" in
    lint | docs | tests | conformance | quick | long) ;;
    *) fail "unknown step '$step'; see ./check.sh --help" ;;
    esac
done
prepare
for step in $steps; do
    "$step"
done
say "all good: $steps"
