"""A loopback server that speaks as much of the Hub's protocol as uploads of models and `snapshot_download` use.

Create a repository, ask how each file is to be sent (inside the commit, or safetensors by Git LFS where `Hub.lfs` is
set), commit (NDJSON, contents in base64), list and fetch. Only requests that carry the token are served; a repository
of `owner` "nobody" is refused.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

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
        self.status = 507
        """Its status."""
        self.breaking = 0
        """So many requests to come that are no commits are answered with 500."""
        self.private = {}
        self.lfs = False
        self.objects = {}
        """What was uploaded by LFS, by its sha256."""

    def files(self, repo):
        """The repository as it stands."""
        held = {}
        for commit in self.commits.get(repo, []):
            held |= commit["files"]
            for path in commit["deleted"]:
                held.pop(path, None)
        return held


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
        elif self.hub.breaking and parts[-1] == "main" and "commit" not in parts:
            self.hub.breaking -= 1
            self._json({"error": "out of order"}, 500)
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._lfs(json.loads(body))
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            front = json.loads(body)["content"].split("---\n")[1]
            faults = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no mapping"}]
            self._json({"errors": faults, "warnings": []})
        elif parts[:2] == ["api", "models"] and parts[4:] == ["preupload", "main"]:
            self._preupload("/".join(parts[2:4]), json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4:] == ["commit", "main"]:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": "not found"}, 404)

    def do_PUT(self):
        self.hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json({})

    def do_GET(self):
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = parts[0] == "api"
        repo, rest = "/".join(parts[2 * api : 2 * api + 2]), parts[2 * api + 2 :]
        held = self.hub.files(repo)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" or repo not in self.hub.commits:
            self._json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        elif api and rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": path} for path in held]
            private = self.hub.private.get(repo, False)
            self._json({"id": repo, "sha": self._head(repo), "siblings": siblings, "private": private, "tags": []})
        elif api and rest[0] == "tree":
            self._json(
                [{"type": "file", "path": p, "size": len(data), "oid": _git_blob(data)} for p, data in held.items()]
            )
        elif rest[:1] == ["resolve"] and "/".join(rest[2:]) in held:
            data = held["/".join(rest[2:])]
            self.send_response(200)
            for name, value in {
                "Content-Length": len(data),
                "ETag": f'"{_git_blob(data)}"',
                "X-Repo-Commit": self._head(repo),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        else:
            self._json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def _head(self, repo):
        return f"{len(self.hub.commits[repo]):040x}"

    def _lfs(self, wanted):
        url = f"http://{self.headers['Host']}/lfs/"
        self._json(
            {
                "transfer": "basic",
                "objects": [
                    {**file, "actions": {"upload": {"href": url + file["oid"], "header": {}}}}
                    for file in wanted["objects"]
                ],
            }
        )

    def _create(self, wanted):
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if wanted.get("organization") == "nobody":
            self._json({"error": "You don't have the rights to create a model under the namespace nobody"}, 403)
            return
        if repo in self.hub.commits:
            self._json({"error": "You already created this model repo", "url": f"/{repo}"}, 409)
            return
        self.hub.commits[repo] = []
        self.hub.private[repo] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._json({"url": f"http://{self.headers['Host']}/{repo}", "name": repo})

    def _preupload(self, repo, wanted):
        held = self.hub.files(repo)
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if self.hub.lfs and file["path"].endswith(".safetensors") else "regular",
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
            self._json({"error": "the disk is full"}, self.hub.status)
            return
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        files |= {
            line["value"]["path"]: self.hub.objects[line["value"]["oid"]] for line in lines if line["key"] == "lfsFile"
        }
        deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        self.hub.commits[repo].append({"message": header["summary"], "files": files, "deleted": deleted})
        oid = self._head(repo)
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
