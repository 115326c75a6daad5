"""One file without a server: it opens, shows its images, holds each once, and no script."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hostile_rows import HOSTILE, rows
from pages import first_problem
from PIL import Image
from sharevl_explorer.command import main

from sharevl_lite.store import RolloutStore


def colours(locator):
    """How many colours an element shows."""
    return len(Image.open(io.BytesIO(locator.screenshot())).convert("RGB").getcolors(2**24))


@pytest.mark.slow
def test_an_exported_file_opens_without_a_server(page, hostile, trained, tmp_path):
    target = tmp_path / "out.html"
    chosen = first_problem(trained, 2)
    assert main([str(trained), "--export", str(target), "--problem", chosen]) == 0
    page.goto(target.as_uri())
    assert page.locator(".matrix tbody tr").count() == 6
    for place in range(2):
        assert colours(page.locator(".card svg.picture").nth(place)) > 30, "a scan of two digits has many greys"
    page.locator(".matrix .row").first.click()
    assert not page.locator(".tokens").first.is_visible()
    page.locator(".map summary").first.click()
    assert page.locator(".tokens").first.is_visible()
    assert colours(page.locator(".asked svg.picture").first) > 30
    ground = "getComputedStyle(document.querySelector('#sharevl')).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    assert main([str(hostile), "--export", str(target), "--step", "1"]) == 0
    page.goto(target.as_uri())
    assert page.evaluate("window.hacked") is None
    assert page.locator(".matrix").count() == len(HOSTILE)
    assert "<script" not in target.read_text().lower()
    assert "No gap" not in target.read_text(), "a file shows tokens as they were sampled, and says nothing else"


def test_an_image_stands_once_in_a_file_however_often_it_is_shown(tmp_path):
    """Two problems of twelve responses over one image: 28 places and the large one, one copy."""
    store = RolloutStore(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    sha = store.put_image(Image.fromarray(noise))
    written = rows(store, 1, {"a": "one", "b": "two"}, n=6)
    store.write("train", 1, [replace(row, image_sha=[sha]) for row in written])
    target = tmp_path / "out.html"
    assert main([str(tmp_path / "run"), "--export", str(target)]) == 0
    text = target.read_text()
    encoded = 4 * (tmp_path / "run" / "images" / f"{sha}.png").stat().st_size // 3
    assert text.count("data:image/png;base64") == 1
    assert len(re.findall(f'href="#image-{sha}"', text)) == 2 * (2 + 12) + 1
    assert encoded > 150_000
    assert len(text) < 1.8 * encoded


def test_tokens_of_one_shade_are_one_element(tmp_path):
    """Certain ones have none; what is told of several is between which log-probs they lie."""
    store = RolloutStore(tmp_path / "run")
    (row,) = rows(store, 1, {"a": "one"}, n=1, variants=1)
    likely = [0.0, -0.01, -0.09, -1.0, -1.05, -0.98, -3.0, None, None, -0.02, -9.0, -6.0]
    row = replace(row, token_ids=list(range(12)), sampling_logprobs=likely, scorer_logprobs=None)
    store.write("train", 1, [row])
    target = tmp_path / "out.html"
    assert main([str(tmp_path / "run"), "--export", str(target)]) == 0
    (shown,) = re.findall(r'<p class="tokens"[^>]*>(.*?)</p>', target.read_text())
    assert re.findall(r"--v:(\d+)%[^>]*title=\"([^\"]*)\">([^<]*)<", shown) == [
        ("20", "3 tokens: −1.050 to −0.980 nats", "3 4 5 "),
        ("60", "token 6: −3.000 nats", "6 "),
        ("0", "2 tokens: not known", "7 8 "),
        ("100", "2 tokens: −9.000 to −6.000 nats", "10 11 "),
    ]
    assert re.sub("<[^>]*>", "", shown) == "".join(f"{token} " for token in range(12)), "each stands where it stood"


def test_an_image_that_is_missing_or_damaged_leaves_a_frame(tmp_path):
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    target, (image,) = tmp_path / "out.html", (tmp_path / "run" / "images").glob("*.png")
    for harm in (lambda: image.write_bytes(b"no image"), image.unlink):
        harm()
        assert main([str(tmp_path / "run"), "--export", str(target)]) == 0
        assert target.read_text().count("image missing") == 2 + 4


def test_a_file_that_cannot_be_written_is_said(tmp_path, capsys):
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    for target, message in (
        (tmp_path / "none" / "out.html", "there is no folder"),
        (tmp_path, "that is a folder; name a file in it"),
    ):
        assert main([str(tmp_path / "run"), "--export", str(target)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_long_names_wrap_in_the_contents(page, tmp_path):
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {"z" * 400: "one"}))
    assert main([str(tmp_path / "run"), "--export", str(tmp_path / "out.html")]) == 0
    page.goto((tmp_path / "out.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_step_is_said_and_what_could_not_be_read(tmp_path, capsys):
    store = RolloutStore(tmp_path / "run")
    for step in (1, 2):
        store.write("train", step, rows(store, step, {"a": "one"}))
    (newest,) = (tmp_path / "run").rglob("step_000002.parquet")
    newest.write_bytes(newest.read_bytes()[:500])
    target = tmp_path / "out.html"
    assert main([str(tmp_path / "run"), "--export", str(target)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{target}: 1 problem of step 1 (train)\n"
    assert f"left out: {newest}: not a whole Parquet file" in said.err


def test_what_is_left_out_of_a_file_is_said(tmp_path, capsys):
    store, target = RolloutStore(tmp_path / "run"), tmp_path / "out.html"
    store.write("train", 1, rows(store, 1, {f"p{number:02}": "one" for number in range(14)}))
    assert main([str(tmp_path / "run"), "--export", str(target)]) == 0
    assert capsys.readouterr().out == (
        f"{target}: 12 problems of step 1 (train), which asked 14: those whose rewards differ most. "
        "--problem ID, repeatable, chooses others\n"
    )
    assert main([str(tmp_path / "run"), "--export", str(target), "--problem", "p-p13", "--problem", "p-p12"]) == 0
    assert capsys.readouterr().out == f"{target}: 2 problems of step 1 (train)\n"


def test_a_second_run_is_not_exported(tmp_path, capsys):
    store, target = RolloutStore(tmp_path / "run"), tmp_path / "out.html"
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    assert main([str(tmp_path / "run"), "--against", str(tmp_path / "run"), "--export", str(target)]) == 2
    assert "--against needs a server" in capsys.readouterr().err
    assert not target.exists()


def test_an_export_does_not_follow(tmp_path, capsys):
    RolloutStore(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--follow", "--export", str(tmp_path / "out.html")]) == 2
    assert "--follow needs a server" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--port", "0"], ["--host", "::1"], ["--share"], ["--auth", "me:secret"]])
def test_an_export_is_not_served(tmp_path, capsys, words):
    assert main([str(tmp_path), "--export", str(tmp_path / "out.html"), *words]) == 2
    assert f"{words[0]} needs a server" in capsys.readouterr().err


def test_an_export_replaces_no_file_of_another_kind(tmp_path, capsys):
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text("mine")
    assert main([str(tmp_path / "run"), "--export", str(log)]) == 2
    assert f"--export {log}: a page is written, and replaces what is there; end it in .html" in capsys.readouterr().err
    assert log.read_text() == "mine"


def test_a_problem_of_other_steps_is_said_to_be_there(tmp_path, capsys):
    store, target = RolloutStore(tmp_path / "run"), tmp_path / "out.html"
    for step in range(1, 8):
        store.write("train", step, rows(store, step, {"a": "one"}))
    store.write("train", 8, rows(store, 8, {"b": "two"}))
    store.write("eval", 4, rows(store, 4, {"a": "one"}))
    assert main([str(tmp_path / "run"), "--export", str(target), "--problem", "p-a"]) == 2
    newest = " or ".join(f"--step {step}" for step in range(3, 8))
    said = capsys.readouterr().err
    assert "step 8 of 'train' has no problem 'p-a'" in said
    assert f"--split train has it at {newest}, and 2 earlier ones; --split eval has it at --step 4" in said
    assert main([str(tmp_path / "run"), "--export", str(target), "--problem", "p-z"]) == 2
    assert "no step of the run has it" in capsys.readouterr().err


def test_the_only_split_is_taken(tmp_path, capsys):
    run, target = tmp_path / "run", tmp_path / "out.html"
    store = RolloutStore(run)
    store.write("eval", 0, rows(store, 0, {"a": "one"}))
    assert main([str(run), "--export", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 1 problem of step 0 (eval)\n"
    assert main([str(run), "--export", str(target), "--split", "train"]) == 2
    assert f"{run}: no readable step in split 'train'; there is --split eval" in capsys.readouterr().err
    assert main([str(run), "--export", str(target), "--step", "3"]) == 2
    assert f"{run}: no readable step 3 in split 'eval'; it has step 0 alone" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--step", "1"], ["--problem", "a"], ["--split", "eval"]])
def test_what_chooses_for_an_export_means_nothing_without_one(tmp_path, capsys, words):
    assert main([str(tmp_path), *words]) == 2
    assert "choose what --export OUT.html writes" in capsys.readouterr().err
