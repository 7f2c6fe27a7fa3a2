#!/usr/bin/env bash
# Runs the example clients of docs/clients against a service: clients.sh FOLDER BASE_URL WEBHOOK_SECRET TOOLS. FOLDER has
# the OpenAPI document and the generated Python client. Part of tests/api/run.sh.
set -euo pipefail
folder=$1 base=$2 secret=$3 tools=$4

cp docs/clients/typescript/{client.ts,package.json,tsconfig.json} "$folder/openapi.json" "$tools/typescript"
(cd "$tools/typescript" && npm install --silent --no-fund --no-audit && npm run --silent build)

# All at once, because each waits for two memos. Their questions differ: a shared answer would have no text to follow.
run() {
    PYTHONPATH="$folder/generated" "$tools/bin/python" docs/clients/python/client.py "$base" "$2" "Should we open an office in $3?" \
        > "$folder/$1-python.out" 2>&1 &
    node "$tools/typescript/client.js" "$base" "$2" "Should we open a shop in $3?" > "$folder/$1-typescript.out" 2>&1 &
}
run right "$secret" Spain
run wrong "whsec_$(head -c 24 /dev/zero | base64)" Peru
wait -n && wait -n && wait -n && wait -n || { tail -n 20 "$folder"/*.out >&2; exit 1; }

for client in python typescript; do
    for line in "memo: ." "status: running" "done: succeeded after [0-9]{3,} characters" "webhook: job.succeeded "; do
        grep -qE "^$line" "$folder/right-$client.out" && continue
        echo "the $client client did not print \"$line\" but:" "$(cat "$folder/right-$client.out")" >&2
        exit 1
    done
    grep -q "^done: succeeded" "$folder/wrong-$client.out"
    if grep "^webhook:" "$folder/wrong-$client.out"; then
        echo "the $client client accepted a message that another secret had signed" >&2
        exit 1
    fi
done
