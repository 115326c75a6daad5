"""How the adapter of an update reaches the servers and leaves them, whatever they go through meanwhile."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from moody_server import LOAD, serve

from sharevl_lite.rollout import server_client, server_pool
from sharevl_lite.rollout.engine import Sampling
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.server import ServerRolloutEngine

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_completion_length=32, seed=3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.02)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_a_restarted_server_gets_the_adapter_again_once(start, url, app, requests, honest):
    engine = start(url)
    engine.sync()
    app.adapters.clear()
    assert engine.sample(requests, SAMPLING) == honest
    assert [body["lora_name"] for body in app.of(LOAD)] == [engine._name] * 2


def test_a_gateway_may_answer_404_and_502_while_its_server_is_restarted(start, url, app, requests, honest):
    engine = start(url, server_retries=3)
    engine.sync()
    app.adapters.clear()
    app.models_answers = [(404, "no backend"), (502, "no backend"), (307, "elsewhere")]
    assert engine.sample(requests, SAMPLING) == honest
    app.models_answers = [(404, "no backend")]
    engine.sync()
    app.models_answers = [(404, "no backend")] * 100
    with pytest.raises(RolloutError, match=r"answers /v1/models with 404; .* \(4 attempts in "):
        engine.sync()


def test_a_server_that_comes_back_with_another_model_is_refused(start, url, app, requests):
    engine = start(url)
    engine.sync()
    app.adapters.clear()
    app.cards[0].update(id="other", root="other")
    with pytest.raises(RolloutError, match=r"serves 'other', the recipe trains model.path 'builtin:digits-vl'"):
        engine.sample(requests, SAMPLING)


def test_every_sync_has_a_name_of_its_own_and_leaves_nothing_of_the_last(start, url, app, tmp_path):
    engine = start(url)
    names = []
    for _ in range(3):
        engine.sync()
        names.append(engine._name)
        assert list(app.adapters) == [engine._name]
        assert [folder.name for folder in (tmp_path / "digits_cpu" / "served").iterdir()] == [engine._name]
    assert len(set(names)) == 3
    other = start(url)
    other.sync()
    assert other._name not in names


def test_the_adapters_folder_can_be_a_shared_one(policy, recipe, url, app, tmp_path):
    engine = ServerRolloutEngine(policy, recipe(url, server_adapter_dir=str(tmp_path / "shared")))
    engine.sync()
    (folder,) = app.adapters.values()
    assert Path(folder).parent == tmp_path / "shared"
    engine.close()
    assert app.adapters == {}
    assert list((tmp_path / "shared").iterdir()) == []


def test_what_a_killed_run_left_is_removed(start, url, tmp_path):
    left = tmp_path / "digits_cpu" / "served" / "digits_cpu-0badcafe-7"
    left.mkdir(parents=True)
    start(url)
    assert not left.exists()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((400, "LoRA is off"), "400: LoRA is off"),
        ((404, "no adapter found"), "404: no adapter found"),
        ((500, "LoRA rank 16 is greater than max_lora_rank 8"), "answered 500: LoRA rank 16 is greater than"),
    ],
)
def test_an_adapter_that_does_not_load_is_said_with_the_way_out(start, url, app, tmp_path, answer, told):
    app.load_answers = [answer]
    with pytest.raises(RolloutError) as caught:
        start(url).sync()
    message = str(caught.value)
    assert "did not load the adapter in " in message
    assert told in message
    assert "rollout.server_adapter_dir" in message
    assert "--enable-lora --max-lora-rank 16" in message
    assert len(app.of(LOAD)) == 1
    assert not list(tmp_path.rglob("adapter_model.safetensors")), "nobody takes it away later"


def test_an_adapter_is_offered_again_to_a_busy_server(start, url, app):
    app.load_answers = [(429, "busy"), (503, "not yet")]
    engine = start(url)
    engine.sync()
    assert list(app.adapters) == [engine._name]
    assert len(app.of(LOAD)) == 3


def test_an_adapter_that_another_process_loaded_first_is_taken(start, url, app, monkeypatch):
    """Between this process's look at the models and its own request to load."""
    engine = start(url)
    honest_check = engine._pool._check_model

    def beaten(server, cards):
        honest_check(server, cards)
        app.adapters[f"{engine._prefix}-1"] = "loaded by the other one"

    monkeypatch.setattr(engine._pool, "_check_model", beaten)
    engine.sync()
    assert len(app.of(LOAD)) == 1


def test_log_probs_of_another_distribution_are_noticed(start, url, app):
    app.probe_logprob = -2.3
    with pytest.raises(
        RolloutError, match=r"(?s)log-probs of another distribution.*--logprobs-mode processed_logprobs"
    ):
        start(url).sync()


def test_requests_are_spread_and_one_server_stands_in_for_another(start, make_app, requests, honest):
    first, second = make_app(), make_app()
    with serve(first) as one, serve(second) as two:
        engine = start(one, two)
        assert engine.sample(requests, SAMPLING) == honest
        assert (len(first.sampled()), len(second.sampled())) == (2, 1)
        second.moods = [lambda handler, answer: handler.fail(503, "in a bad mood")] * 100
        assert engine.sample(requests, SAMPLING) == honest
        assert (len(first.sampled()), len(second.sampled())) == (5, 2)


def test_an_update_does_not_wait_for_a_dead_server_and_it_gets_the_adapter_when_it_is_back(
    start, make_app, requests, honest, caplog
):
    first, second = make_app(), make_app()
    with serve(second) as two:
        with serve(first) as one:
            engine = start(one, two)
            engine.sync()
        started = time.monotonic()
        for _ in range(2):
            engine.sync()
            assert list(second.adapters) == [engine._name]
            assert engine.sample(requests, SAMPLING) == honest
        assert time.monotonic() - started < 30.0, "retries would go on for minutes"
        (told,) = (record.getMessage() for record in caplog.records if "left out" in record.message)
        assert one in told
        first.adapters.clear()
        with serve(first, int(one.removesuffix("/v1").rpartition(":")[2])):
            assert engine.sample(requests, SAMPLING) == honest
            assert list(first.adapters) == [engine._name]
            engine.sync()
            assert list(first.adapters) == list(second.adapters) == [engine._name]


def test_an_update_does_not_wait_for_a_server_that_hangs(start, url, app, requests, honest, monkeypatch, caplog):
    monkeypatch.setattr(server_pool, "STRAGGLER_SECONDS", 0.3)
    monkeypatch.setattr(server_pool, "UNLOAD_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = start(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", url, server_timeout_seconds=60.0)
        started = time.monotonic()
        engine.sync()
        assert time.monotonic() - started < 30.0
        assert "has not taken the adapter 0.3 s after another did" in caplog.text
        assert list(app.adapters) == [engine._name]


def test_an_update_ends_where_no_server_takes_the_adapter_or_one_refuses_it(start, make_app):
    first, second = make_app(), make_app()
    with serve(first) as one, serve(second) as two:
        engine = start(one, two, server_retries=4)
        first.load_answers, second.load_answers = [(503, "not yet")] * 5, [(503, "not yet")] * 5
        with pytest.raises(RolloutError, match=r"handing the adapter over: .* answered 503: not yet \(5 attempts in"):
            engine.sync()
        second.load_answers = [(400, "LoRA is off")]
        with pytest.raises(RolloutError, match=r"did not load the adapter in .*400: LoRA is off"):
            engine.sync()


def test_an_interrupted_update_leaves_no_adapter(start, url, app, tmp_path):
    """While the server is asked for the first token; the adapter is loaded, and nobody will know its name."""
    engine = start(url)
    engine.sync()
    app.delay = 5.0

    def interrupt():
        while app.under_way == 0:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine.sync()
    assert [body["lora_name"] for body in app.of(LOAD)] == [f"{engine._prefix}-1", f"{engine._prefix}-2"]
    assert list(app.adapters) == [engine._name] == [f"{engine._prefix}-1"]
    assert [folder.name for folder in (tmp_path / "digits_cpu" / "served").iterdir()] == [engine._name]
    app.delay = 0.0


def test_an_adapter_that_one_server_refuses_is_taken_from_all(start, make_app, tmp_path):
    first, second = make_app(), make_app()
    second.probe_logprob, second.delay = -2.3, 0.5  # the first has it by then
    with serve(first) as one, serve(second) as two:
        with pytest.raises(RolloutError, match="log-probs of another distribution"):
            start(one, two).sync()
        assert len(first.of(LOAD)) == len(second.of(LOAD)) == 1
        assert first.adapters == second.adapters == {}
    assert not list(tmp_path.rglob("adapter_model.safetensors"))
