"""What is found out about servers before anything is loaded, and how long the engine waits for one."""

import socket
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from moody_server import GENERATE, LOAD

from sharevl_lite.config import Recipe
from sharevl_lite.rollout import server_client
from sharevl_lite.rollout.engine import Sampling
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.server import check_servers
from sharevl_lite.rollout.server_client import pause, retry_after

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_completion_length=32, seed=3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.02)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_a_sound_server_passes_the_first_look(recipe, url, app):
    check_servers(recipe(url))
    app.documented = False
    check_servers(recipe(url.removesuffix("/v1")))


def test_a_port_where_nobody_listens(recipe):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(RolloutError, match=r"(?s)cannot be reached.*\(3 attempts in .*--port \d+") as caught:
            check_servers(recipe(url))
    assert url in str(caught.value)


def test_another_model_is_named_with_ours_and_may_be_allowed(recipe, url, app):
    app.cards[0].update(id="qwen", root="/models/qwen")
    with pytest.raises(RolloutError, match=r"serves 'qwen' \(/models/qwen\).*'builtin:digits-vl'.*server_model: qwen;"):
        check_servers(recipe(url))
    check_servers(recipe(url, server_model="qwen"))
    with pytest.raises(RolloutError, match=r"the recipe trains rollout.server_model 'gwen'"):
        check_servers(recipe(url, server_model="gwen"))


def test_a_server_that_reads_too_little(recipe, url, app):
    app.cards[0]["max_model_len"] = 100
    with pytest.raises(RolloutError, match=r"(?s)reads at most 100 tokens; the recipe needs 128 .*--max-model-len 128"):
        check_servers(recipe(url))


@pytest.mark.parametrize("status", [301, 404, 405])
def test_what_is_no_vllm_server(recipe, url, app, status):
    app.models_answers = [(status, "another program")]
    with pytest.raises(RolloutError, match=rf"answers /v1/models with {status}; it is no vLLM server, or the URL is w"):
        check_servers(recipe(url))
    assert len(app.seen) == 1


def test_a_gateway_whose_server_is_not_up_yet_is_asked_again(recipe, url, app):
    app.models_answers = [(502, "no server")]
    check_servers(recipe(url))


@pytest.mark.parametrize(
    ("path", "told"),
    [(GENERATE, "runs without --enable-scale-out"), (LOAD, "without VLLM_ALLOW_RUNTIME_LORA_UPDATING")],
)
def test_a_server_without_what_is_needed(recipe, url, app, path, told):
    del app.paths[path]
    with pytest.raises(RolloutError, match=told):
        check_servers(recipe(url))


def test_the_key_is_sent_and_never_told(recipe, start, url, app, requests, monkeypatch):
    app.key = "secret-of-this-test"
    for wrong in (None, "another-secret"):
        if wrong:
            monkeypatch.setenv("VLLM_API_KEY", wrong)
        with pytest.raises(
            RolloutError, match=r"wants another key \(401\); set the environment variable VLLM_API_KEY"
        ) as e:
            check_servers(recipe(url))
        assert "secret" not in str(e.value)
    monkeypatch.setenv("VLLM_API_KEY", app.key)
    check_servers(recipe(url))
    assert len(start(url).sample(requests, SAMPLING)) == 3


@pytest.mark.parametrize("written", ["{}\n", " {}\r\n"])
def test_a_key_that_came_out_of_a_file_is_sent_without_its_line_end(recipe, url, app, monkeypatch, written):
    app.key = "secret-of-this-test"
    monkeypatch.setenv("VLLM_API_KEY", written.format(app.key))
    check_servers(recipe(url))


@pytest.mark.parametrize("key", ["sécret-of-this-test", "secret\nof-this-test", "secret-of-this\x7f-test"])
def test_a_key_that_cannot_be_sent_is_not_told(recipe, url, app, monkeypatch, key):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(RolloutError, match="VLLM_API_KEY holds characters that no HTTP header may have") as caught:
        check_servers(recipe(url))
    assert "cret" not in "".join(traceback.format_exception(caught.value))
    assert app.seen == []


def test_an_empty_key_is_none(recipe, url, app, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "\n")
    check_servers(recipe(url))
    app.key = "secret-of-this-test"
    with pytest.raises(RolloutError, match="wants another key"):
        check_servers(recipe(url))


def test_what_httpx_says_of_a_header_is_not_told(recipe, url, monkeypatch):
    """Should a key ever come that far: httpx quotes it."""
    monkeypatch.setattr(server_client, "key_in", lambda variable: "secret-of-this-test\n")
    with pytest.raises(RolloutError, match="cannot be asked") as caught:
        check_servers(recipe(url))
    assert "secret" not in "".join(traceback.format_exception(caught.value))


# ---------------------------------------------------------------- pauses


def test_pauses_grow_to_20_seconds_and_differ(monkeypatch):
    monkeypatch.undo()
    for number in range(40):
        longest = min(20.0, 0.5 * 2.0**number)
        drawn = [pause(number) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    assert pause(0, after=7.0) == 7.0
    assert pause(0, after=1e9) == 600.0
    assert sum(min(20.0, 0.5 * 2.0**number) for number in range(Recipe().rollout.server_retries)) * 0.75 > 180


@pytest.mark.parametrize(("header", "seconds"), [(None, None), ("3", 3.0), ("-3", 0.0), ("soon", None), ("", None)])
def test_retry_after_in_seconds(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert retry_after(format_datetime(later, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
