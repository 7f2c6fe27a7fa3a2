"""A Claude whose answers a test holds in the middle and lets go on: it streams half of the answer, waits, streams the rest."""

import http.server
import json
import threading

PIECE = 60
# Limits that no test reaches, however fast its machine asks.
PER_MINUTE = 100_000_000
ACTIONS = ("do", "do_if", "pilot", "wait")


def sample(name):
    with open(f"src/analysis/samples/{name}.json", encoding="utf-8") as file:
        return json.load(file)


def with_texts(value, text, key=""):
    """The same memo, saying `text` wherever the model may write what it likes."""
    if isinstance(value, dict):
        return {name: with_texts(item, text, name) for name, item in value.items()}
    if isinstance(value, list):
        return [with_texts(item, text, key) for item in value]
    words = (
        "id", "language", "kind", "status", "source", "origin", "likelihood", "impact", "action", "reversibility",
        "flips_to", "failed_musts",
    )
    is_word = key in words and key != "action" or key.endswith("_id") or value in ACTIONS
    return value if is_word or not isinstance(value, str) else text


class Claude:
    """`answers` gives the memo for a prompt, or none for one that is refused as a bad request."""

    def __init__(self, answers):
        self.answers = answers
        self.released = threading.Event()
        self.released.set()
        self.halves = threading.Semaphore(0)
        handler = type("Handler", (Handler,), {"claude": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def hold(self):
        """Answers stop at half from now on."""
        self.released.clear()

    def release(self):
        """Those that are held go on, and all others come whole."""
        self.released.set()

    def wait_for_half(self, patience):
        assert self.halves.acquire(timeout=patience), "no answer came to its half"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.reply(200, {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        memo = self.claude.answers(request["messages"][0]["content"])
        if memo is None:
            error = {"type": "invalid_request_error", "message": "this question is not understood"}
            return self.reply(400, {"type": "error", "error": error})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        for limit in ("requests", "input-tokens", "output-tokens"):
            self.send_header(f"anthropic-ratelimit-{limit}-limit", PER_MINUTE)
        self.end_headers()
        try:
            self.stream(request["model"], json.dumps(memo, ensure_ascii=False))
        except OSError:
            pass  # The service was stopped meanwhile.

    def stream(self, model, text):
        usage = {"input_tokens": 2310, "output_tokens": 1}
        self.event("message_start", {"message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": usage,
        }})
        self.event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
        pieces = [text[at:at + PIECE] for at in range(0, len(text), PIECE)]
        for place, piece in enumerate(pieces):
            if place == len(pieces) // 2 and not self.claude.released.is_set():
                self.claude.halves.release()
                self.claude.released.wait()
            self.event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}})
        self.event("content_block_stop", {"index": 0})
        self.event("message_delta", {
            "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2874},
        })
        self.event("message_stop", {})

    def event(self, name, data):
        self.wfile.write(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode())
        self.wfile.flush()
