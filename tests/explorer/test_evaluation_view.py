"""An evaluation's folder shows what an evaluation has: figures with intervals, and no charts of one point."""

import json
import re
from dataclasses import replace

import pytest
from hostile_rows import rows
from pages import opened
from sharevl_explorer.command import main
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.statistics import Figure
from sharevl_lite.store import RolloutStore

PROTOCOL = {"target": "runs/<b>six", "samples": 4, "seed": 0, "confidence": 0.95, "variants": "each", "engine": None}
METRICS = {
    "mean@4": Figure(0.1625, 0.0875, 0.2625, 20),
    "pass@2": Figure(0.292, 0.158, 0.45, 20),
    "pass@4": Figure(0.45, 0.25, 0.65, 19, 1),
    "maj@4": Figure(0.283, 0.142, 0.487, 20),
    "response_length": Figure(16.1, 15.2, 17.2, 20),
    "consistency": Figure(None, None, None, 0),
}
KINDS = {
    "plain": {"mean@4": METRICS["mean@4"]},
    "rotate": {"mean@4": Figure(0.05, 0.0125, 0.1, 20), "change": Figure(-0.1125, -0.2, 0.025, 20)},
}
SOURCES = {"<i>list": {"mean@4": Figure(0.25, 0.0625, 0.4375, 4)}}
COUNTS = {"problems": 20, "without_answer": 74}


def scored_alone(store):
    """As `eval` stores responses: no update saw them, so that nothing was scored under variants."""
    written = rows(store, 0, {"a": "one"})
    return [replace(row, scorers=[], scorer_logprobs=[], adv_global=None, adv_local=None) for row in written]


@pytest.fixture
def evaluated(tmp_path):
    """The folder of an evaluation, its document beside it."""
    store = RolloutStore(tmp_path / "mine")
    store.write("eval", 0, scored_alone(store))
    Evaluation(PROTOCOL, METRICS, KINDS, {}, SOURCES, COUNTS, ()).write(tmp_path / "mine.json")
    return tmp_path / "mine"


def text(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page.split('<div class="content">')[1].split("<dialog")[0]).split())


def test_an_evaluation_shows_its_figures_with_intervals(evaluated):
    page = render(Index([evaluated]), "")
    told = text(page)
    for figure in (
        "mean@4 16.2 % 95 % interval 8.8 … 26.2 %",
        "pass@4 45.0 % 95 % interval 25.0 … 65.0 %",
        "maj@4 28.3 %",
        "consistency – 95 % interval –",
        "pass@2 29.2 % 15.8 … 45.0 % 20",
        "response length 16.1 15.2 … 17.2 20",
        "rotate 5.0 % 1.2 … 10.0 % −11.2 −20.0 … +2.5 20",
        "&lt;i&gt;list 25.0 % 6.2 … 43.8 % 4",
        "target runs/&lt;b&gt;six",
        "without a boxed answer 74",
    ):
        assert figure in told
    for wrong in ("metrics.jsonl", "not recorded", "<svg", "engine", 'class="note"'):
        assert wrong not in page


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "mine.json does not lie beside the folder"),
        (lambda path: path.write_text("{"), "mine.json cannot be used: JSONDecodeError"),
        (lambda path: path.write_text("[1]"), "mine.json cannot be used: TypeError"),
        (lambda path: path.write_text('{"schema_version": 9}'), "schema version 9, and this program reads 1"),
    ],
)
def test_without_a_document_the_means_are_shown(evaluated, harm, message):
    harm(evaluated.parent / "mine.json")
    page = render(Index([evaluated]), "")
    assert message in text(page)
    assert "accuracy 50.0 %" in text(page)
    assert "<svg" not in page


def test_two_evaluations_stand_below_each_other(evaluated, tmp_path):
    store = RolloutStore(tmp_path / "other")
    store.write("eval", 0, scored_alone(store))
    other = METRICS | {"mean@4": Figure(0.5, 0.25, 0.75, 20)}
    Evaluation(PROTOCOL, other, KINDS, {}, SOURCES, COUNTS, ()).write(tmp_path / "other.json")
    told = text(render(Index([evaluated, tmp_path / "other"]), ""))
    assert re.search("mine .*mean@4 16.2 % .*other .*mean@4 50.0 %", told)


def test_a_run_before_its_first_step_is_no_evaluation(evaluated):
    (evaluated / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval_accuracy_plain": 0.5}) + "\n")
    assert "<svg" in render(Index([evaluated]), "")


def test_where_nothing_was_scored_under_variants_there_is_no_matrix(evaluated, tmp_path):
    assert main([str(evaluated), "--export", str(tmp_path / "out.html")]) == 0
    for page in (render(Index([evaluated]), "?view=problem&problem=p-a"), (tmp_path / "out.html").read_text()):
        told = " ".join(re.sub(r"<[^>]+>", " ", page).split())
        assert "No response was scored under variants: the split eval is an evaluation" in told
        assert page.count('class="row"') >= 4, "every response has its line"
        for part in ("Cross-scoring", "log-prob gap", "not forwarded", 'class="cell'):
            assert part not in page.split("<body")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_an_evaluation_does_not_scroll_sideways(browser, served, evaluated, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    opened(page, served(evaluated), "", ".cards")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
