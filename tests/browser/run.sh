#!/usr/bin/env bash
# Holds the pages to what a person in a real browser meets: every way through them, every page in both colours and on a
# phone, no fault that axe-core can find. Part of tests/run.sh, which has built the binary.
# With SCREENSHOTS=FOLDER it leaves a picture of every page there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n==> %s\n' "$*"; }
tools=target/test-tools
python="$tools/browser/bin/python"

say "Installing what drives the browser"
[ -x "$python" ] || python3 -m venv "$tools/browser"
"$tools/browser/bin/pip" install -q --disable-pip-version-check --no-deps --requirement tests/browser/requirements.txt
npm install --silent --no-fund --no-audit --prefix "$tools" axe-core@4.14.1

say "The pages in a browser"
"$python" tests/browser/check.py target/debug/ceoagent "$tools/node_modules/axe-core/axe.min.js"
