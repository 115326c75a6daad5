"""The index: outcomes, replaced and unreadable shards, filters, and markup that cannot be left unescaped."""

from dataclasses import replace

import pytest
from hostile_rows import rows
from old_stores import as_version
from sharevl_explorer.command import main
from sharevl_explorer.index import Index
from sharevl_explorer.markup import el, text
from sharevl_explorer.mathml import with_formulas
from sharevl_explorer.prose import word_diff
from sharevl_explorer.queries import neighbours, problems
from sharevl_explorer.state import State, parse

from sharevl_lite.store import Rewards, RolloutStore


def stored(run, step, totals):
    """One problem per entry of `totals`: its rewards by variant and response; right from 0.5 on."""
    store = RolloutStore(run)
    written = rows(store, step, {name: name for name in totals})
    for number, row in enumerate(written):
        total = totals[row.problem_id[2:]][row.variant_index][row.response_index]
        accuracy = None if total is None else float(total >= 0.5)
        written[number] = replace(row, rewards=Rewards(total, accuracy, 1.0))
    return store.write("train", step, written)


def test_outcomes_and_signals_of_problems(tmp_path):
    totals = {
        "rescued": [[1, 1], [0, 0]],
        "half": [[1, 1], [1, 0]],
        "mixed": [[1, 0], [0, 1]],
        "right": [[1, 1], [1, 1]],
        "wrong": [[0, 0], [0, 0]],
        "shape": [[0.1, 0], [0, 0.1]],
        "unknown": [[None, None], [None, None]],
        "one": [[0, None], [0, 0]],
    }
    stored(tmp_path, 1, totals)
    found = {row["problem"][2:]: row for row in Index([tmp_path]).rows("SELECT * FROM problems")}
    told = {name: (row["outcome"], row["signal"], row["silent"], row["rescued"]) for name, row in found.items()}
    assert told == {
        "rescued": ("mixed", "rescued", 2, 2),
        "half": ("mixed", "rescued", 1, 1),
        "mixed": ("mixed", "own", 0, 0),
        "right": ("right", "none", 2, 0),
        "wrong": ("wrong", "none", 2, 0),
        "shape": ("wrong", "own", 0, 0),
        "unknown": ("unknown", "none", 2, 0),
        "one": ("unknown", "none", 2, 0),
    }
    assert found["rescued"]["spread_global"] == pytest.approx(3**-0.5), "with n - 1, as advantages are divided"
    assert found["rescued"]["spread_local"] == 0
    assert found["half"]["spread_global"] == pytest.approx(0.5)
    assert found["half"]["spread_local"] == pytest.approx(0.5**0.5 / 2)


def test_filters_and_neighbours(tmp_path):
    stored(tmp_path, 1, {"a": [[1, 1], [0, 0]], "b": [[0, 0], [0, 0]], "c": [[1, 0], [1, 1]]})
    index = Index([tmp_path])

    def names(**given):
        return [row["problem"] for row in problems(index, State(step=1, **given)).rows]

    assert names() == ["p-a", "p-b", "p-c"]
    assert names(sort="reward", down=1) == ["p-c", "p-a", "p-b"]
    assert names(sort="reward; DROP TABLE problems") == names()
    assert names(signal="rescued") == ["p-a", "p-c"]
    assert names(signal="silent") == ["p-a", "p-b", "p-c"]
    assert names(signal="none", outcome="wrong") == ["p-b"]
    assert names(low=0.5, high=0.5) == ["p-a"]
    assert names(q="A' OR 1=1") == []
    assert names(transform="rotate_90_cw", q="P-B") == ["p-b"]
    assert neighbours(index, State(step=1, problem="p-a", sort="reward", down=1)) == ("p-c", "p-b")


def test_ids_are_in_natural_order_and_rewards_are_filtered_as_they_are_shown(tmp_path):
    stored(tmp_path, 1, {"1": [[0.917, 0.917]] * 2, "10": [[0.924, 0.924]] * 2, "2": [[0.926, 0.926]] * 2})
    index = Index([tmp_path])
    assert [row["problem"] for row in problems(index, State(step=1)).rows] == ["p-1", "p-2", "p-10"]
    within = problems(index, State(step=1, low=0.92, high=0.92))
    assert [row["problem"] for row in within.rows] == ["p-1", "p-10"]
    assert neighbours(index, State(step=1, problem="p-2")) == ("p-1", "p-10")


def test_a_step_that_a_resume_writes_again_replaces_the_old(tmp_path):
    stored(tmp_path, 1, {"a": [[0, 0], [0, 0]]})
    path = stored(tmp_path, 2, {"a": [[0, 0], [0, 0]]})
    index = Index([tmp_path])
    assert not index.refresh()
    stored(tmp_path, 2, {"b": [[1, 1], [1, 1]]})
    assert index.refresh()
    assert index.rows("SELECT step, problem FROM problems ORDER BY step") == [
        {"step": 1, "problem": "p-a"},
        {"step": 2, "problem": "p-b"},
    ]
    path.unlink()
    assert index.refresh()
    assert index.steps(0, "train") == [1]


def test_unreadable_shards_are_listed_and_tried_again(tmp_path, capsys):
    path = stored(tmp_path, 1, {"a": [[0, 0], [0, 0]]})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    index = Index([tmp_path])
    assert list(index.unreadable) == [path]
    assert main([str(tmp_path)]) == 2
    assert "not a whole Parquet file" in capsys.readouterr().err
    path.write_bytes(whole)
    assert index.refresh()
    assert index.unreadable == {}
    as_version(path, b"99")
    assert index.refresh()
    assert "schema version 99, and this program reads 1 to 3" in index.unreadable[path]
    assert index.steps(0, "train") == []


class Waking(str):
    """A split's name; whoever compares with it wakes another thread's refresh."""

    def __new__(cls, name, wake):
        made = super().__new__(cls, name)
        made.wake = wake
        return made

    def __eq__(self, other):
        self.wake()
        return str(self) == other

    __hash__ = str.__hash__


def test_a_refresh_while_another_thread_goes_through_the_steps(tmp_path):
    """A page of `--follow` reads steps and damaged shards while the poll of another page finds new ones."""
    for step in (1, 2, 3):
        path = stored(tmp_path, step, {"a": [[0, 0], [0, 0]]})
    path.write_bytes(b"cut")
    index = Index([tmp_path])
    fresh = iter(range(4, 100))

    def grow():
        number = next(fresh)
        stored(tmp_path, number, {"a": [[0, 0], [0, 0]]})
        path.with_name(f"step_{number + 100:06d}.parquet").write_bytes(b"cut")
        index.refresh()

    train = Waking("train", grow)
    assert index.steps(0, train) == [1, 2], "those that were there when it began"
    assert index.shard(0, train, 2).name == "step_000002.parquet"
    assert index.splits() == ["train"]
    faults = iter(index.unreadable)
    assert next(faults) == path
    grow()
    assert len(list(faults)) == len(index.unreadable) - 2
    path.unlink()
    assert index.refresh()
    assert 3 not in index.damaged(0, "train")


def test_a_run_that_is_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.rstrip().endswith("no such run folder")
    for name in ("shapes", "digits"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
    for given, told in (("digit", f"did you mean {tmp_path / 'digits'}?"), ("xyz", "there are digits, shapes")):
        assert main([str(tmp_path / given)]) == 2
        assert told in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    runs = f"{tmp_path / 'digits'}, {tmp_path / 'shapes'}"
    assert f"{tmp_path}: a folder of runs, such as {runs}; name one" in capsys.readouterr().err


def test_markup_escapes_text_and_refuses_links_that_lead_out():
    assert el("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert text("a\0b") == "a␀b"
    for address in ("javascript:alert(1)", "https://example.org", "//example.org", "/gradio_api/file=/etc/passwd"):
        with pytest.raises(ValueError, match="leads out of the page"):
            el("a", "x", href=address)


def test_changed_words_that_stand_together_are_one_change():
    assert word_diff("<image>How many are even?", "<image>What is the number of even?") == (
        '<bdi class="words" dir="auto">▣ <del>How many are</del><ins>What is the number of</ins> even?</bdi>'
    )
    assert "<del>" not in word_diff("a  b", "a b")
    reworded = word_diff(r"Solve $\frac{a}{b}=2$.", r"Find a in $\frac{a}{b}=2$, $x$.")
    assert reworded.count("<mfrac>") == 1
    assert "<ins>, <math" in reworded
    assert word_diff("<b>", "<i>").count("&lt;") == 1


def test_formulas_become_mathml_and_prices_do_not():
    assert "<mfrac>" in with_formulas(r"$\frac{1}{2}$")
    assert with_formulas("$5 and $6") == "$5 and $6"
    assert "<math" not in with_formulas(r"$\unknowncommand{x}$")
    assert "<script" not in with_formulas("$\\text{<script>}$")


def test_a_link_holds_the_whole_state_and_a_broken_one_opens():
    state = State(view="step", step=3, q="a&b=<c>", low=0.5, down=1)
    assert parse(state.to()) == state
    assert parse("?view=nowhere&step=x&sheet=-4&low=nan&sort=%00") == State(sort="\0")
