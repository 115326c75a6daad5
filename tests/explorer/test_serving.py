"""Who may see the explorer: --auth, --host, --share; and --against a second run. The command as a user types it."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from hostile_rows import rows
from pages import opened, started
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
            said = finish()
            assert WARNING not in said, "the loopback is one's own"
            assert "share=True" not in said, "an option of Gradio, not of ours"
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
        assert "1 id with another question or right answer" in page.locator(".content details.note").inner_text()
        assert page.locator("nav.runs").inner_text().split() == ["first", "second"]
        page.locator(".movers .row").first.click()
        page.wait_for_selector(".card")
        assert page.locator(".card h2").all_inner_texts() == ["first · step 1", "second · step 1"]
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


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_file_in_the_place_of_a_folder_is_said(small, tmp_path, capsys, follow):
    figures, other = small[0].with_suffix(".json"), tmp_path / "x.json"
    for path, told in ((figures, f"which shows both: {small[0]}\n"), (other, "is a file; give the folder of a run")):
        path.write_text("{}")
        assert main([str(path), *follow]) == 2
        assert told in capsys.readouterr().err
        path.unlink()


def test_an_address_that_cannot_be_had_is_said_before_anything_is_loaded(small, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(small[0]), "--port", str(port)]) == 2
    assert f"--port {port}: another program listens there; give another one" in capsys.readouterr().err
    assert main([str(small[0]), "--port", "70000"]) == 2
    assert "a port is a number from 1 to 65535" in capsys.readouterr().err
    assert main([str(small[0]), "--host", "203.0.113.7"]) == 2
    assert "--host 203.0.113.7: cannot listen there" in capsys.readouterr().err


@pytest.mark.slow
def test_follow_waits_for_a_run_that_has_not_begun(page, tmp_path):
    run = tmp_path / "to-come"

    def begin():
        time.sleep(4)
        store = RolloutStore(run)
        time.sleep(2)
        store.write("eval", 0, rows(store, 0, {"a": "one"}))

    threading.Thread(target=begin).start()
    with started(run, "--follow") as (address, finish):
        opened(page, address, "?view=step", ".problems")
        assert f"{run}: no such folder yet; waiting for its first step" in finish()


@pytest.mark.slow
def test_ctrl_c_ends_the_wait(tmp_path):
    command = [sys.executable, "-u", "-m", "sharevl_lite", "view", str(tmp_path / "none"), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "waiting for its first step" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
