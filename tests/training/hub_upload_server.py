"""A loopback server that speaks as much of the Hub's protocol as an upload of small files uses.

Create a repository, ask how each file is to be sent (always inside the commit), commit (NDJSON, contents in base64).
Only requests that carry the token are served; a repository of `owner` "nobody" is refused.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_a_token_of_this_test"


def _git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """What has arrived: the commits of each repository as {path: content}, and every request line."""

    def __init__(self):
        self.commits = {}
        self.requests = []
        self.failing = 0
        """So many commits to come are answered with an error."""

    def files(self, repo):
        """The repository as it stands."""
        return {path: data for commit in self.commits.get(repo, []) for path, data in commit["files"].items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, *args):
        self.hub.requests.append(f"{self.command} {self.path}")

    def _json(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(content))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4:] == ["preupload", "main"]:
            self._preupload("/".join(parts[2:4]), json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4:] == ["commit", "main"]:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": "not found"}, 404)

    def do_GET(self):
        self._json({"error": "not found"}, 404)

    do_HEAD = do_GET

    def _create(self, wanted):
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if wanted.get("organization") == "nobody":
            self._json({"error": "You don't have the rights to create a model under the namespace nobody"}, 403)
            return
        self.hub.commits.setdefault(repo, [])
        self._json({"url": f"http://{self.headers['Host']}/{repo}", "name": repo})

    def _preupload(self, repo, wanted):
        held = self.hub.files(repo)
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "regular",
                        "shouldIgnore": False,
                        "oid": _git_blob(held[file["path"]]) if file["path"] in held else None,
                    }
                    for file in wanted["files"]
                ]
            }
        )

    def _commit(self, repo, lines):
        if self.hub.failing:
            self.hub.failing -= 1
            self._json({"error": "the disk is full"}, 507)
            return
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        self.hub.commits[repo].append({"message": header["summary"], "files": files})
        oid = f"{len(self.hub.commits[repo]):040x}"
        url = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})


@contextmanager
def serve_uploads():
    """Yields the endpoint and the :class:`Hub` as it fills."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
