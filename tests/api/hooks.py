"""What schemathesis can't know of the service."""

import schemathesis

# An answer can be held for 30 s, of a queue that schemathesis has paused or slowed down: enough to show that it is held.
LONGEST_WAIT = 0.1


@schemathesis.serializer("application/x-ndjson")
def ndjson(_, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(_context, case, _kwargs):
    for part in (case.query, case.body):
        if not isinstance(part, dict):
            continue
        wait = part.get("wait")
        if wait is True or (type(wait) in (int, float) and wait > LONGEST_WAIT):
            part["wait"] = LONGEST_WAIT
