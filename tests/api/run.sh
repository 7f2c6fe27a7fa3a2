#!/usr/bin/env bash
# Holds the running service, with its simulated Claude, to its OpenAPI document: two linters read the document, clients are
# generated from it and used, and schemathesis calls every route with what the document allows and with what it does not.
# Part of tests/run.sh, which has built the binary. EXAMPLES sets how many calls of each route are made up, 10 unless set,
# and SEED which.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n==> %s\n' "$*"; }
tools=target/test-tools/api
binary=$PWD/target/debug/ceoagent
export ADMIN_TOKEN=a-token-for-tests-only

say "Installing schemathesis, linters and generators of clients"
[ -x "$tools/bin/python" ] || python3 -m venv "$tools"
"$tools/bin/pip" install -q --disable-pip-version-check --requirement tests/api/requirements.txt
mkdir -p "$tools/linters" "$tools/typescript"
npm install --silent --no-fund --no-audit --prefix "$tools/linters" @redocly/cli@2.77.0 @stoplight/spectral-cli@6.16.3

folder=$(mktemp -d)
service=
# A failure is told with the end of what the service said: it may have been its own.
trap 'status=$?
    [ $status = 0 ] || tail -n 100 "$folder"/*.log >&2 || true
    [ -z "$service" ] || kill "$service" && wait "$service" || true
    rm -rf "$folder"' EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
base=http://127.0.0.1:$port

# In an empty environment, where no key and no setting of this machine leads elsewhere. The demo has failed, and ends, if
# its own question is cancelled or deleted, as anything may be here: so its memo is waited for.
start() {
    env -i PATH="$PATH" HOST=127.0.0.1 PORT="$port" DATA_DIR="$folder/$1" PROMPTS_DIR="$PWD/prompts" EFFORT=low \
        ADMIN_TOKEN="$ADMIN_TOKEN" "${@:2}" "$binary" demo > "$folder/$1.log" 2>&1 &
    service=$!
    for _ in $(seq 600); do
        grep -q "The service runs until" "$folder/$1.log" && return
        sleep 0.1
    done
    cat "$folder/$1.log" >&2
    return 1
}

say "The OpenAPI document"
"$binary" openapi > "$folder/openapi.json"
REDOCLY_SUPPRESS_UPDATE_NOTICE=true "$tools/linters/node_modules/.bin/redocly" lint --config tests/api/redocly.yaml "$folder/openapi.json"
"$tools/linters/node_modules/.bin/spectral" lint --ruleset tests/api/spectral.yaml --fail-severity warn "$folder/openapi.json"

say "Generated clients against the running service"
secret=whsec_$(head -c 24 /dev/urandom | base64)
start client WEBHOOK_SECRET="$secret" WEBHOOK_ALLOW_PRIVATE=127.0.0.0/8
"$tools/bin/openapi-python-client" generate --path "$folder/openapi.json" --meta none \
    --output-path "$folder/generated/ceoagent_client" > "$folder/generator.log" 2>&1 || { cat "$folder/generator.log"; exit 1; }
tests/api/clients.sh "$folder" "$base" "$secret" "$tools"
PYTHONPATH="$folder/generated" "$tools/bin/python" tests/api/client.py "$base"
kill "$service" && wait "$service" || true

say "Every route, by the document"
start schemathesis
# In a folder of its own, as it leaves files where it runs.
cp tests/api/schemathesis.toml tests/api/hooks.py "$folder"
schemathesis=$PWD/$tools/bin/schemathesis
(cd "$folder" && "$schemathesis" run "$base/openapi.json" --checks all --max-examples "${EXAMPLES:-10}" \
    --seed "${SEED:-1}" --no-color)
