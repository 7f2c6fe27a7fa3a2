"""The official SDK against the simulator: check.py BASE_URL. The test that runs it has scripted the answers in this order."""

import sys

import anthropic
from anthropic import Anthropic

BASE_URL = sys.argv[1]
QUESTION = [{"role": "user", "content": "<question>Buy or build?</question>"}]
CALL = {"model": "claude-sonnet-5-5", "max_tokens": 8000, "messages": QUESTION}


def client(max_retries=0):
    # Strict: every field that the SDK knows must be there and of the right type.
    return Anthropic(base_url=BASE_URL, api_key="sk-sdk", max_retries=max_retries, _strict_response_validation=True)


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def raises(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} is not exactly {kind}"
        return error
    raise AssertionError(f"no {kind.__name__}")


sdk = client()

# Messages: whole, with a thinking block, refused, cut, structured.
message = sdk.messages.create(**CALL)
assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn"), message
assert message._request_id.startswith("req_sim_") and "SIMULATED" in text_of(message)
assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0
message = sdk.messages.create(**CALL)
assert [block.type for block in message.content] == ["thinking", "text"], message
message = sdk.messages.create(**CALL)
assert message.stop_reason == "refusal" and message.stop_details.category == "general_harms", message
message = sdk.messages.create(**CALL)
assert message.stop_reason == "max_tokens", message
SCHEMA = {"type": "object", "additionalProperties": False, "properties": {"a": {"type": "string"}}, "required": ["a"]}
message = sdk.messages.create(
    **CALL,
    system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
)
assert text_of(message).startswith("{"), message

# Streaming: whole, with a thinking block, broken off with an error event.
for kinds in [["text"], ["thinking", "text"]]:
    with sdk.messages.stream(**CALL) as stream:
        heard = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert heard == text_of(message) and [block.type for block in message.content] == kinds, message
    assert message.usage.output_tokens > 100 and message.stop_reason == "end_turn", message
events = [event.type for event in sdk.messages.create(**CALL, stream=True)]
assert events[0] == "message_start" and events[-1] == "message_stop", events


def broken():
    with sdk.messages.stream(**CALL) as stream:
        stream.until_done()


assert "overloaded_error" in str(raises(anthropic.APIStatusError, broken))

# Errors: each status is the SDK's own class, with the type and the id of the request.
for kind, status in [
    (anthropic.BadRequestError, 400),
    (anthropic.AuthenticationError, 401),
    (anthropic.PermissionDeniedError, 403),
    (anthropic.NotFoundError, 404),
    (anthropic.ConflictError, 409),
    (anthropic.RateLimitError, 429),
    (anthropic.InternalServerError, 500),
]:
    error = raises(kind, lambda: sdk.messages.create(**CALL))
    assert error.status_code == status and error.request_id.startswith("req_sim_"), error
    assert error.body["error"]["message"] == f"simulated {status}", error.body
error = raises(anthropic.BadRequestError, lambda: sdk.messages.create(**{**CALL, "messages": []}))
assert "at least one message" in str(error), error

# Retries, as the SDK decides on them: twice after a 500 and a 529, by retry-after-ms; not where the server says no.
message = client(max_retries=2).messages.create(**CALL)
assert message.stop_reason == "end_turn", message
raises(anthropic.InternalServerError, lambda: client(max_retries=2).messages.create(**CALL))
message = client(max_retries=1).messages.create(**CALL)
assert message.stop_reason == "end_turn", message

# Models and tokens.
model = sdk.models.retrieve("claude-sonnet-5-5")
assert (model.id, model.lifecycle) == ("claude-sonnet-5-5", "active"), model
assert sdk.models.retrieve("claude-3-5-sonnet-20241022").lifecycle == "retired"
raises(anthropic.NotFoundError, lambda: sdk.models.retrieve("claude-9"))
assert "claude-haiku-5-5" in [model.id for model in sdk.models.list()]
assert sdk.messages.count_tokens(model=CALL["model"], messages=QUESTION).input_tokens > 5
