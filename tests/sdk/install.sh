#!/usr/bin/env bash
# Makes target/sdk, a Python environment with the official SDK, unless it is there and as requirements.txt has it.
# Called by tests/run.sh, and by the test that needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p target
# Two test runs may come here at once.
exec 9>target/sdk.lock
flock 9
cmp -s tests/sdk/requirements.txt target/sdk/requirements.txt && exit 0
rm -rf target/sdk
python3 -m venv target/sdk || { echo "python3 can't make environments; install what Debian calls python3-venv" >&2; exit 1; }
target/sdk/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/sdk/requirements.txt
cp tests/sdk/requirements.txt target/sdk/requirements.txt
