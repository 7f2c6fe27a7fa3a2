"""The client that a generator makes of the OpenAPI document, against the running service.

    PYTHONPATH=FOLDER_OF_CEOAGENT_CLIENT python tests/api/client.py BASE_URL
"""

import os
import sys
from http import HTTPStatus
from uuid import UUID

from ceoagent_client import AuthenticatedClient, Client
from ceoagent_client.api.admin import create_key, list_audit, list_jobs, list_keys, pause_queue, resume_queue
from ceoagent_client.api.analysis import analyze, analyze_batch, cancel_job, get_job, retry_job
from ceoagent_client.api.service import get_health, get_readiness
from ceoagent_client.models import (
    AnalyzeRequest, BatchRequest, FailureCode, Job, JobStatus, KeyRequest, Priority, Problem, Scope,
)

BASE = sys.argv[1]
NOBODYS = UUID("019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70")
# Longer than the service holds any answer.
anyone = Client(base_url=BASE, timeout=40)
admin = AuthenticatedClient(base_url=BASE, token=os.environ["ADMIN_TOKEN"], timeout=40)

assert get_health.sync(client=anyone).status == "ok"
assert get_readiness.sync(client=anyone).status == "ready"

# A question that is waited for has its memo, typed to the bottom.
question = AnalyzeRequest(query="Should we buy or build?", options=["Buy", "Build"], priority=Priority.HIGH)
answer = analyze.sync_detailed(client=anyone, body=question, wait=True, idempotency_key="once")
assert answer.status_code == HTTPStatus.OK, answer
job = answer.parsed
assert isinstance(job, Job) and job.status == JobStatus.SUCCEEDED and job.options == ["Buy", "Build"], job
assert job.result.recommendation and job.usage.output_tokens > 0 and job.attempts[0].number == 1, job
assert answer.headers["Location"] == job.links.self_
again = analyze.sync_detailed(client=anyone, body=question, idempotency_key="once")
assert (again.parsed.id, again.headers["Idempotency-Replayed"]) == (job.id, "true"), again

# It is there to look at, and not sent again to who has it.
seen = get_job.sync_detailed(job.id, client=anyone)
assert (seen.parsed.id, seen.parsed.result.to_dict()) == (job.id, job.result.to_dict()), seen
known = get_job.sync_detailed(job.id, client=anyone, if_none_match=seen.headers["ETag"])
assert known.status_code == HTTPStatus.NOT_MODIFIED, known
listed = list_jobs.sync(client=admin, status=[JobStatus.SUCCEEDED], text="BUY OR", limit=10)
assert [one.id for one in listed.jobs] == [job.id] and listed.total.succeeded >= 1, listed

# Of jobs that wait, one is given up and tried again.
assert pause_queue.sync(client=admin).paused.by == "admin_token"
batch = analyze_batch.sync(client=anyone, body=BatchRequest(requests=[AnalyzeRequest(query="Now?"), question]))
first = batch.jobs[0]
assert first.status == JobStatus.QUEUED and len(batch.jobs) == 2, batch
assert cancel_job.sync(first.id, client=admin).status == JobStatus.CANCELLED
tried = retry_job.sync_detailed(first.id, client=admin)
assert (tried.status_code, tried.parsed.status) == (HTTPStatus.ACCEPTED, JobStatus.QUEUED), tried
deeds = list_audit.sync(client=admin, limit=3).entries
assert [deed.action for deed in deeds] == ["retry", "cancel", "pause"] and deeds[0].jobs == 1, deeds
assert resume_queue.sync(client=admin).paused is None

# Every error is the same kind of thing.
missing = get_job.sync(NOBODYS, client=anyone)
assert isinstance(missing, Problem) and (missing.status, missing.code) == (404, "job_not_found"), missing
wrong = analyze.sync(client=anyone, body=AnalyzeRequest(query=" ", model="a b"))
assert isinstance(wrong, Problem) and [error.field for error in wrong.errors] == ["query", "model"], wrong
assert list_jobs.sync(client=AuthenticatedClient(base_url=BASE, token="wrong")).code == "unauthorized"
refused = analyze.sync(client=anyone, body=AnalyzeRequest(query="Of whom?", model="no-such-model"))
assert isinstance(refused, Problem) and [error.field for error in refused.errors] == ["model"], refused
# Allowed, and unknown to the simulated Claude.
failed = analyze.sync(client=anyone, body=AnalyzeRequest(query="Of whom?", model="claude-fable-5-2"), wait=True)
assert isinstance(failed, Problem) and failed.status == 502, failed
assert failed.job.error.code == FailureCode.MODEL_NOT_FOUND, failed

# A key opens what its scope says, and no more.
key = create_key.sync(client=admin, body=KeyRequest(name="reader", scope=Scope.READ))
reader = AuthenticatedClient(base_url=BASE, token=key.key)
assert analyze.sync(client=reader, body=question).code == "forbidden"
assert list_jobs.sync(client=reader).code == "forbidden"
assert analyze.sync(client=anyone, body=question).status == JobStatus.QUEUED, "the demo stays open"
assert [known.name for known in list_keys.sync(client=admin).keys] == ["reader"]
print("the generated client: all is well")
