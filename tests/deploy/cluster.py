"""Runs what `docker compose --profile cluster up` runs, as processes of this machine: PostgreSQL, Redis, three nodes, and HAProxy with
the shipped configuration in front. Streams events, makes calls on all nodes, stops and kills the dispatcher, while clients ask.

    python tests/deploy/cluster.py PATH_OF_CEOAGENT
"""

import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

sys.path.append("tests/browser")
from claude import Claude, sample

PATIENCE_SECONDS = 60
TOKEN, PASSWORD = "a-token-for-tests-only", "0123456789abcdef"
# The proxy sees the clients at these addresses, and nodes see the proxy at 127.0.0.1.
CLIENT_ADDRESS, OTHER_ADDRESS = "127.0.0.7", "127.0.0.8"
# A node answers this many a minute from one address.
WRONG_TOKENS = 30
# Half of the clients give each question a key.
CLIENTS, NODES = 4, 3


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def until(what, check):
    """The first true value of `check`, which may fail until then."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := check():
                return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS} s")


def ask(port, path, body=None, address=CLIENT_ADDRESS, **headers):
    """Status, headers and JSON of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, PATIENCE_SECONDS, source_address=(address, 0))
    with contextlib.closing(connection):
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.status, answer.headers, json.loads(text) if is_json else text


def is_ready(port):
    return ask(port, "/health/ready")[0] == 200


def metric(port, name):
    return re.search(f"^{re.escape(name)} (.*)$", ask(port, "/metrics")[2], re.M)[1]


def is_dispatcher(port):
    return metric(port, "ceoagent_dispatcher") == "1"


class Cluster:
    def __init__(self, binary, folder, claude, start):
        self.binary, self.folder, self.claude, self.start = binary, pathlib.Path(folder), claude, start
        self.proxy, self.database, self.redis, *self.ports = free_ports(NODES + 3)
        self.nodes = {}

    def start_database(self):
        """Of Debian's package, which refuses to run as root."""
        newest = max(pathlib.Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
        data, password = self.folder / "database", self.folder / "password"
        user = {}
        data.mkdir()
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            postgres = pwd.getpwnam("postgres")
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            for path in (self.folder, data, password):
                os.chown(path, postgres.pw_uid, postgres.pw_gid)
        initdb = [newest / "bin/initdb", "--no-sync", "--auth=scram-sha-256", f"--pwfile={password}", "-U", "ceoagent", data]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **user)
        self.start(
            [newest / "bin/postgres", "-D", data, "-p", str(self.database), "-c", "listen_addresses=127.0.0.1",
             "-c", "unix_socket_directories="], cwd="/", **user)
        address = ["-q", "-h", "127.0.0.1", "-p", str(self.database)]
        until("the start of PostgreSQL", lambda: subprocess.run([newest / "bin/pg_isready", *address]).returncode == 0)

    def start_redis(self):
        """With the user that docs/security.md describes, and no other."""
        server = shutil.which("redis-server") or "valkey-server"
        guide = pathlib.Path("docs/security.md").read_text(encoding="utf-8")
        user = re.search(r"ACL SETUSER (ceoagent on .*)`", guide)[1].replace("PASSWORD", PASSWORD)
        self.start(
            [server, "--port", str(self.redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--user", *user.split(), "--user", "default", "off"], cwd="/")

    def start_proxy(self):
        """The shipped configuration, with the ports of this machine in place of compose's names."""
        config = pathlib.Path("deploy/haproxy/haproxy.cfg").read_text(encoding="utf-8")
        for place, port in enumerate(self.ports, 1):
            config = config.replace(f" node{place}:8000\n", f" 127.0.0.1:{port}\n")
        config = config.replace("bind :8000\n", f"bind 127.0.0.1:{self.proxy}\n")
        assert not re.search(r"(bind|node\d) .*:8000$", config, re.M), config
        path = self.folder / "haproxy.cfg"
        path.write_text(config)
        return self.start(["haproxy", "-db", "-f", path])

    def start_node(self, port):
        folder = self.folder / f"node-{port}"
        folder.mkdir(exist_ok=True)
        environment = {
            "HOST": "127.0.0.1", "PORT": str(port), "DATA_DIR": str(folder), "PROMPTS_DIR": os.path.abspath("prompts"),
            "ADMIN_TOKEN": TOKEN, "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
            "DATABASE_URL": f"postgres://ceoagent:{PASSWORD}@127.0.0.1:{self.database}/postgres?sslmode=disable",
            "REDIS_URL": f"redis://ceoagent:{PASSWORD}@127.0.0.1:{self.redis}", "ANTHROPIC_API_KEY": "sk-test",
            "ANTHROPIC_BASE_URL": self.claude.url, "TRUSTED_PROXIES": "127.0.0.1", "WORKERS": "500",
            "PATH": os.environ["PATH"],
        }
        self.nodes[port] = self.start([self.binary, "serve"], env=environment, cwd=folder)
        until("the start of a node", lambda: ask(port, "/health")[0] == 200)

    def dispatcher(self):
        return until("a dispatcher", lambda: next((port for port in self.nodes if is_dispatcher(port)), None))

    def end(self, port, how):
        node = self.nodes.pop(port)
        node.send_signal(how)
        return node.wait(PATIENCE_SECONDS)


class Client(threading.Thread):
    """Asks one question after another until it is stopped. With keys it repeats each until it is accepted."""

    def __init__(self, proxy, name, has_keys):
        super().__init__(daemon=True)
        self.proxy, self.title, self.has_keys, self.stopped = proxy, name, has_keys, threading.Event()
        self.accepted, self.refused, self.longest_gap, self.is_done = [], [], 0.0, False

    def run(self):
        last, number = time.monotonic(), 0
        while not self.stopped.is_set():
            question = {"query": f"Should {self.title} proceed with plan {number}?"}
            key = {"Idempotency-Key": f"{self.title}-{number}"} if self.has_keys else {}
            status, _, answer = ask(self.proxy, "/api/v1/analyze", question, **key)
            # 200: it was accepted before, and has ended since.
            is_accepted = status in (200, 202)
            if is_accepted:
                self.longest_gap, last = max(self.longest_gap, time.monotonic() - last), time.monotonic()
                self.accepted.append(answer["id"])
            else:
                self.refused.append((status, answer["code"]))
            # Without a key nobody knows whether a question that was refused is a job.
            if is_accepted or not self.has_keys:
                number += 1
            self.stopped.wait(0.05)
        self.is_done = True


class Abandoner(http.server.BaseHTTPRequestHandler):
    """A node that is ready, takes each question, and ends before it answers."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append(self.path)
        self.close_connection = True

    def log_message(self, *_):
        pass


def check_repetition(cluster):
    """A question that a node has taken goes to another node only if it has a key."""
    with contextlib.ExitStack() as stack:
        taken = []
        for port in cluster.ports:
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", port), Abandoner))
            server.taken = taken
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        proxy = cluster.start_proxy()
        until("readiness of the proxy", lambda: is_ready(cluster.proxy))
        for path, headers, times in [
            ("/api/v1/analyze", {}, 1),
            ("/api/v1/analyze", {"Idempotency-Key": "1"}, 3),
            ("/api/v1/admin/queue/pause", {"Idempotency-Key": "2"}, 1),
        ]:
            taken.clear()
            status, _, problem = ask(cluster.proxy, path, {"query": "Who takes it?"}, **headers)
            assert (status, problem["code"]) == (502, "node_lost") and taken == [path] * times, (status, problem, taken)
        proxy.terminate()
        proxy.wait(PATIENCE_SECONDS)


def check_refusal(cluster):
    """Without a node the proxy itself answers, in the form of the service's errors."""
    status, headers, problem = until("an answer of the proxy", lambda: ask(cluster.proxy, "/api/v1/analyze", {"query": "?"}))
    assert (status, problem["code"], headers["retry-after"]) == (503, "no_node_ready", "1"), (status, problem)
    assert headers["content-type"] == "application/problem+json", headers


def check_address(cluster):
    """What a client says about its address does not count: its wrong tokens are counted together, and apart from others'."""
    def refusal(address, number):
        told = {"X-Forwarded-For": f"203.0.113.{number}", "authorization": "Bearer wrong"}
        return ask(cluster.proxy, "/api/v1/admin/stats", address=address, **told)[0]

    # Each node counts for itself while Redis does not answer.
    wrong = range(WRONG_TOKENS * (NODES + 1) + 1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = set(pool.map(lambda number: refusal(CLIENT_ADDRESS, number), wrong))
    assert answers == {401, 429}, answers
    assert refusal(OTHER_ADDRESS, 1) == 401


def check_stream(cluster):
    """From every node the first half of an answer arrives while Claude has not said the second."""
    claude = cluster.claude
    claude.hold()
    _, _, job = ask(cluster.proxy, "/api/v1/analyze", {"query": "Should we stream?"})
    url = f"http://127.0.0.1:{cluster.proxy}/api/v1/jobs/{job['id']}/events"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as stream:
        events = (line.decode().removeprefix("event: ").strip() for line in stream if line.startswith(b"event: "))
        assert any(event == "progress" for event in events)
        claude.release()
        assert any(event == "done" for event in events)


def check_calls(cluster, calls):
    """All nodes make calls. The dispatcher is stopped while it makes some: others start calls meanwhile, and its own end."""
    cluster.claude.hold()
    jobs = []

    def submit():
        status, _, job = ask(cluster.proxy, "/api/v1/analyze", {"query": f"Number {len(jobs)}?"}, **{"Idempotency-Key": f"n{len(jobs)}"})
        assert status == 202, job
        jobs.append(job["id"])

    def all_call():
        submit()
        return all(int(metric(port, "ceoagent_running_attempts")) > 0 for port in cluster.nodes)

    until("calls of every node", all_call)
    dispatcher, stopped_at = cluster.dispatcher(), time.monotonic()
    others = [port for port in cluster.nodes if port != dispatcher]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stopping = pool.submit(cluster.end, dispatcher, signal.SIGTERM)
        until("another dispatcher", lambda: submit() or any(map(is_dispatcher, others)))
        before = len(calls)
        until("a call by it", lambda: submit() or len(calls) > before)
        last = time.monotonic()
        assert not stopping.done(), "it did not wait for its calls"
        cluster.claude.release()
        assert stopping.result() == 0
    moments = [at for at in calls if stopped_at < at < last]
    pause = max(after - before for before, after in zip([stopped_at, *moments], [*moments, last]))
    for job in jobs:
        ended = until("the end of a job", lambda: has_ended(cluster.proxy, job))
        # Released: the dispatcher stopped between the claim and the call.
        *released, last = [attempt["outcome"] for attempt in ended["attempts"]]
        assert last == "succeeded" and set(released) <= {"released"}, ended
    print(f"{len(jobs)} calls by all nodes and through a stop of the dispatcher; longest pause {pause:.2f} s")
    cluster.start_node(dispatcher)


def check_loss(cluster):
    """Clients ask on while the dispatcher is killed, and while nodes are replaced, which refuses nothing."""
    clients = [Client(cluster.proxy, f"team {number}", number % 2 == 0) for number in range(CLIENTS)]
    count = lambda: sum(len(client.accepted) for client in clients)
    def more(wanted):
        before = count()
        until("the acceptance of questions", lambda: count() >= before + wanted)

    for client in clients:
        client.start()
    more(20)
    killed = cluster.dispatcher()
    cluster.end(killed, signal.SIGKILL)
    more(40)
    cluster.start_node(killed)
    refused = lambda: [refusal for client in clients for refusal in client.refused]
    lost = len(refused())
    for port in [cluster.dispatcher(), killed]:
        code = cluster.end(port, signal.SIGTERM)
        assert code == 0, f"a node that was told to stop ended with {code}"
        cluster.start_node(port)
    more(40)
    assert len(refused()) == lost, f"refused while nodes were replaced, or before: {refused()}"
    for client in clients:
        client.stopped.set()
    for client in clients:
        client.join(PATIENCE_SECONDS)
        assert client.is_done, f"{client.title} failed"
        for job in client.accepted:
            ended = until("the end of a job", lambda: has_ended(cluster.proxy, job))
            assert ended["status"] == "succeeded", ended
    positions = lambda: {metric(port, "ceoagent_feed_position") for port in cluster.nodes}
    until("the same news on all nodes", lambda: len(positions()) == 1 and positions() != {"0"})
    assert all(status in (502, 503) for status, _ in refused()), refused()
    listed = [job["query"] for job in every_job(cluster.proxy) if "plan" in job["query"]]
    # A client was stopped between a question and its repetition at most once.
    assert count() <= len(listed) <= count() + CLIENTS + lost and len(set(listed)) == len(listed), "a question became two jobs"
    gap = max(client.longest_gap for client in clients)
    print(f"{count()} questions through a kill and two stops; none lost, none twice; longest gap {gap:.1f} s; {sorted(set(refused()))}")


def has_ended(proxy, job):
    status, _, answer = ask(proxy, f"/api/v1/jobs/{job}?wait=20")
    return status == 200 and answer["status"] not in ("queued", "scheduled", "running") and answer


def every_job(proxy):
    cursor = ""
    while True:
        status, _, page = ask(proxy, f"/api/v1/admin/jobs?limit=200{cursor}", authorization=f"Bearer {TOKEN}")
        assert status == 200, page
        yield from page["jobs"]
        if not page.get("next_cursor"):
            return
        cursor = f"&cursor={page['next_cursor']}"


def main(binary):
    calls, memo = [], sample("english")
    def answer(_):
        calls.append(time.monotonic())
        return memo

    claude = Claude(answer)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        log = stack.enter_context(open(f"{folder}/log", "w+", encoding="utf-8"))

        def start(command, **options):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        cluster = Cluster(os.path.abspath(binary), folder, claude, start)
        try:
            check_repetition(cluster)
            cluster.start_proxy()
            check_refusal(cluster)
            cluster.start_database()
            cluster.start_redis()
            for port in cluster.ports:
                cluster.start_node(port)
            until("readiness behind the proxy", lambda: is_ready(cluster.proxy))
            check_address(cluster)
            for _ in range(NODES):
                check_stream(cluster)
            check_calls(cluster, calls)
            check_loss(cluster)
        except BaseException:
            log.seek(0)
            sys.stderr.write("".join(log.readlines()[-80:]))
            raise
    print("the cluster behind its proxy: all is well")


main(sys.argv[1])
