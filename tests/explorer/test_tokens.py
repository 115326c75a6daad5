"""The heat-map of tokens: as they were sampled, and by what another variant makes of them."""

import re
from dataclasses import replace

import pytest
from hostile_rows import rows
from pages import first_problem, opened
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore, read


@pytest.mark.slow
def test_gaps_of_single_tokens_under_another_variant(page, served, trained):
    problem = first_problem(trained)
    address = f"?view=response&step=1&problem={problem}&variant=0&response=1"
    opened(page, served(trained), address, ".tokens")
    assert page.locator(".tabs [aria-current]").inner_text() == "log-prob"
    sampled = page.locator(".token").first.get_attribute("title")
    page.get_by_role("link", name="gap under Q1").click()
    page.wait_for_selector(".tabs [aria-current]:has-text('gap under Q1')")
    assert "under=1" in page.url
    row = next(
        row
        for row in read(trained, steps=[1]).to_pylist()
        if (row["problem_id"], row["variant_index"], row["response_index"]) == (problem, 0, 1)
    )
    source, other = row["scorer_logprobs"]
    gaps = [b - a for a, b in zip(source, other, strict=True)]
    shown = page.locator(".token").evaluate_all("tokens => tokens.map(token => [token.title, token.className])")
    assert len(shown) == len(gaps) > 5
    for (title, kind), gap, a, b in zip(shown, gaps, source, other, strict=True):
        figures = [f"{value:z.3f}".replace("-", "−") for value in (gap, b, a)]
        assert "gap {} nats; {} under Q1, {} under Q0".format(*figures) in title
        assert kind == ("token" if abs(gap) < 0.01 else "token neg" if gap < 0 else "token pos")
    assert shown[0][0] != sampled
    widest = max(gaps, key=abs)
    assert page.locator(".widest b").first.inner_text() == f"{widest:z.2f}".replace("-", "−")
    assert "".join(page.locator(".token").all_text_contents()).startswith(row["text"])
    text = page.locator("#sharevl .content").inner_text()
    page.reload()
    page.wait_for_selector(".tokens")
    assert page.locator("#sharevl .content").inner_text() == text


@pytest.mark.slow
def test_where_there_is_no_gap_it_says_so(page, served, trained):
    opened(
        page, served(trained), f"?view=response&step=1&problem={first_problem(trained)}&variant=1&under=1", ".tokens"
    )
    assert "Q1 is the variant it was sampled under" in page.locator(".note").inner_text()
    assert page.locator(".tabs [aria-current]").inner_text() == "log-prob"
    asked = read(trained, "eval", steps=[0])["problem_id"][0].as_py()
    opened(page, served(trained), f"?view=response&split=eval&step=0&problem={asked}&under=1", ".tokens")
    assert "the response was not scored under variants" in page.locator("#sharevl .content").inner_text()
    assert page.locator(".tabs").count() == 0


def test_a_response_scored_under_its_own_variant_alone(tmp_path):
    """As with `share.trajectories: own`."""
    store = RolloutStore(tmp_path)
    written = rows(store, 1, {"a": "one"})
    own = [
        [values if k == row.variant_index else None for k, values in enumerate(row.scorer_logprobs)] for row in written
    ]
    store.write("train", 1, [replace(row, scorer_logprobs=kept) for row, kept in zip(written, own, strict=True)])
    shown = str(render(Index([tmp_path]), "?view=response&step=1&problem=p-a&under=1"))
    assert "No gap of single tokens: the response was scored under its own variant alone." in shown
    assert "token 1: −0.500 nats" in shown


def byte_tokenizer(target):
    """A tokenizer whose tokens are single bytes, written as a model's `tokenizer.json`; gives the ids of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(target))
    return lambda text: tokenizer.encode(text).ids


def run_of(folder, model, ids=(1, 2)):
    """A run of one response with those token ids."""
    store = RolloutStore(folder)
    (row,) = rows(store, 1, {"a": "one"}, n=1, variants=1)
    likely = [-0.5] * len(ids)
    row = replace(row, token_ids=list(ids), sampling_logprobs=likely, scorer_logprobs=[likely])
    store.write("train", 1, [row])
    (folder / "recipe.yaml").write_text(f"model: {{path: '{model}'}}\n")
    return folder


def tokens_of(run):
    return str(render(Index([run]), "?view=response&step=1&problem=p-a"))


def test_bytes_of_one_character_are_one_piece(tmp_path):
    encode = byte_tokenizer(tmp_path / "tokenizer.json")
    text = "面积 🙂 é = 4"
    shown = tokens_of(run_of(tmp_path, "none/of-it", encode(text)))
    pieces = re.findall(r'<span class="token[^>]*>([^<]*)</span>', shown)
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode())
    assert pieces[:3] == ["", "", "面"]
    cut = run_of(tmp_path / "cut", tmp_path, encode("é🙂")[:-1])
    assert re.findall(r'<span class="token[^>]*>([^<]*)</span>', tokens_of(cut)) == ["", "é", "", "", "\ufffd"]


def test_the_tokenizer_is_looked_for_in_the_run_the_model_and_the_hubs_cache(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    ids = byte_tokenizer(model / "tokenizer.json")("even")
    assert '">e</span>' in tokens_of(run_of(tmp_path / "local", model, ids))
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    run = run_of(tmp_path / "hub-run", "Some/Model-3B", ids)
    assert "Tokens are shown as their numbers: no tokenizer.json in" in tokens_of(run)
    assert "hf download Some/Model-3B tokenizer.json" in tokens_of(run)
    snapshot = cache / "models--Some--Model-3B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    shown = tokens_of(run)
    assert '">e</span>' in shown
    assert "as their numbers" not in shown
    (run / "tokenizer.json").write_text("{}")
    assert "the tokenizer cannot be read" in tokens_of(run)
    elsewhere = run_of(tmp_path / "moved", "/home/someone else/models/x", ids)
    assert "/home/someone else/models/x is no folder here" in tokens_of(elsewhere)


def test_training_keeps_the_tokenizer_in_the_run(trained):
    from tokenizers import Tokenizer

    row = read(trained, steps=[1]).to_pylist()[0]
    kept = Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert kept.decode(row["token_ids"]) == row["text"]


def test_a_response_that_trained_nothing_and_was_not_scored(tmp_path):
    """As with `train.score_skipped: false`."""
    store = RolloutStore(tmp_path)
    unscored = [
        replace(
            row,
            scorers=[replace(scorer, advantage=0.0, mean_logprob=None, gap=None) for scorer in row.scorers],
            scorer_logprobs=[None for _ in row.scorers],
        )
        for row in rows(store, 1, {"a": "one"})
    ]
    store.write("train", 1, unscored)
    index = Index([tmp_path])
    shown = str(render(index, "?view=response&step=1&problem=p-a&under=1"))
    assert "No gap of single tokens: the response trains nothing, and this run scores only what does" in shown
    for cell in ("gap", "advantage"):
        assert "p-a" in str(render(index, f"?view=problem&step=1&problem=p-a&cell={cell}"))
