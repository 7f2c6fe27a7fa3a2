"""Prints the alerts of deploy/prometheus/alerts.yml as a resource of the Prometheus Operator:

    python3 tests/deploy/prometheusrule.py > k8s/components/monitoring/prometheusrule.yaml
"""

HEAD = """\
# Made by tests/deploy/prometheusrule.py of deploy/prometheus/alerts.yml, which has the comments.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ceoagent
spec:
"""

with open("deploy/prometheus/alerts.yml", encoding="utf-8") as file:
    lines = [line for line in file.read().splitlines() if line and not line.lstrip().startswith("#")]
print(HEAD + "\n".join(f"  {line}" for line in lines))
