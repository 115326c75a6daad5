"""Which adapter is exported: last, best, by number; and what is said about it."""

import json

import pytest

from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.source import find_source


@pytest.fixture
def history(tmp_path):
    """`history(accuracies, checkpoints, adapter)`: a run's folder with that past, without weights."""

    def make(accuracies, checkpoints, *, adapter=True):
        run = tmp_path / "run"
        for update in checkpoints:
            (run / "checkpoints" / f"checkpoint-{update}").mkdir(parents=True)
        run.mkdir(exist_ok=True)
        (run / "recipe.yaml").write_text("name: run\ntrain: {save_total_limit: 2}\n")
        lines = [{"step": u, "update": u, "eval_accuracy": a} for u, a in accuracies.items()]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if adapter:
            (run / "adapter").mkdir()
        return run

    return make


def test_last_is_the_final_adapter_or_the_newest_checkpoint(history):
    run = history({0: 0.1, 12: 0.4}, [6, 12])
    source = find_source(run, "last")
    assert (source.adapter, source.update, source.notes) == (run / "adapter", None, ())
    assert source.evaluation["update"] == source.updates == 12
    (run / "adapter").rmdir()
    source = find_source(run, "last")
    assert (source.adapter.name, source.update) == ("checkpoint-12", 12)
    assert source.notes == ("the run is not finished: exporting its newest checkpoint, after update 12",)


def test_best_is_of_those_still_there_and_says_what_is_gone(history):
    source = find_source(history({0: 0.3, 2: 0.8, 4: 0.5, 6: 0.6, 8: 0.4}, [4, 6, 8]), "best")
    assert source.adapter.name == "checkpoint-6"
    found, gone = source.notes
    assert "60.0%, after update 6" in found
    assert "update 2 did better (80.0%)" in gone
    assert "train.save_total_limit: 2" in gone


def test_the_best_adapter_put_back_at_the_end_is_not_taken_for_the_last_one(history):
    """As train.load_best_model_at_end logs it: a second evaluation at the last update."""
    run = history({0: 0.3, 2: 0.8, 4: 0.5}, [2, 4])
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 2, "update": 4, "eval_accuracy": 0.8}\n')
    assert find_source(run, "4").evaluation["eval_accuracy"] == 0.5
    (run / "summary.json").write_text('{"adapter_update": 2}')
    assert find_source(run, "last").evaluation["eval_accuracy"] == 0.8
    assert [find_source(run, wanted).updates for wanted in ("last", "best", "4")] == [2, 2, 4]
    assert find_source(run, "best").update == 2


def test_best_that_is_no_better_than_the_base_says_so(history):
    assert "before training it did no worse: 90.0%" in find_source(history({0: 0.9, 4: 0.5}, [4]), "best").notes


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("²", "give best, last or the number of an update"),
        ("5", "no checkpoint of that update; there are updates 4, 6 and the final adapter"),
        ("newest", "give best, last or the number of an update; there are updates 4, 6"),
        ("best", r"no checkpoint of .* was evaluated \(evaluations: 0, 9\)"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(history, wanted, told):
    with pytest.raises(ExportError, match=told):
        find_source(history({0: 0.1, 9: 0.2}, [4, 6]), wanted)


def test_a_checkpoint_or_nothing_is_no_run(history, tmp_path):
    run = history({}, [4], adapter=False)
    with pytest.raises(ExportError, match=f"sharevl-lite export {run} --checkpoint 4"):
        find_source(run / "checkpoints" / "checkpoint-4", "last")
    with pytest.raises(ExportError, match="no such folder"):
        find_source(tmp_path / "nothing", "last")
    (run / "checkpoints" / "checkpoint-4").rmdir()
    with pytest.raises(ExportError, match="neither an adapter nor a checkpoint yet"):
        find_source(run, "last")
