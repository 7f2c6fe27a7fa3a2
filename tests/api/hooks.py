"""What schemathesis can't know of the service."""

import itertools

import schemathesis
import urllib3.util.connection

# An answer can be held for 30 s, of a queue that schemathesis has paused or slowed down: enough to show that it is held.
LONGEST_WAIT = 0.1

# Fields whose values no schema can tell to be right: nothing may be sent to a callback URL from a test, of the prompts
# there is one version, and of the models only those with a price are allowed. Requests that are meant to be right go
# without them, or hardly any would be.
ONLY_HERE = {"callback_url", "callback_events", "prompt_version", "model"}


# Wrong credentials are limited by address. So that this does not hide what a single try gets, each call is a connection of
# its own, and each of these comes from another loopback address.
ADDRESSES = itertools.cycle(range(1, 255))
connect = urllib3.util.connection.create_connection


def connect_from_elsewhere(address, *args, **kwargs):
    kwargs["source_address"] = (f"127.0.1.{next(ADDRESSES)}", 0)
    return connect(address, *args, **kwargs)


urllib3.util.connection.create_connection = connect_from_elsewhere


@schemathesis.serializer("application/x-ndjson")
def ndjson(_, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(_context, case, _kwargs):
    if case.headers is not None:
        case.headers["Connection"] = "close"
    for part in (case.query, case.body):
        if not isinstance(part, dict):
            continue
        wait = part.get("wait")
        if wait is True or (type(wait) in (int, float) and wait > LONGEST_WAIT):
            part["wait"] = LONGEST_WAIT
    if case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        batch = case.body.get("requests")
        for question in [case.body, *(batch if isinstance(batch, list) else [])]:
            for name in ONLY_HERE:
                if isinstance(question, dict):
                    question.pop(name, None)
