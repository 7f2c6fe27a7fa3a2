"""Runs the service with its simulated Claude, a real Prometheus that scrapes it and a real Alertmanager, and asks that
Prometheus everything that the alarms and the dashboard ask. Then kills the service: the alarm reaches a receiver by way of the
Alertmanager, and deploy/monitor.sh notices too.

    python tests/deploy/monitoring.py PATH_OF_CEOAGENT
"""

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import nights
import yaml

PATIENCE_SECONDS = 90
RULES = os.path.abspath("deploy/prometheus/alerts.yml")
RUNBOOK = "https://ops.example/runbook"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def until(what, check):
    """The first true value of `check`, which may fail until then."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := check():
                return found
        time.sleep(0.1)
    sys.exit(f"error: {what} did not happen within {PATIENCE_SECONDS} s")


def query(prometheus, expression):
    answer = get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    return json.loads(answer)["data"]["result"]


def expressions():
    """Of every alarm and every panel, with its place."""
    with open("deploy/prometheus/alerts.yml", encoding="utf-8") as file:
        for rule in yaml.safe_load(file)["groups"][0]["rules"]:
            yield f"alarm {rule['alert']}", rule["expr"]
    with open("deploy/grafana/dashboards/ceoagent.json", encoding="utf-8") as file:
        for panel in json.load(file)["panels"]:
            for target in panel["targets"]:
                yield f"panel {panel['title']}", target["expr"]


def check_expressions(prometheus):
    """Each is understood, and every metric of ours that it names is one that the service has."""
    known = set(json.loads(get(f"{prometheus}/api/v1/label/__name__/values"))["data"])
    for place, expression in expressions():
        query(prometheus, expression)
        for name in re.findall(r"\bceoagent_\w+", expression):
            assert name in known, f"{place} asks for {name}, which the service does not have"
    firing = query(prometheus, 'ALERTS{alertstate="firing"}')
    assert not firing, f"a fresh service has alarms: {firing}"
    assert query(prometheus, "up")[0]["value"][1] == "1"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes the alarms that are sent."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.received.append(json.loads(self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def receiver():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def check_monitor(address):
    """A service that does not answer: one alarm after three failures, sent once."""
    hook = receiver()
    environment = {
        **os.environ, "INTERVAL": "0", "LOOKS": "5", "ALERT_WEBHOOK": f"http://127.0.0.1:{hook.server_port}/",
    }
    subprocess.run(["deploy/monitor.sh", address], env=environment, check=True)
    assert hook.received == [{"text": f"ceoagent at {address} has not answered 3 times in a row"}], hook.received


def check_message(hook):
    """The Alertmanager has sent the alarm, with a link that can be opened."""
    message = until("the alarm's message", lambda: hook.received)[0]
    alert = message["alerts"][0]
    assert alert["labels"]["alertname"] == "CeoagentDown" and "runbook" not in alert["labels"], alert
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#ceoagentdown", alert


def load(path):
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def write(path, config):
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(config, file)


def prometheus_config(service_port, alertmanager_port):
    """The shipped one, for this machine and in a hurry."""
    config = load("deploy/prometheus/prometheus.yml")
    config["global"] = {
        "scrape_interval": "1s", "evaluation_interval": "1s", "external_labels": {"runbook": RUNBOOK},
    }
    config["rule_files"] = [RULES]
    del config["scrape_configs"][0]["file_sd_configs"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service_port}"]}]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    return config


def alertmanager_config(hook):
    """The shipped one, with somebody who gets the alarms."""
    config = load("deploy/alertmanager/alertmanager.yml")
    config["receivers"][0]["webhook_configs"] = [{"url": f"http://127.0.0.1:{hook.server_port}/"}]
    return config


def main(binary):
    port, prometheus_port, alertmanager_port = free_port(), free_port(), free_port()
    hook = receiver()
    service, prometheus = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{prometheus_port}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        def start(command, **options):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
            stack.callback(process.kill)
            return process

        environment = {
            "HOST": "127.0.0.1", "PORT": str(port), "DATA_DIR": f"{folder}/data", "PATH": os.environ["PATH"],
        }
        running = start([binary, "demo"], env=environment)
        until("the demo's memo", lambda: 'jobs_finished_total{kind="succeeded"} 1' in get(f"{service}/metrics"))
        subprocess.run(["deploy/monitor.sh", service], env={**os.environ, "LOOKS": "1"}, check=True)
        nights.check(get(f"{service}/metrics"), RULES)
        write(f"{folder}/prometheus.yml", prometheus_config(port, alertmanager_port))
        write(f"{folder}/alertmanager.yml", alertmanager_config(hook))
        start([
            "prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alerts",
            f"--web.listen-address=127.0.0.1:{alertmanager_port}", "--cluster.listen-address=",
        ])
        start([
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{prometheus_port}",
        ])
        until("a scrape", lambda: query(prometheus, "ceoagent_jobs_submitted_total > 0"))
        check_expressions(prometheus)
        running.kill()
        running.wait()
        until("the alarm of a dead service", lambda: query(prometheus, 'ALERTS{alertname="CeoagentDown"}'))
        check_message(hook)
        check_monitor(service)
    print("alarms, dashboard and monitor: all is well")


main(sys.argv[1])
