"""What servers go through, and what the engine does about it: nothing is lost, and the message says what to do."""

import asyncio
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from moody_server import GENERATE, LOAD, serve

from sharevl_lite.policy.hf import load_policy
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout import server_client, server_pool
from sharevl_lite.rollout.engine import Sampling
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.server import ServerRolloutEngine

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_completion_length=32, seed=3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.02)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def honest(requests, make_app, policy, recipe):
    """What an undisturbed server answers."""
    with serve(make_app()) as address:
        engine = ServerRolloutEngine(policy, recipe(address))
        responses = engine.sample(requests, SAMPLING)
        engine.close()
    return responses


def status(code, **headers):
    return lambda handler, answer: handler.fail(code, "in a bad mood", **headers)


def hang(handler, answer):
    time.sleep(3.0)


def hang_up(handler, answer):
    handler.connection.shutdown(socket.SHUT_RDWR)


def halfway(handler, answer):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    hang_up(handler, answer)


def page(handler, answer):
    handler.send(200, b"<html>a proxy's page</html>")


def not_packed(handler, answer):
    handler.send(200, b"not gzip at all", Content_Encoding="gzip")


def changed(change):
    """A mood that changes the honest answer."""

    def mood(handler, answer):
        change(answer)
        handler.send(200, answer)

    return mood


aborted = changed(lambda answer: answer["choices"][0].update(finish_reason="abort"))
cut = changed(
    lambda answer: answer["choices"][1]["token_ids"].pop() and answer["choices"][1]["logprobs"]["content"].pop()
)
one_missing = changed(lambda answer: answer["choices"].pop())
no_logprob = changed(lambda answer: answer["choices"][0]["logprobs"]["content"][1].update(logprob=-9999.0))
no_logprobs = changed(lambda answer: answer["choices"][0].update(logprobs=None))
shuffled = changed(lambda answer: answer["choices"].reverse())
elsewhere = changed(lambda answer: answer.pop("prompt_token_ids"))
PASSING = {
    "408": status(408),
    "425": status(425),
    "no gzip": not_packed,
    "500": status(500),
    "503": status(503),
    "hangs up": hang_up,
    "breaks off": halfway,
    "no JSON": page,
    "aborted": aborted,
    "cut": cut,
    "one response missing": one_missing,
    "a log-prob missing": no_logprob,
    "no log-probs": no_logprobs,
    "another form": elsewhere,
}


def test_an_undisturbed_server_is_asked_once_for_each_request(start, url, app, requests, policy):
    responses = start(url).sample(requests, SAMPLING)
    assert [len(block) for block in responses] == [4, 4, 4]
    assert len(app.sampled()) == 3
    assert {len(body.get("content_parts", [])) for body in app.sampled()} == {0, 1, 2}
    for response in (response for block in responses for response in block):
        assert len(response.token_ids) == len(response.logprobs) == 4
        assert response.text == policy.processor.tokenizer.decode(response.token_ids, skip_special_tokens=True)
        assert not response.truncated


@pytest.mark.parametrize("mood", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_outlasted_and_nothing_is_lost(start, url, app, requests, honest, mood):
    app.moods = [mood, mood, mood, mood]
    assert start(url).sample(requests, SAMPLING) == honest
    assert app.moods == []


def test_responses_are_put_in_order(start, url, app, requests, honest):
    app.moods = [shuffled] * 3
    assert start(url).sample(requests, SAMPLING) == honest


@pytest.mark.parametrize(
    ("mood", "told"),
    [
        (status(500), "answered 500: in a bad mood"),
        (page, "answered /inference/v1/generate with something that is not JSON"),
        (not_packed, "answered with something that cannot be unpacked"),
        (hang_up, "cannot be reached"),
        (aborted, "broke a response off after 4 tokens (abort)"),
        (one_missing, "answered with 3 responses, 4 were asked for"),
        (no_logprobs, "answered with something else than responses"),
    ],
)
def test_what_does_not_pass_is_said_with_the_way_out(start, url, app, requests, mood, told):
    app.moods = [mood] * 100
    with pytest.raises(RolloutError) as caught:
        start(url, server_retries=2).sample(requests[:1], SAMPLING)
    message = str(caught.value)
    assert message.startswith("test/0: ")
    assert url in message
    assert told in message
    assert "(3 attempts in " in message
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve" in message
    assert len(app.sampled()) == 3


def test_a_busy_server_is_left_alone_as_long_as_it_asks(start, url, app, requests, honest):
    app.moods = [status(429, Retry_After="1")]
    assert start(url).sample(requests, SAMPLING) == honest
    times = [seconds for path, body, seconds in app.seen if path == GENERATE and "return_token_ids" in body]
    assert max(times) - min(times) >= 1.0


def test_a_server_that_hangs_is_asked_again_when_its_time_is_over(start, url, app, requests, honest):
    app.moods = [hang]
    assert start(url, server_timeout_seconds=0.5).sample(requests, SAMPLING) == honest
    app.moods = [hang, hang]
    with pytest.raises(RolloutError, match=r"did not answer in time \(0.5 s\) \(2 attempts"):
        start(url, server_timeout_seconds=0.5, server_retries=1).sample(requests[:1], SAMPLING)


def test_an_answer_that_drips_is_given_up_when_its_time_is_over(start, url, app, requests, honest):
    ended = []

    def drip(handler, answer):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        try:
            for _ in range(200):
                time.sleep(0.1)
                handler.wfile.write(b" ")
        except OSError:
            ended.append("hung up on")

    app.moods = [drip]
    engine = start(url, server_timeout_seconds=1.0)
    assert engine.sample(requests, SAMPLING) == honest
    deadline = time.monotonic() + 5.0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == ["hung up on"]


def test_a_prompt_that_was_read_otherwise_is_refused_at_once(start, url, app, requests):
    app.moods = [changed(lambda answer: answer["prompt_token_ids"].append(7))]
    with pytest.raises(RolloutError, match=r"test/1: .* read \d+ prompt tokens where the policy reads \d+, and they"):
        start(url).sample(requests[1:2], SAMPLING)
    assert len(app.sampled()) == 1


def test_a_vision_token_is_refused(start, url, app, requests, policy):
    image = policy.config.image_token_id
    app.moods = [changed(lambda answer: answer["choices"][2]["token_ids"].__setitem__(0, image))]
    with pytest.raises(RolloutError, match=rf"drew the vision tokens \[{image}\] although they are banned"):
        start(url).sample(requests[:1], SAMPLING)


def test_a_request_that_the_server_refuses_is_not_repeated(start, url, app, requests):
    app.moods = [status(400)]
    with pytest.raises(RolloutError, match=r"refused a request \(400: in a bad mood"):
        start(url).sample(requests[:1], SAMPLING)
    assert len(app.sampled()) == 1


def test_a_response_may_end_where_its_room_ends(start, url, app, requests):
    """At the length asked for, or at the server's own, where a long prompt leaves less."""
    engine = start(url)
    app.moods = [cut]
    assert engine.sample(requests[:1], replace(SAMPLING, max_completion_length=3))[0][1].truncated
    engine._longest = requests[0].prompt.prefix.ids_P.numel() + 3
    app.moods = [cut]
    assert engine.sample(requests[:1], SAMPLING)[0][1].truncated


def test_greedy_responses_are_one_and_the_same(start, url, app, requests):
    (block,) = start(url).sample(requests[:1], replace(SAMPLING, temperature=0.0))
    assert len(block) == 4
    assert len(set(block)) == 1
    assert app.sampled()[0]["sampling_params"]["n"] == 1


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
        second.moods = [status(503)] * 100
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


def test_no_more_requests_are_under_way_than_the_recipe_says(start, url, app, requests):
    app.delay = 0.05
    many = [replace(requests[2], key=f"many/{number}") for number in range(12)]
    start(url, batch_size=3).sample(many, SAMPLING)
    assert app.most_under_way == 3


def test_an_interrupt_ends_the_wait_at_once(start, url, app, requests):
    app.moods = [hang] * 10
    engine = start(url)
    engine.sync()
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.sample(requests, SAMPLING)
    assert time.monotonic() - started < 2.0
    app.moods = []
    assert len(engine.sample(requests, SAMPLING)) == 3


def test_it_samples_where_a_loop_already_runs(start, url, requests, honest):
    async def notebook():
        return start(url).sample(requests, SAMPLING)

    with ThreadPoolExecutor(1) as apart:  # other tests may have left a loop in this thread
        assert apart.submit(asyncio.run, notebook()).result() == honest


def test_an_adapted_vision_tower_is_refused(recipe):
    adapted = load_policy(load_recipe(DEMO, {"model.lora.target_modules": r".*visual.*qkv"}).model, seed=0)
    with pytest.raises(RolloutError, match="adapts the vision tower"):
        ServerRolloutEngine(adapted, recipe("http://localhost:1/v1"))
