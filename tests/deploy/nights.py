"""Usual nights and days of a service, minute by minute, on which no alarm may fire; and bad ones, on which some must.

The series are those of a real service: `check` gets its /metrics, and a series that it could not have is an error. promtool
evaluates the rules over them.
"""

import random
import re
import subprocess
import tempfile

import yaml

HOURS = 10
MINUTES = 60 * HOURS
# One node after another is the dispatcher of a cluster.
REIGN_MINUTES = 150


class Run:
    """The series of one run. Counters grow by `add`, gauges are `set`; both from a minute on."""

    def __init__(self, metrics):
        self.series, self.names = {}, {}
        for line in metrics.splitlines():
            if line.startswith("#"):
                continue
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.partition("{")
            labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            self.names[name] = set(labels)
            self.series[self.key(name, labels)] = [float(value)] * MINUTES
        self.series[self.key("up", {})] = [1.0] * MINUTES
        for (name, _), values in self.series.items():
            if name.startswith("ceoagent_") and name.endswith(("_total", "_today")):
                values[:] = [0.0] * MINUTES
        # The clock of promtool begins at zero.
        self.set(range(MINUTES), "process_start_time_seconds", -86_400.0)
        # Chosen once: the same test each time.
        self.random = random.Random(1)

    @staticmethod
    def key(name, labels):
        return name, tuple(sorted(labels.items()))

    def of(self, name, **labels):
        assert self.names.get(name) == set(labels), f"the service has no {name} with the labels {sorted(labels)}"
        key = self.key(name, labels)
        # A series that has not been counted yet begins with its first value, as in the service.
        return self.series.setdefault(key, [None] * MINUTES)

    def add(self, minute, name, by=1, **labels):
        values = self.of(name, **labels)
        for at in range(minute, MINUTES):
            values[at] = (values[at] or 0.0) + by

    def set(self, minutes, name, value, **labels):
        values = self.of(name, **labels)
        for at in minutes:
            values[at] = value

    def restart(self, minute):
        for (name, _), values in self.series.items():
            if name.startswith("ceoagent_") and name.endswith("_total") and values[minute] is not None:
                before = values[minute]
                values[minute:] = [value - before for value in values[minute:]]
        self.set(range(minute, MINUTES), "process_start_time_seconds", 60.0 * minute)

    def request(self, minute, status, by=1):
        route = "/api/v1/analyze"
        self.add(minute, "ceoagent_http_requests_total", by, method="POST", route=route, status=str(status))

    def job(self, minute, kind, waits=None, by=1):
        self.add(minute, "ceoagent_jobs_submitted_total", by)
        self.add(minute, "ceoagent_jobs_finished_total", by, kind=kind)
        # Each failed job was tried again.
        self.add(minute, "ceoagent_attempts_total", by * (1 if kind == "succeeded" else 4), kind=kind)
        if kind == "succeeded":
            self.add(minute, "ceoagent_tokens_today", 4_000 * by, kind="output")
        self.request(minute, 200 if waits == "answered" else 202, by)
        if waits:
            self.add(minute, "ceoagent_waits_total", by, kind=waits)

    def test(self, name, expected, nodes=1):
        """The run of one node, or of several that share its work."""
        def text(metric, labels, node):
            labels = {**dict(labels), "job": "ceoagent", "instance": f"node{node}:8000"}
            labels = ", ".join(f'{key}="{value}"' for key, value in labels.items())
            return f"{metric}{{{labels}}}"

        def of_node(metric, values, node):
            if metric == "ceoagent_dispatcher":
                return [float(minute // REIGN_MINUTES % nodes == node) for minute in range(MINUTES)]
            share = nodes if metric.startswith("ceoagent_") and metric.endswith("_total") else 1
            return [value if value is None else value / share for value in values]

        def line(values):
            return " ".join("_" if value is None else f"{value:.10g}" for value in values)

        return {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": text(metric, labels, node), "values": line(of_node(metric, values, node))}
                for (metric, labels), values in self.series.items() for node in range(nodes)
            ],
            "promql_expr_test": [{
                "expr": f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{HOURS}h]))',
                "eval_time": f"{MINUTES - 1}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(expected)],
            }],
        }


def ten_questions_an_hour(run, failed_an_hour):
    for hour in range(HOURS):
        minutes = sorted(60 * hour + minute for minute in run.random.sample(range(60), 10))
        failed = run.random.sample(minutes, failed_an_hour)
        for place, minute in enumerate(minutes):
            waits = ["answered", None][place % 2]
            if minute in failed:
                run.job(minute, "failed", waits and "failed")
            else:
                # One memo of the hour takes longer than its client waits.
                run.job(minute, "succeeded", "late" if place == 0 else waits)


def quiet_night(metrics):
    """Ten questions an hour, one of them fails; a few 503, a webhook that fails at first, one for the morning."""
    run = Run(metrics)
    ten_questions_an_hour(run, failed_an_hour=1)
    for minute in (30, 200, 203):
        run.request(minute, 503)
    run.add(100, "ceoagent_webhooks_total", kind="failed")
    run.add(101, "ceoagent_webhooks_total", kind="delivered")
    run.set(range(60, MINUTES), "ceoagent_jobs", 5, kind="scheduled")
    # Nobody has set a budget, so 100,000 tokens are worth a note. It is sent to nobody.
    return run.test("a quiet night", {"CeoagentTokens"})


def busy_day(metrics, name="a busy day", nodes=1):
    """Two thousand questions an hour, some failed, some late, bursts, an upgrade, a pause of minutes, a budget."""
    run = Run(metrics)
    for minute in range(MINUTES):
        run.job(minute, "succeeded", "answered", by=20)
        run.job(minute, "succeeded", by=13)
        if run.random.random() < 0.5:
            run.job(minute, "failed", "failed")
        if run.random.random() < 0.4:
            run.job(minute, "succeeded", "late")
        if run.random.random() < 0.2:
            run.request(minute, 503)
        run.add(minute, "ceoagent_webhooks_total", 4, kind="delivered")
        run.add(minute, "ceoagent_webhooks_total", kind="failed")
        run.set([minute], "ceoagent_budget_used_ratios", 0.7 * (minute + 1) / MINUTES)
        run.set([minute], "ceoagent_queue_used_ratios", 0.3 + 0.4 * run.random.random())
        run.set([minute], "ceoagent_oldest_queued_age_seconds", 300 * run.random.random())
    run.job(150, "failed", by=40)
    run.job(155, "succeeded", "late", by=30)
    run.request(158, 503, by=30)
    run.set(range(240, 250), "ceoagent_paused", 1)
    for minute in (300, 301, 360, 361, 362):
        run.set([minute], "ceoagent_gate_closed", 1)
    run.restart(400)
    return run.test(name, set(), nodes)


def busy_cluster(metrics):
    """The same day, of three nodes."""
    return busy_day(metrics, "a busy day of three nodes", nodes=3)


def all_fails(metrics):
    """The same ten questions an hour, and none is answered."""
    run = Run(metrics)
    ten_questions_an_hour(run, failed_an_hour=10)
    return run.test("a night without an answer", {"CeoagentNoAnswer", "CeoagentErrors"})


def crash_loop(metrics):
    """The process dies in the middle of a call every ten minutes. Each run begins with one attempt of unknown outcome."""
    run = Run(metrics)
    for minute in range(10, MINUTES, 10):
        run.set(range(minute, MINUTES), "process_start_time_seconds", 60.0 * minute)
    run.set(range(10, MINUTES), "ceoagent_attempts_total", 1, kind="outcome_unknown")
    return run.test("a night of crashes", {"CeoagentRestarts", "CeoagentUnknownOutcome"})


def check(metrics, rules):
    """Has promtool run all of them. `rules` is the absolute path of the rules."""
    tests = {
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [scenario(metrics) for scenario in (quiet_night, busy_day, busy_cluster, all_fails, crash_loop)],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
        yaml.safe_dump(tests, file)
        file.flush()
        subprocess.run(["promtool", "test", "rules", file.name], check=True)
