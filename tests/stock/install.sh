#!/bin/sh
# Installs the stock Codex binary that the conformance tests drive and prints
# its path, and nothing else, on stdout.
#
# What is installed is pinned three times: the exact version in package.json,
# the hash of every package in package-lock.json (written with npm's
# omit-lockfile-registry-resolved, so any registry or mirror will do), and the
# hash of the unpacked binary below, checked on every run. The tests find the
# binary through the link tests/.stock/codex, which exists only after that check.
#
# To move to another version: change package.json, run
#   npm install --package-lock-only --omit-lockfile-registry-resolved
# in this folder, and put the hash that this script reports below.
set -eu

binary_sha256=b452ca20f838a8855a88a41050ee4a694033fff4ea3ecdad5633e6e0e8d13f2b

fail() {
    echo "tests/stock/install.sh: $*" >&2
    exit 1
}

pins=$(cd "$(dirname "$0")" && pwd)
stock=$(dirname "$pins")/.stock
package=$stock/node_modules/@openai/codex-linux-x64
binary=$package/vendor/x86_64-unknown-linux-musl/bin/codex
link=$stock/codex

platform="$(uname -s) $(uname -m)"
[ "$platform" = "Linux x86_64" ] || fail "the stock binary is pinned for Linux x86_64; this is $platform"

is_pinned_binary() {
    [ -x "$binary" ] && echo "$binary_sha256  $binary" | sha256sum --check --status -
}

if ! is_pinned_binary; then
    rm -f "$link"
    command -v npm >/dev/null || fail "npm is needed to fetch the stock Codex binary and is not on PATH (install Node.js 16 or newer)"
    mkdir -p "$stock"
    cp "$pins/package.json" "$pins/package-lock.json" "$stock/"
    npm ci --prefix "$stock" --include=optional --ignore-scripts --no-audit --no-fund --loglevel=error >&2 \
        || fail "npm could not install the pinned packages (see above); it needs its registry, or a warm npm cache"
    [ -x "$binary" ] || fail "the package holds no binary at ${binary#"$stock/"}"
    is_pinned_binary || fail "the binary's SHA-256 is $(sha256sum "$binary" | cut -d' ' -f1), pinned is $binary_sha256"
fi

ln -sfn "${binary#"$stock/"}" "$link"
echo "$link"
