#!/usr/bin/env bash
# The long form of the tests of several nodes under faults: bash tests/cluster/run.sh [SECONDS]
# SECONDS (default 600) is the length of the longest scenario, in which a random node is killed every 3 seconds; the others
# follow from it. tests/run.sh runs the short form. Prints what was measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CEOAGENT_TEST_FAULTS="${1:-600}" cargo test --locked --test it -- cluster_faults:: --nocapture --test-threads=1
