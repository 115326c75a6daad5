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
from moody_server import GENERATE

from sharevl_lite.policy.hf import load_policy
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout import server_client
from sharevl_lite.rollout.engine import Sampling
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.server import ServerRolloutEngine

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_completion_length=32, seed=3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.02)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


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
