#!/usr/bin/env bash
# Checks README.md and docs/*.md: links, alarms, the commands they name, and every example, which is run.
# Part of tests/run.sh, which has built the binary. Arguments choose documents: bash tests/docs/run.sh docs/api.md
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n==> %s\n' "$*"; }
tools=target/test-tools

say "Links and commands of the documents"
python3 tests/docs/links.py target/debug/ceoagent

say "Installing what runs TypeScript"
npm install --silent --no-fund --no-audit --prefix "$tools" esbuild@0.28.2

say "Examples of the documents"
python3 tests/docs/examples.py target/debug/ceoagent "$tools/node_modules/.bin/esbuild" "$@"

say "A broken example is noticed"
broken=$(mktemp --suffix .md)
trap 'rm -f "$broken"' EXIT
printf '```bash\ncurl -s http://localhost:8000/no-such-route\n```\n' > "$broken"
if python3 tests/docs/examples.py target/debug/ceoagent "$tools/node_modules/.bin/esbuild" "$broken" >/dev/null 2>&1; then
    echo "a command that fails went unnoticed" >&2
    exit 1
fi
