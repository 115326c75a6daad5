"""A loopback server that speaks as much of vLLM's protocol as the engine uses, and misbehaves on demand.

It loads an adapter only if it can read the files, "expands" a prompt by looking it up, and answers with responses that
follow from the seed alone. `moods` is what happens to the next requests for tokens, one each: a function that is given
the handler and the honest answer. The real vLLM is met in test_server_engine.py.
"""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GENERATE, LOAD, UNLOAD = "/inference/v1/generate", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class App:
    """What the server is and has seen."""

    def __init__(self, model, end_id):
        self.end_id = end_id
        self.cards = [{"id": model, "root": model, "parent": None, "max_model_len": 128}]
        self.paths = {"/v1/models": {}, GENERATE: {}, LOAD: {}, UNLOAD: {}}
        self.prompts = {}
        """Expanded ids by unexpanded ones."""
        self.documented = True
        self.adapters = {}
        self.moods = []
        self.load_answers = []
        """(status, message) for the next adapters, instead of loading them."""
        self.models_answers = []
        """(status, message) for the next questions what it serves, instead of the models."""
        self.probe_logprob = 0.0
        self.key = None
        self.seen = []
        """(path, body, seconds) of every request."""
        self.delay = 0.0
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def of(self, path):
        return [body for where, body, _ in self.seen if where == path]

    def sampled(self):
        """Requests for responses, without the one-token probes of an adapter."""
        return [body for body in self.of(GENERATE) if "return_token_ids" in body]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    app: App

    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, content in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(content))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status, message, **headers):
        self.send(status, {"error": {"message": message, "code": status}}, **headers)

    def _is_let_in(self, body=None):
        self.app.seen.append((self.path, body, time.monotonic()))
        if self.app.key is None or self.headers.get("Authorization") == f"Bearer {self.app.key}":
            return True
        self.send(401, {"error": "Unauthorized"})
        return False

    def do_GET(self):
        if not self._is_let_in():
            return
        if self.path == "/v1/models" and self.app.models_answers:
            self.fail(*self.app.models_answers.pop(0))
        elif self.path == "/v1/models":
            base = self.app.cards[0]["id"]
            self.send(200, {"data": [*self.app.cards, *({"id": a, "parent": base} for a in self.app.adapters)]})
        elif self.path == "/openapi.json" and self.app.documented:
            self.send(200, {"paths": self.app.paths})
        elif self.path == "/health":
            self.send(200, b"")
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in(body):
            return
        if self.path not in self.app.paths:
            self.send(404, {"detail": "Not Found"})
        elif self.path == LOAD:
            self._load(body)
        elif self.path == UNLOAD:
            known = self.app.adapters.pop(body["lora_name"], None)
            self.send(200, b"removed") if known else self.fail(404, "the adapter cannot be found")
        elif body["model"] not in self.app.adapters:
            self.fail(404, f"The model `{body['model']}` does not exist.")
        else:
            self._generate(body)

    def _load(self, body):
        if self.app.load_answers:
            self.fail(*self.app.load_answers.pop(0))
        elif body["lora_name"] in self.app.adapters:
            self.fail(400, "has already been loaded")
        elif not (Path(body["lora_path"]) / "adapter_model.safetensors").is_file():
            self.fail(404, "no adapter found")
        else:
            self.app.adapters[body["lora_name"]] = body["lora_path"]
            self.send(200, b"added")

    def _generate(self, body):
        with self.app.lock:
            self.app.under_way += 1
            self.app.most_under_way = max(self.app.most_under_way, self.app.under_way)
        try:
            time.sleep(self.app.delay)
            self._answer(body)
        finally:
            with self.app.lock:
                self.app.under_way -= 1

    def _answer(self, body):
        parameters = body["sampling_params"]
        if "allowed_token_ids" in parameters:
            self.send(200, {"choices": [{"logprobs": {"content": [{"logprob": self.app.probe_logprob}]}}]})
            return
        answer = {
            "prompt_token_ids": self.app.prompts[tuple(body["token_ids"])],
            "choices": [
                self._choice(index, [30 + (parameters["seed"] + index * place) % 90 for place in range(1, 4)])
                for index in range(parameters["n"])
            ],
        }
        with self.app.lock:
            mood = self.app.moods.pop(0) if self.app.moods else None
        mood(self, answer) if mood else self.send(200, answer)

    def _choice(self, index, ids):
        ids = [*ids, self.app.end_id]
        content = [{"token": f"token_id:{token}", "logprob": -0.5} for token in ids]
        return {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": "stop"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a handler may be asleep

    def __init__(self, *args):
        self.connections = []
        super().__init__(*args)

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def hang_up(self):
        """A dead server holds no connection either."""
        for connection in self.connections:
            with suppress(OSError):  # closed long ago
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_):
        """Clients that hang up are part of the tests."""


@contextmanager
def serve(app, port=0):
    """Yields the server's base URL; on `port`, or on any that is free."""
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"app": app}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()
