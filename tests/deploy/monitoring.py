"""Runs the service with its simulated Claude, has a real Prometheus scrape it, and asks that Prometheus everything that the
alarms and the dashboard ask; then kills the service and watches deploy/monitor.sh notice.

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

import yaml

PATIENCE_SECONDS = 60


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
    """Of every alarm and every panel, with where it stands."""
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


class Alarms(http.server.BaseHTTPRequestHandler):
    """What deploy/monitor.sh sent."""

    received = []

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        Alarms.received.append(json.loads(self.rfile.read(length))["text"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def check_monitor(address):
    """Of a service that is not there: one alarm after three failures, told once."""
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Alarms)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    environment = {
        **os.environ, "INTERVAL": "0", "LOOKS": "5", "ALERT_WEBHOOK": f"http://127.0.0.1:{hook.server_port}/",
    }
    subprocess.run(["deploy/monitor.sh", address], env=environment, check=True)
    assert Alarms.received == [f"ceoagent at {address} has not answered 3 times in a row"], Alarms.received


def main(binary):
    port, prometheus_port = free_port(), free_port()
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
        with open("deploy/prometheus/prometheus.yml", encoding="utf-8") as file:
            config = yaml.safe_load(file)
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [os.path.abspath("deploy/prometheus/alerts.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
        with open(f"{folder}/prometheus.yml", "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        start([
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{prometheus_port}",
        ])
        until("a scrape", lambda: query(prometheus, "ceoagent_jobs_submitted_total > 0"))
        check_expressions(prometheus)
        running.kill()
        running.wait()
        until("the alarm of a dead service", lambda: query(prometheus, 'ALERTS{alertname="CeoagentDown"}'))
        check_monitor(service)
    print("alarms, dashboard and monitor: all is well")


main(sys.argv[1])
