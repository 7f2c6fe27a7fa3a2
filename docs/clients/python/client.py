"""Submits a question and waits for its memo, follows QUESTION to its end, and verifies the webhook of that.

    python client.py BASE_URL WEBHOOK_SECRET QUESTION
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import uuid4

from ceoagent_client import Client
from ceoagent_client.api.analysis import analyze, get_job
from ceoagent_client.models import (
    AnalyzeRequest, Depth, Job, JobStatus, Problem, StatusUpdate, TextUpdate, WebhookMessage)
from standardwebhooks import Webhook, WebhookVerificationError

BASE, SECRET, QUESTION = sys.argv[1:]
# Longer than the service holds an answer. With an API key: AuthenticatedClient(..., token=KEY).
client = Client(base_url=BASE, timeout=40)


def submit(query: str, callback_url: str | None = None) -> Job:
    question = AnalyzeRequest(query=query, depth=Depth.BRIEF, callback_url=callback_url)
    # With the key, this request can be repeated after a network error without asking twice.
    answer = analyze.sync(client=client, body=question, idempotency_key=str(uuid4()))
    if isinstance(answer, Problem):
        raise RuntimeError(f"{answer.code}: {answer.detail}")
    return answer


def wait(job: Job) -> Job:
    while job.status in (JobStatus.QUEUED, JobStatus.SCHEDULED, JobStatus.RUNNING):
        job = get_job.sync(job.id, client=client, wait=20)
    return job


def events(job: Job):
    """Each event of the job with its data. A stream lasts less than 30 s, so this connects again until there is no more."""
    seen, event = {}, None
    while True:
        with client.get_httpx_client().stream("GET", job.links.events, headers=seen) as stream:
            if stream.status_code != 200:
                return
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    event = value
                elif field == "id":
                    seen = {"Last-Event-ID": value}
                elif field == "data":
                    yield event, json.loads(value)


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            message = WebhookMessage.from_dict(Webhook(SECRET).verify(body, dict(self.headers)))
            # Callers without an API key share a secret.
            is_accepted = message.data.callback_url == URL
        except WebhookVerificationError:
            is_accepted = False
        self.send_response(204 if is_accepted else 401)
        self.end_headers()
        if is_accepted:
            print("webhook:", message.type_, message.data.id)


receiver = HTTPServer(("127.0.0.1", 0), Receiver)
URL = f"http://127.0.0.1:{receiver.server_port}/hook"
print("memo:", wait(submit("Should we build or buy our CRM?")).result.headline)

job = submit(QUESTION, callback_url=URL)
receiving = threading.Thread(target=receiver.handle_request)
receiving.start()
text = ""
for event, data in events(job):
    if event == "status":
        print("status:", StatusUpdate.from_dict(data).status)
    elif event == "progress":
        update = TextUpdate.from_dict(data)
        text = update.text if update.reset else text + update.text
    elif event == "done":
        print("done:", Job.from_dict(data).status, "after", len(text), "characters")
receiving.join()
