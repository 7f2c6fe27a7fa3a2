#!/usr/bin/env bash
# All checks of the project, as CI runs them: format, lints, every test. Installs what is missing first.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

# A program, and the Debian package that has it.
need() {
    command -v "$1" > /dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        say "installing $2"
        apt-get update -q && apt-get install -y -q --no-install-recommends "$2"
    else
        echo "error: $1 is missing; install it (Debian: apt-get install $2) and run this again" >&2
        exit 1
    fi
}

need cc build-essential   # links Rust programs and builds ring
need prlimit util-linux   # the disk-full test lifts a limit with it
need kill procps
if ! command -v cargo > /dev/null; then
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
    else
        need rustup rustup
        rustup toolchain install stable --profile minimal --component rustfmt --component clippy
    fi
fi

say "format";  cargo fmt --check
say "lints";   cargo clippy --all-targets --locked -- -D warnings
say "tests";   cargo test --locked
say "all passed"
