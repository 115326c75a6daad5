"""Who may see the explorer: --auth, --host, --share; and --against a second run. The command as a user types it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest
from hostile_rows import rows
from pages import opened
from sharevl_explorer.command import main

from sharevl_lite.store import RolloutStore

WARNING = "lets others read the run without a password; see --auth"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two runs that asked the same problem b, and under the id a different ones."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("first", "second")]
    for number, folder in enumerate(folders):
        store = RolloutStore(folder)
        store.write("train", 1, rows(store, 1, {"a": f"one {number}", "b": "two"}))
    return folders


@contextmanager
def started(*words, **environment):
    """The command in a process of its own; gives its address and a function that ends it and returns its output."""
    command = [sys.executable, "-u", "-m", "sharevl_lite", "view", *map(str, words)]
    changed = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=changed) as process:
        said, ready = [], threading.Event()

        def listen():
            for line in process.stdout:
                said.append(line)
                if "Running on local URL" in line or "error" in line.lower():
                    ready.set()
            ready.set()

        listener = threading.Thread(target=listen)
        listener.start()

        def finish():
            process.terminate()
            listener.join(30)
            return "".join(said)

        try:
            assert ready.wait(60)
            found = re.search(r"Running on local URL:\s+http://[^:]+:(\d+)", "".join(said))
            assert found, "".join(said)
            yield f"http://127.0.0.1:{found[1]}/", finish
        finally:
            process.kill()


def answered(address, opener=None, data=None):
    """Status and text of a request; redirects are followed."""
    kind = "application/json" if data and data.startswith(b"{") else "application/x-www-form-urlencoded"
    request = urllib.request.Request(address, data, {"Content-Type": kind} if data else {})
    try:
        with (opener or urllib.request.build_opener()).open(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.mark.slow
def test_with_auth_nothing_is_told_without_the_login(small):
    image = next((small[0] / "images").glob("*.png"))
    asked = {"data": "", "component_id": 1, "fn_name": "view", "session_hash": "s"}
    with started(small[0], "--auth", "ann:a secret", "--host", "0.0.0.0") as (address, finish):
        view = address + "gradio_api/component_server"
        closed = (
            answered(address + "config"),
            answered(view, data=json.dumps(asked).encode()),
            answered(view, data=json.dumps({**asked, "fn_name": "attempt", "data": {}}).encode()),
            answered(f"{address}run-image/0/{image.name}"),
        )
        assert [status for status, _ in closed] == [401] * 4
        assert not any("p-a" in text or "groups per step" in text.lower() for _, text in closed)
        login = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        for password, status in (("wrong", 400), ("a secret", 200)):
            form = urllib.parse.urlencode({"username": "ann", "password": password}).encode()
            assert answered(address + "login", login, form)[0] == status
        config = json.loads(answered(address + "config", login)[1])
        asked["component_id"] = next(part["id"] for part in config["components"] if part["type"] == "html")
        status, text = answered(view, login, json.dumps(asked).encode())
        assert status == 200
        assert "Groups per step" in text
        assert answered(f"{address}run-image/0/{image.name}", login)[0] == 200
        assert WARNING not in finish(), "a password was set"


@pytest.mark.slow
def test_share_asks_for_a_link_and_a_failure_is_a_message(small, tmp_path):
    """The service that hands out links is one of ours here, on the loopback, and it refuses."""
    asked = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        (tmp_path / "sitecustomize.py").write_text(
            "import gradio.networking\n"
            f"gradio.networking.GRADIO_API_SERVER = 'http://127.0.0.1:{service.server_port}/tunnel'\n"
        )
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])])
        with started(small[0], PYTHONPATH=path) as (address, finish):
            assert answered(address + "config")[0] == 200
            assert WARNING not in finish(), "the loopback is one's own"
        assert asked == []
        with started(small[0], "--share", PYTHONPATH=path) as (address, finish):
            deadline = time.monotonic() + 30
            while not asked and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1)
            assert answered(address + "config")[0] == 200, "the app goes on without the link"
            said = finish()
        service.shutdown()
    assert asked == ["/tunnel"]
    assert f"a public link {WARNING}" in said
    assert "Could not create share link" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_against_compares_two_runs_and_another_host_is_warned_about(page, small):
    with started(small[0], "--against", small[1], "--host", "0.0.0.0") as (address, finish):
        opened(page, address, "?view=compare", ".movers")
        assert page.locator(".movers li").count() == 1
        assert "1 id with another question or right answer" in page.locator("section details.note").inner_text()
        assert page.locator("header.bar nav").inner_text().split()[-2:] == ["first", "second"]
        page.locator(".movers .row").first.click()
        page.wait_for_selector(".card")
        assert page.locator(".card h3").all_inner_texts() == ["first · step 1", "second · step 1"]
        opened(page, address, "?view=compare&problem=p-a", ".card")
        assert "different problems under this id" in page.locator(".note").inner_text()
        texts = page.locator(".card").all_inner_texts()
        assert "one 0" in texts[0]
        assert "one 1" in texts[1]
        opened(page, address, "?view=step&run=1&step=1", ".problems")
        assert page.locator(".trail").inner_text().startswith("second")
        assert f"0.0.0.0 {WARNING}" in finish()


def test_what_cannot_be_served_is_said(small, tmp_path, capsys):
    for words, message in (
        (["--auth", "nobody"], "--auth: give USER:PASSWORD"),
        (["--against", str(tmp_path / "none")], "no such run folder"),
    ):
        assert main([str(small[0]), *words]) == 2
        assert message in capsys.readouterr().err
