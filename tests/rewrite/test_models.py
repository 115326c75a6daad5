"""Models as rewriters and as the solver check: transformers with the shipped model, endpoints that follow a script."""

import asyncio
import io
import json
import re
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import serve_chat
from PIL import Image
from test_variants_command import answer, data, endpoint, manifest, run

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.data.problem import Problem
from sharevl_lite.rewards.pool import VerifierPool
from sharevl_lite.rewrite.cache import ReplyCache
from sharevl_lite.rewrite.chat import CachedChat
from sharevl_lite.rewrite.check import SolverCheck
from sharevl_lite.rewrite.endpoint import EndpointModel
from sharevl_lite.rewrite.make import Means, Settings, make_variants

PROMPT = "{problem} Think, then box the answer."


def quietly(_):
    """Nothing is said."""


def digits(**changes):
    return Settings(**{"data": "builtin:digits", "limit": 3, "num": 1, "max_tokens": 32, **changes})


def make(settings, out, cache):
    return make_variants(settings, out, Means(cache, say=quietly))


def written(folder):
    return [problem.variants for problem in load_problems(str(folder), DataSection(), split="train").problems]


@pytest.mark.slow
def test_a_real_solver_judges_rewrites_and_is_not_asked_twice(tmp_path):
    """The shipped model knows its own wordings and not all others: some rewrites cost it right answers."""
    settings = digits(num=2, check="hf:builtin:digits-vl", check_samples=3, check_template=PROMPT)
    first = make(settings, tmp_path / "a", tmp_path / "c.sqlite")
    again = make(settings, tmp_path / "b", tmp_path / "c.sqlite")
    assert first["cost"]["check: requests"] == first["cost"]["check: answers"] > 0
    assert (again["cost"]["check: requests"], again["counts"]) == (0, first["counts"])
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert first["counts"]["accepted"] > 0
    assert set(first["rejected_by"]) <= {"solver_disagrees"}


@pytest.mark.slow
def test_replies_do_not_depend_on_the_batch(tmp_path):
    settings = digits(limit=2, rewriter="hf:builtin:digits-vl", max_tokens=16)
    texts = []
    for name, slots in (("one", 1), ("four", 4)):
        made = make_variants(settings, tmp_path / name, Means(tmp_path / f"{name}.sqlite", slots, say=quietly))
        cache = ReplyCache(tmp_path / f"{name}.sqlite")
        texts.append(sorted(cache._base.execute("SELECT key, text FROM replies").fetchall()))
        cache.close()
        # The model was never taught to rewrite: nothing of what it says is a list, and that is counted.
        assert (made["cost"]["unparsable"], made["cost"]["requests"], made["counts"]["accepted"]) == (2, 6, 0)
    assert texts[0] == texts[1]
    assert len({text for _, text in texts[0]}) > 1


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm")
def test_vllm_solves_as_transformers_does(tmp_path):
    found = {}
    for engine in ("vllm", "hf"):
        settings = digits(limit=4, check=f"{engine}:builtin:digits-vl", check_samples=4, check_template=PROMPT)
        found[engine] = make(settings, tmp_path / engine, tmp_path / f"{engine}.sqlite")["cost"]
    assert found["vllm"]["check: answers"] >= 4 * 4 * 2
    assert found["vllm"]["check: answers_unjudged"] == 0
    first_reads = [cost["check: tokens_in"] / cost["check: requests"] for cost in found.values()]
    assert first_reads[0] == pytest.approx(first_reads[1], abs=2.0)  # the same prompts, image tokens included
    assert found["vllm"]["check: unsolved_originals"] < 4


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_says_so(tmp_path):
    told = run("builtin:digits", "--out", tmp_path / "x", "--with", "vllm:some/model", code=2)
    assert "vLLM is not installed" in told
    assert "hf:some/model" in told


def sums(*, right):
    """A solver that is right in the share `right(text)` of its answers, by seed; it never saw the gold answer."""

    def script(number, body):
        text = json.dumps(body)
        assert "1234" not in text
        return 200, {}, "\\boxed{1234}" if body["seed"] < right(text) else "\\boxed{5}", 0.0

    return script


def check(tmp_path, script, texts, *, wanted, gold="1234", timeout=10.0):
    problem = Problem(id="p", text="What is the sum?", images=(), answer=gold)

    async def ask(url):
        cache = ReplyCache(tmp_path / "c.sqlite")
        model = EndpointModel(url, "m", concurrency=4, timeout=10.0)
        solver = SolverCheck(
            CachedChat(model, cache), VerifierPool(1, timeout), samples=4, template="{problem}", max_tokens=9, seed=0
        )
        try:
            return await solver.sift(problem, texts, wanted), solver.cost()
        finally:
            await model.close()
            solver.close()
            cache.close()

    with serve_chat(script) as server:
        return asyncio.run(ask(server.url))


def test_a_rewrite_that_is_solved_less_often_is_rejected_and_a_spare_one_asked(tmp_path):
    shares = {"What is": 2, "Find": 3, "Give": 1, "Tell": 2}
    script = sums(right=lambda text: next(count for words, count in shares.items() if words in text))
    checked, cost = check(tmp_path, script, ["Find the sum.", "Give the sum.", "Tell the sum."], wanted=2)
    assert checked.accepted == ["Find the sum.", "Tell the sum."]
    assert checked.rejected == [("Give the sum.", "solver_disagrees")]
    assert (cost["requests"], cost["unsolved_originals"]) == (16, 0)


def test_an_original_that_is_never_solved_says_nothing_and_is_counted(tmp_path):
    checked, cost = check(tmp_path, sums(right=lambda text: 0), ["Find the sum."], wanted=1)
    assert (checked.accepted, cost["unsolved_originals"]) == (["Find the sum."], 1)


def test_answers_without_a_verdict_are_neither_right_nor_wrong(tmp_path):
    hard = "\\boxed{9^{9^{9^{9}}}}"  # keeps the verifier busy until it is killed

    def script(number, body):
        unclear = body["seed"] > 0 if "What is" in json.dumps(body) else "Find" in json.dumps(body)
        return 200, {}, hard if unclear else "\\boxed{7}", 0.0

    texts = ["Find the sum.", "Give the sum."]
    checked, cost = check(tmp_path, script, texts, wanted=2, gold="7", timeout=1.0)
    assert checked.accepted == ["Give the sum."]
    assert checked.rejected == [("Find the sum.", "solver_unjudged")]
    assert cost["answers_unjudged"] == 3 + 4


def test_failed_requests_are_told_and_asked_again_alone(tmp_path):
    source, out = data(tmp_path, 6), tmp_path / "out"
    with serve_chat(lambda n, body: (400, {}, "{}", 0.0) if "Case 3." in json.dumps(body) else answer(n, body)) as bad:
        told = run(*endpoint(source, out, bad), code=1)
        assert "1 problems had no reply" in told
        assert "HTTP 400" in told
        assert manifest(out)["counts"]["failed"] == 1
    with serve_chat(answer) as server:
        words = [bad.url if word == server.url else word for word in endpoint(source, out, server)]
        words[words.index(bad.url)] = server.url
        again = run(*words, code=2)
        assert "base_url differ" in again  # another port is another server
    saved = json.loads((out / "manifest.json").read_text())
    with serve_chat(answer) as server:
        saved["settings"]["base_url"] = server.url
        (out / "manifest.json").write_text(json.dumps(saved))
        told = run(*endpoint(source, out, server))
        assert "asking 1 problems again" in told
        assert [re.search(r"Case \d", json.dumps(body))[0] for body in server.bodies] == ["Case 3"]
        assert "complete already" in run(*endpoint(source, out, server))
    assert all(len(variants) == 3 for variants in written(out))


def test_a_second_try_without_the_replies_of_the_first_is_refused(tmp_path):
    source, out = data(tmp_path, 2), tmp_path / "out"
    with serve_chat(lambda n, body: (400, {}, "{}", 0.0)) as server:
        run(*endpoint(source, out, server), code=1)
        (tmp_path / "out.cache.sqlite").unlink()
        assert "paid for again" in run(*endpoint(source, out, server), code=2)


def picture(colour, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


def test_problems_with_several_images_keep_order_and_form(tmp_path):
    (tmp_path / "red.png").write_bytes(picture("red", "PNG"))
    red, blue = picture("red", "PNG"), picture("blue", "JPEG")
    text = "<image>Compare it with <image>. What is the sum of the two values?"
    rows = [
        {"problem": text, "images": [{"bytes": red, "path": None}, {"bytes": blue, "path": None}], "answer": "1"},
        {"problem": text, "images": [{"bytes": blue, "path": None}, {"bytes": None, "path": "red.png"}], "answer": "2"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    asked = []

    def script(number, body):
        content = body["messages"][0]["content"]
        asked.append([part["type"] for part in content])
        question = content[-1]["text"]
        assert "Compare it with [image]." in question
        assert "<image>" not in question
        return (
            200,
            {},
            json.dumps(["Compare it with [image]. Find the sum of the two values.", "No images at all."]),
            0.0,
        )

    with serve_chat(script) as server:
        run(*endpoint(tmp_path / "p.parquet", tmp_path / "out", server))
    assert asked == [["image_url", "image_url", "text"]] * 2
    problems = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    kept = "<image>Compare it with <image>. Find the sum of the two values."
    assert [problem.variants for problem in problems] == [(kept,), (kept,)]
    colours = [[image.getpixel((5, 5))[::2] for image in problem.images] for problem in problems]
    assert colours == [[(255, 0), (0, 254)], [(0, 254), (255, 0)]]
    assert "placeholders" in manifest(tmp_path / "out")["rejected_by"]


@pytest.mark.parametrize("form", ["path", "bytes", "struct", "pil"])
def test_image_cells_of_every_form_come_back(tmp_path, form):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    (tmp_path / "red.png").write_bytes(picture("red", "PNG"))
    row = {"problem": "<image>What is the sum?", "answer": "1"}
    source = tmp_path / f"{form}.parquet"
    if form == "pil":
        features = Features({"problem": Value("string"), "answer": Value("string"), "images": List(ImageFeature())})
        cells = {name: [value] for name, value in row.items()} | {"images": [[Image.new("RGB", (40, 30), "red")]]}
        Dataset.from_dict(cells, features=features).to_parquet(str(source))
    else:
        data_ = picture("red", "PNG")
        cell = {"path": "red.png", "bytes": data_, "struct": {"bytes": data_, "path": None}}[form]
        pq.write_table(pa.Table.from_pylist([{**row, "images": [cell]}]), source)
    make_variants(Settings(str(source), num=2), tmp_path / "out", Means(say=quietly))
    (problem,) = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert problem.images[0].size == (40, 30)
    assert problem.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert len(problem.variants) == 2
