"""A loopback server that speaks as much of the Hub's protocol as `datasets.load_dataset` uses.

It serves the files under a folder as dataset repositories `owner/name`, each with one commit.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    root: Path
    requests: list[str]

    def log_message(self, *args):
        self.requests.append(f"{self.command} {self.path}")

    def _send(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _not_found(self, code):
        self._send(404, b'{"error":"not found"}', {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _entry(self, repo, file):
        path = file.relative_to(repo).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": _oid(path.encode())}
        data = file.read_bytes()
        return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}

    def _entries(self, repo):
        return [self._entry(repo, file) for file in sorted(repo.rglob("*")) if file.is_file()]

    def _tree(self, repo, folder):
        """What lies in a folder, or with `recursive` all below it."""
        asked = parse_qs(urlsplit(self.path).query)
        inside = sorted(folder.glob("**/*" if asked.get("recursive", [""])[0].lower() in ("true", "1") else "*"))
        return [self._entry(repo, path) for path in inside]

    def _api(self, repo, name, rest):
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": entry["path"]} for entry in self._entries(repo)]
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0})
        elif rest[0] == "tree":
            self._json(self._tree(repo, repo / "/".join(rest[2:])))
        elif rest[0] == "paths-info":
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            self._json([e for e in self._entries(repo) if e["path"] in paths])
        else:
            self._not_found("EntryNotFound")

    def _serve(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        kind, owner, name, *rest = [*parts[api:], "", "", ""]
        rest = [part for part in rest if part]
        repo = self.root / owner / name
        if kind != "datasets" or not owner or not name or not repo.is_dir():
            self._not_found("RepoNotFound")
        elif api:
            self._api(repo, f"{owner}/{name}", rest)
        elif rest[:1] == ["resolve"] and (repo / "/".join(rest[2:])).is_file():
            data = (repo / "/".join(rest[2:])).read_bytes()
            self._send(200, data, {"ETag": f'"{_oid(data)}"', "Content-Type": "application/octet-stream"})
        else:
            self._not_found("EntryNotFound")

    do_GET = do_HEAD = do_POST = _serve


@contextmanager
def serve_hub(root: Path):
    """Serve the repositories under `root`; yields the endpoint and the list of requests as it grows."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
