#!/usr/bin/env bash
# Builds the image in a real engine and runs compose from a fresh clone: ask through the published port, restart, kill,
# upgrade, back up and restore. Part of tests/run.sh, which has installed what it needs. Takes root.
#
# Then three nodes behind the proxy, as docs/deploy.md has it: kill one, upgrade one after the other, take everything down
# and up again.
#
# Uses the engine that runs, else starts one of its own, with all that it makes in one folder, and ends it afterwards.
# Images are pulled where that can be done. Else stand-ins are made of Debian's packages and this machine's Rust.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n==> %s\n' "$*"; }
fail() { why="$*"; exit 1; }
base="$(sed -n 's/^FROM \(.*\) AS build$/\1/p' Dockerfile)"
source="$PWD" making= why=
work="$(mktemp -d)"
export PORT CEOAGENT_TAG="test-$$" COMPOSE_PROJECT_NAME="ceoagent-test-$$"
image="ceoagent:$CEOAGENT_TAG"
PORT="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

finish() {
    code=$?
    [ -z "$making" ] || wait "$making" || true
    [ $code = 0 ] || (cd "$work/ceoagent" 2>/dev/null && compose -f docker-compose.yml -f tests/docker/simulated.yml logs) || true
    [ ! -d "$work/ceoagent" ] || (cd "$work/ceoagent" && compose --profile cluster down -v) || true
    docker rmi "$image" >/dev/null 2>&1 || true
    if [ -f "$work/iptables" ]; then
        [ $code = 0 ] || tail -n 50 "$work"/engine-*.log || true
        if [ -f "$work/engine.pid" ]; then
            kill "$(cat "$work/engine.pid")" 2>/dev/null || true
            tail --pid="$(cat "$work/engine.pid")" -f /dev/null 2>/dev/null || true
        fi
        iptables-restore < "$work/iptables" || true
        ip link delete docker0 2>/dev/null || true
    fi
    rm -rf "$work" || true
    # Below the logs, where one looks first.
    [ -z "$why" ] || printf 'error: %s\n' "$why" >&2
}
trap finish EXIT

# Looks every half second, for two minutes at most.
until_true() {
    for _ in $(seq 240); do
        if "${@:2}"; then return; fi
        sleep 0.5
    done
    fail "$1 did not happen"
}

engine_answers() { docker info >/dev/null 2>&1; }

# With the storage driver that is named.
start_engine() {
    dockerd --host "$DOCKER_HOST" --data-root "$work/engine" --exec-root "$work/run" --pidfile "$work/engine.pid" \
        --storage-driver "$1" >"$work/engine-$1.log" 2>&1 &
    until_true "the engine's start, or its end," sh -c 'docker info >/dev/null 2>&1 || ! kill -0 '"$!"' 2>/dev/null'
}

if ! engine_answers; then
    say "Starting an engine"
    [ "$(id -u)" = 0 ] || fail "an engine takes root; start one, or run this as root"
    export DOCKER_HOST="unix://$work/engine.sock"
    iptables-save > "$work/iptables"
    start_engine overlay2
    # Slower, and it takes much more of the disk, but it works on every file system.
    engine_answers || start_engine vfs
    engine_answers || fail "the engine did not start (in a container, that takes --privileged)"
fi

# Makes the images of the cluster, and writes their names.
cluster_images() {
    image_of() { sed -n "s|^    image: \($1:.*\)$|\1|p" docker-compose.yml; }
    local proxy postgres redis folder="$work/cluster"
    proxy="$(image_of haproxy)" postgres="$(image_of postgres)" redis="$(image_of valkey/valkey)"
    pull_all() { for pulled in "$proxy" "$postgres" "$redis"; do timeout 60 docker pull -q "$pulled" || return; done; }
    if ! pull_all; then
        proxy="proxy:$CEOAGENT_TAG" postgres="postgres:$CEOAGENT_TAG" redis="redis:$CEOAGENT_TAG"
        debootstrap --variant=minbase --include=haproxy,postgresql,redis-server,wget bookworm "$folder"
        install -m 0755 tests/docker/postgres.sh "$folder/usr/local/bin/"
        ln -s redis-server "$folder/usr/bin/valkey-server"
        chroot "$folder" install -d -o postgres -g postgres /var/lib/postgresql/data
        tar -C "$folder" -c . > "$folder.tar"
        docker import -c 'USER haproxy' -c 'CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]' \
            "$folder.tar" "$proxy"
        docker import -c 'VOLUME /var/lib/postgresql/data' -c 'CMD ["postgres.sh"]' "$folder.tar" "$postgres"
        docker tag "$proxy" "$redis"
        rm -rf "$folder" "$folder.tar"
    fi
    echo "export PROXY_IMAGE=$proxy POSTGRES_IMAGE=$postgres REDIS_IMAGE=$redis" > "$work/images"
}
# While the service's own image is built.
cluster_images >"$work/images.log" 2>&1 &
making=$!

if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 docker pull -q "$base"; then
    say "Making a stand-in for $base"
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$work/base" >/dev/null
    toolchain="$(rustc --print sysroot)"
    mkdir -p "$work/base/usr/local/rust"
    tar -C "$toolchain" -c --exclude=share/doc --exclude=share/man . | tar -C "$work/base/usr/local/rust" -x
    # Behind a proxy of its own, this machine may trust more than Debian does.
    cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
    tar -C "$work/base" -c . | docker import -c 'ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base" >/dev/null
    rm -rf "$work/base"
fi

say "A fresh clone, compose up"
git -c safe.directory="*" clone -q --no-hardlinks "$source" "$work/ceoagent"
cd "$work/ceoagent"
# What is optimized most thoroughly takes minutes more, and is no different to these tests.
sed -i 's/^ARG PROFILE=dist$/ARG PROFILE=release/' Dockerfile
printf '\n[profile.release]\nopt-level = 1\nstrip = "symbols"\n' >> Cargo.toml
if ! docker compose version >/dev/null 2>&1; then
    # docker-compose 1 knows no settings file that may be missing.
    touch .env
    sed -i -e 's/^      - path: \.env$/      - .env/' -e '/^        required: false$/d' docker-compose.yml
fi
up() { compose -f docker-compose.yml -f tests/docker/simulated.yml up -d "$@"; }
up --build
url="http://127.0.0.1:$PORT"
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q ceoagent)")" = healthy ]; }
answers() { curl -fs -m 5 "$url/health" >/dev/null; }
until_true "a healthy container" healthy

say "Without a key nothing is started, and the log says why"
printf 'services: {prepare: {image: "%s"}, ceoagent: {image: "%s"}}\n' "$image" "$image" > "$work/image.yml"
keyless() {
    COMPOSE_PROJECT_NAME="$COMPOSE_PROJECT_NAME-keyless" CLUSTER_SUBNET=10.213.172.0/24 ANTHROPIC_API_KEY="" PORT=0 \
        compose -f docker-compose.yml -f "$work/image.yml" "$@"
}
keyless up -d ceoagent >/dev/null 2>&1 && fail "the service was started without a key"
[ "$(keyless logs prepare 2>&1 | grep -c 'ANTHROPIC_API_KEY is not set')" != 0 ] \
    || fail "the log does not say that the key is missing"
keyless down -v >/dev/null 2>&1

say "The image: small, without a shell, without rights"
bytes="$(docker image inspect -f '{{.Size}}' "$image")"
printf '%s bytes\n' "$bytes"
[ "$bytes" -lt 40000000 ] || fail "the image is over 40 MB"
docker run --rm --entrypoint /bin/sh "$image" -c true 2>/dev/null && fail "the image has a shell"
[ "$(docker inspect -f '{{.Config.User}}' "$image")" = 10001:10001 ] || fail "the image runs as root"
container="$(compose ps -q ceoagent)"
[ "$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}}' "$container")" = true ] || fail "the root is writable"
[ "$(stat -c %u data/demo/admin-token)" = 10001 ] || fail "the data folder is not the service's"
demo="$(docker run --rm --read-only --tmpfs /app/data:uid=10001 "$image" demo --once)" \
    || fail "the demo does not run on a read-only root"
[[ "$demo" == *simulated* ]] || fail "the demo's memo does not say that it is simulated"

ask() { curl -fsS -m 35 "$url/api/v1/analyze" --json "{\"query\": \"$1\"${2:-}}"; }
id_of() { python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])'; }
status_of() { curl -fsS -m 35 "$url/api/v1/jobs/$1?wait=25" | python3 -c 'import json, sys; print(json.load(sys.stdin)["status"])'; }
succeeded() { [ "$(status_of "$1")" = succeeded ]; }

say "Ask through the published port"
first="$(ask "Should we open an office in Lyon?" ', "wait": true' | id_of)"
succeeded "$first" || fail "the first question has no memo"

say "A restart in the middle of an answer"
second="$(ask "Should we restart in the middle?" | id_of)"
compose restart ceoagent
until_true "an answer after the restart" answers
until_true "the second memo" succeeded "$second"

say "A kill in the middle of an answer"
third="$(ask "Should we survive a kill?" | id_of)"
docker kill "$(compose ps -q ceoagent)" >/dev/null
up
until_true "an answer after the kill" answers
until_true "the third memo" succeeded "$third"

say "An upgrade: another image, the same data"
sed -i 's/^ARG VERSION=dev$/ARG VERSION=next/' Dockerfile
before="$(docker image inspect -f '{{.Id}}' "$image")"
compose down
up --build
[ "$(docker image inspect -f '{{.Id}}' "$image")" != "$before" ] || fail "the image was not built anew"
until_true "an answer after the upgrade" answers
succeeded "$first" || fail "the first memo is gone after the upgrade"

say "Backup and restore, as docs/deploy.md has it"
compose stop ceoagent
cp -a data data.backup
rm -rf data
cp -a data.backup data
up --force-recreate
until_true "an answer after the restore" answers
for id in "$first" "$second" "$third"; do succeeded "$id" || fail "job $id is gone after the restore"; done

say "compose stop, within the grace"
# A demo that is stopped before its own memo has failed, and says so by its exit code.
has_memo() { [ "$(compose logs ceoagent 2>&1 | grep -c 'runs until')" != 0 ]; }
until_true "the demo's memo" has_memo
compose stop ceoagent
[ "$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -aq ceoagent 2>/dev/null || compose ps -q ceoagent)")" = 0 ] \
    || fail "the service did not drain"
compose down -v

say "Images of the cluster"
wait "$making" || { cat "$work/images.log" >&2; fail "the images of the cluster could not be made"; }
making=
. "$work/images"

say "Three nodes behind the proxy"
sed 's/^ADMIN_TOKEN=$/ADMIN_TOKEN=set-by-an-operator/' .env.example > .env
echo TRUSTED_PROXIES=203.0.113.7 >> .env
bash -c "$(sed -n '/^for setting in /,/^done$/p' docs/deploy.md)"
cluster() { compose -f docker-compose.yml -f tests/docker/cluster.yml --profile cluster "$@"; }
# Sets `node`.
dispatcher() {
    for node in node1 node2 node3; do
        # From within, because the image has no other program: a node that is not the dispatcher answers too.
        docker run --rm --network "${COMPOSE_PROJECT_NAME}_default" --entrypoint wget "$PROXY_IMAGE" -qO- "http://$node:8000/metrics" \
            | grep -c '^ceoagent_dispatcher 1$' >/dev/null && return
    done
    return 1
}
ready() { curl -fs -m 5 "$url/health/ready" >/dev/null; }
accepts() { id="$(ask "$1" 2>/dev/null | id_of 2>/dev/null)"; }
known() { curl -fs -m 5 "$url/api/v1/jobs/$1" >/dev/null; }
cluster run --rm -v "$PWD/data/demo:/app/single" node1 move --from /app/single --to DATABASE_URL \
    || fail "the jobs of the single node can't be moved"
cluster up -d
until_true "a ready node behind the proxy" ready
for id in "$first" "$second" "$third"; do succeeded "$id" || fail "job $id is gone after the move"; done
environment="$(docker inspect -f '{{.Config.Env}}' "$(cluster ps -q node1)")"
[[ "$environment" == *ADMIN_TOKEN=set-by-an-operator* && "$environment" == *,203.0.113.7* ]] || fail "a setting of .env is lost"
[ -z "$(cluster ps -q ceoagent)" ] || fail "the single node runs beside the cluster"
accepts "Does the cluster accept?" || fail "the cluster accepts no question"
before="$id"
until_true "a dispatcher" dispatcher
docker kill "$(cluster ps -q "$node")" >/dev/null
until_true "another question after the kill of a node" accepts "Does it go on?"
known "$before" && known "$id" || fail "a question is lost after the kill of a node"
say "An upgrade, node by node, as docs/deploy.md has it"
sed -i 's/^ARG VERSION=next$/ARG VERSION=last/' Dockerfile
previous="$(docker image inspect -f '{{.Id}}' "$image")"
cluster build ceoagent
next="$(docker image inspect -f '{{.Id}}' "$image")"
[ "$next" != "$previous" ] || fail "the image of the nodes was not built again"
node_healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(cluster ps -q "$1")")" = healthy ]; }
# In place of `docker compose`. docker-compose 1 has no --wait.
upgrade() {
    if docker compose version >/dev/null 2>&1; then cluster "$@"; else cluster "${@/#--wait/--no-build}"; fi
    until_true "a healthy $node after its upgrade" node_healthy "$node"
    [ "$(docker inspect -f '{{.Image}}' "$(cluster ps -q "$node")")" = "$next" ] || fail "$node runs the old image"
    until_true "a question after the upgrade of $node" accepts "Does it go on after $node?"
}
loop="$(sed -n '/^for node in node1 /p' docs/deploy.md)"
[[ "$loop" == *"docker compose up "*" --wait "* ]] || fail "docs/deploy.md has no upgrade node by node"
eval "${loop//docker compose/upgrade}"
known "$before" && known "$id" || fail "a question is lost after the upgrade"
cluster down
cluster up -d
until_true "the same questions after down and up" known "$before"
cluster stop
for node in node1 node2 node3; do
    [ "$(docker inspect -f '{{.State.ExitCode}}' "$(cluster ps -aq $node 2>/dev/null || cluster ps -q $node)")" = 0 ] \
        || fail "$node did not drain"
done
say "The image is sound"
