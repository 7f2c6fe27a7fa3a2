"""Checks the Kubernetes manifests: each resource against its schema, and what a schema can't know.

    python tests/deploy/manifests.py PATH_OF_KUSTOMIZE
"""

import ipaddress
import subprocess
import sys

import kubernetes_validate
import yaml

KUBERNETES = "1.37"
SINGLE, CLUSTER = ["k8s/base", "k8s/overlays/example", "k8s/overlays/production"], "k8s/overlays/cluster"
SECRETS = ["k8s/base/secret.example.yaml", f"{CLUSTER}/secret.example.yaml"]
# `NOTICE` in src/app.rs.
NOTICE_SECONDS, SHUTDOWN_GRACE_SECONDS = 5, 25
PRIVATE = ["10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "127.0.0.1", "fd00::1", "fe80::1"]


def resources(kustomize, folder):
    built = subprocess.run([kustomize, "build", folder], check=True, capture_output=True, text=True)
    return [resource for resource in yaml.safe_load_all(built.stdout) if resource]


def one(found, kind):
    return next(resource for resource in found if resource["kind"] == kind)


def check_network(policy):
    """Every way in and out names its peers, and none leads to a private address."""
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule["from"] for rule in spec["ingress"]) and all(rule["to"] for rule in spec["egress"])
    blocks = [
        peer["ipBlock"] for rule in spec["egress"] for peer in rule["to"]
        if "ipBlock" in peer and any(port["port"] != 53 for port in rule["ports"])
    ]
    for address in map(ipaddress.ip_address, PRIVATE):
        for block in blocks:
            inside = lambda cidr: address in ipaddress.ip_network(cidr)
            assert not inside(block["cidr"]) or any(map(inside, block["except"])), f"{address} can be reached"


def check_monitoring(found):
    service, monitor = one(found, "Service"), one(found, "ServiceMonitor")
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert selected.items() <= service["metadata"]["labels"].items(), "the ServiceMonitor does not find the service"
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    with open("deploy/prometheus/alerts.yml", encoding="utf-8") as file:
        alerts = yaml.safe_load(file)
    assert one(found, "PrometheusRule")["spec"] == alerts, "run tests/deploy/prometheusrule.py, its docstring says how"
    backend = one(found, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == service["metadata"]["name"] and backend["port"]["name"] in ports
    assert one(found, "Ingress")["spec"]["tls"], "an Ingress without TLS"


def check_cluster(found):
    """Nodes that hold no data: they can be replaced one by one, and are spread over machines."""
    kinds = [resource["kind"] for resource in found]
    assert "StatefulSet" not in kinds and "PersistentVolumeClaim" not in kinds, kinds
    deployment = one(found, "Deployment")["spec"]
    pod, labels = deployment["template"]["spec"], deployment["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"]), "a node has a volume"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = one(found, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] < deployment["replicas"] - 1, "too few nodes are left"
    selectors = [deployment["selector"], budget["selector"], one(found, "NetworkPolicy")["spec"]["podSelector"]]
    selectors += [spread["labelSelector"] for spread in pod["topologySpreadConstraints"]]
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels.items(), f"{selector} selects no node"
    assert pod["terminationGracePeriodSeconds"] > NOTICE_SECONDS + SHUTDOWN_GRACE_SECONDS + 5, "attempts would be cut"
    assert "lifecycle" not in container, "a node that stops takes requests for a moment by itself"
    ports = [port["port"] for rule in one(found, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert {5432, 6379} <= set(ports), "the nodes can't reach PostgreSQL or Redis"


def check(kustomize, folder):
    found = resources(kustomize, folder)
    for resource in found:
        # Kinds of the Prometheus Operator have no schema here.
        if not resource["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    check_network(one(found, "NetworkPolicy"))
    return found


def main(kustomize):
    for folder in SINGLE:
        found = check(kustomize, folder)
    check_monitoring(found)
    check_cluster(check(kustomize, CLUSTER))
    for path in SECRETS:
        with open(path, encoding="utf-8") as file:
            kubernetes_validate.validate(yaml.safe_load(file), KUBERNETES, strict=True)
    print("the manifests are sound")


main(sys.argv[1])
