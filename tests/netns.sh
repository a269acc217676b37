#!/bin/sh
# Runs a command where the only network is loopback:
#
#   tests/netns.sh cargo test --offline -p rendez-tests --test conformance
#
# The stock binary tries to reach hosts on the internet when it starts, so the
# tests refuse to start it anywhere else. Where the kernel allows it the command
# also gets a process namespace, so that whatever a test leaves behind ends with
# the command. Fails, and runs nothing, if no such namespace can be had.
set -eu

fail() {
    echo "tests/netns.sh: $*" >&2
    exit 125
}

# lo_up sets lo up with the first tool at hand. perl is part of every Debian.
lo_up() {
    if command -v ip >/dev/null; then
        ip link set lo up
    elif command -v ifconfig >/dev/null; then
        ifconfig lo up
    else
        # SIOCGIFFLAGS, then SIOCSIFFLAGS with IFF_UP. Both numbers and the
        # layout of struct ifreq are those of Linux on every architecture.
        perl -e 'use Socket;
            socket(my $s, AF_INET, SOCK_DGRAM, 0) or die "socket: $!\n";
            my $request = pack("a16 x24", "lo");
            ioctl($s, 0x8913, $request) or die "SIOCGIFFLAGS: $!\n";
            my $flags = unpack("x16 s", $request) | 1;
            ioctl($s, 0x8914, pack("a16 s x22", "lo", $flags)) or die "SIOCSIFFLAGS: $!\n";'
    fi
}

if [ "${1-}" = --inside ]; then
    shift
    lo_up || fail "could not set the loopback interface up"
    # Not exec: this shell stays as the namespace's first process, which has to
    # reap orphans and does not die of unhandled signals.
    status=0
    "$@" || status=$?
    exit "$status"
fi

[ $# -gt 0 ] || fail "usage: tests/netns.sh COMMAND [ARGUMENT...]"
[ "$(uname -s)" = Linux ] || fail "network namespaces need Linux; this is $(uname -s)"
command -v unshare >/dev/null || fail "unshare (util-linux) is not on PATH"
if ! command -v ip >/dev/null && ! command -v ifconfig >/dev/null && ! command -v perl >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
        || fail "one of ip (iproute2), ifconfig or perl is needed to set the loopback interface up"
    { apt-get update && apt-get install --yes --no-install-recommends iproute2; } >&2 \
        || fail "apt-get could not install iproute2"
fi

# Root may make a network namespace, others only together with a user namespace.
user="--user --map-root-user"
contained="--pid --fork --kill-child --mount-proc"
for namespaces in "--net $contained" "$user --net $contained" "--net" "$user --net" none; do
    [ "$namespaces" != none ] \
        || fail "no network namespace: $reason (containers need CAP_SYS_ADMIN or unprivileged user namespaces)"
    # The words in the variable are options: they are meant to split.
    # shellcheck disable=SC2086
    reason=$(unshare $namespaces true 2>&1) && break
done
# shellcheck disable=SC2086
exec unshare $namespaces sh "$0" --inside "$@"
