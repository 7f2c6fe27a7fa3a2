#!/usr/bin/env bash
# The one test command: bash tests/run.sh
# Installs what is missing on a bare Debian or Ubuntu, then checks format and lints and runs every test. Stops at the
# first failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
# As a program of its own: a shell's built-in is of no use to the tests.
has() { type -P "$1" >/dev/null; }

# Installs Debian packages; who can't is told which.
install() {
    say "Installing $*"
    has apt-get || fail "install what Debian calls $*, then run this again"
    [ "$(id -u)" = 0 ] || fail "not root; run: sudo apt-get install $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

packages=()
has cc || packages+=(gcc libc6-dev) # links Rust programs, builds ring and mimalloc
# Tests of a power cut and of full disks make disks of their own, which takes root and, in a container, --privileged.
has prlimit && has unshare || packages+=(util-linux)
has mkfs.ext4 || packages+=(e2fsprogs)
has mount && has losetup || packages+=(mount)
has kill || packages+=(procps)
# The tests of several nodes start a PostgreSQL and a Redis of their own.
[ -d /usr/lib/postgresql ] || packages+=(postgresql)
has redis-server || has valkey-server || packages+=(redis-server)
# They also meet a pooler, and clocks that are off.
[ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer)
has faketime || packages+=(faketime)
# Other implementations, in Python, are asked about ours.
python3 -c "import ensurepip" 2>/dev/null || packages+=(python3 python3-venv)
has flock || packages+=(util-linux)
# What surrounds the service is held to schemas, and to a Prometheus that scrapes it.
has npm || packages+=(npm)
has promtool || packages+=(prometheus)
has amtool || packages+=(prometheus-alertmanager)
has haproxy || packages+=(haproxy)
has systemd-analyze || packages+=(systemd)
# The pages are held to what a person in a real browser meets.
has chromium && has chromedriver || packages+=(chromium chromium-driver)
# The image is built and run by a real engine, on a base that is made here if none can be pulled.
has dockerd || docker info >/dev/null 2>&1 || packages+=(docker.io iptables iproute2)
has git || packages+=(git)
has curl || packages+=(curl ca-certificates)
docker compose version >/dev/null 2>&1 || has docker-compose || packages+=(docker-compose)
has debootstrap || packages+=(debootstrap)
has xz || packages+=(xz-utils)
# Rustup may have installed cargo without this shell's knowledge.
has cargo || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
[ ${#packages[@]} = 0 ] || install "${packages[@]}"

if ! has cargo; then
    say "Installing Rust with rustup"
    curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y -q --no-modify-path \
        || fail "Rust could not be installed; install it from https://rustup.rs, then run this again"
fi
for tool in rustfmt clippy; do
    cargo "${tool/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
    has rustup || fail "cargo has no $tool; install it the way Rust was installed (Debian: rustfmt, rust-clippy)"
    say "Installing $tool"
    rustup component add "$tool"
done

say "The SDK"
tests/sdk/install.sh
say "Format"
cargo fmt --check
say "Lints"
cargo clippy --all-targets --locked -- -D warnings
say "Tests"
cargo test --locked
# Both wait more than they work.
documents=$(mktemp)
bash tests/docs/run.sh >"$documents" 2>&1 &
trap 'kill %1 2>/dev/null || true; rm -f "$documents"' EXIT
bash tests/api/run.sh
wait %1 || { cat "$documents" >&2; fail "see above what the documents have wrong"; }
cat "$documents"
bash tests/deploy/run.sh
bash tests/browser/run.sh
bash tests/docker/run.sh
say "All passed"
