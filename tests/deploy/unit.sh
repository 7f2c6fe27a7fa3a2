#!/usr/bin/env bash
# Checks the systemd unit: systemd accepts it, it can be enabled, and it is hardened. Part of tests/deploy/run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

unit=deploy/ceoagent.service
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# With the paths of this machine, because systemd looks for the program.
sed -e "s|/opt/ceoagent/ceoagent|$PWD/target/debug/ceoagent|" -e "s|^WorkingDirectory=.*|WorkingDirectory=$PWD|" "$unit" \
    > "$work/ceoagent.service"
systemd-analyze verify "$work/ceoagent.service"
grep -q '^WantedBy=multi-user.target$' "$unit"
# 25 tenths of 10. It prints every point, of which the last line is enough.
systemd-analyze security --offline=true --threshold=25 "$unit" > "$work/exposure" || { cat "$work/exposure"; exit 1; }
tail -n 1 "$work/exposure"
