"""Weighted rewards, users' functions from a file, and what NaN means."""

import logging
import math
from types import SimpleNamespace

import pytest

from sharevl_lite.config import RewardFunctionSection, RewardSection
from sharevl_lite.rewards import RewardScorer, Sample, Verdict, is_well_formed
from sharevl_lite.rewards.functions import RewardFunctionError, load_reward_function

GOOD = r"<think>2+3</think> \boxed{5}"
HANGS = r"<think>big</think> \boxed{9^{9^{9^{9}}}}"

FUNCTIONS = """
from dataclasses import dataclass


@dataclass
class Limits:
    longest: int = 3


def soft(completions, answer, **kwargs):
    return [a.count("5") / 4 if isinstance(a, list) else None for a in answer]


def short(prompts, completions, completion_ids, **kwargs):
    return [float(len(ids) <= Limits().longest) for ids in completion_ids]


def only_geometry(completions, answer, subject, trainer_state, **kwargs):
    assert trainer_state.global_step == 7
    return [float("5" in c and a == "5") if s == "geometry" else None for c, a, s in zip(completions, answer, subject)]


def too_few(completions, **kwargs):
    return [1.0]


def infinite(completions, **kwargs):
    return [float("inf")] * len(completions)


def words(completions, **kwargs):
    return ["good"] * len(completions)


def crashes(completions, **kwargs):
    return [1 / 0]


def number(completions, **kwargs):
    return 1.0


def array(completions, **kwargs):
    import numpy as np

    return np.ones(len(completions), dtype=np.float32)


def by_place(completions, /, **kwargs):
    return [0.0 for _ in completions]


def one_by_one(completions, **kwargs):
    yield from (0.0 for _ in completions)


untold = max


def no_kwargs(completions):
    return [0.0] * len(completions)


async def later(completions, **kwargs):
    import asyncio

    await asyncio.sleep(0.01)
    return [0.25] * len(completions)


class Counter:
    def __call__(self, completions, **kwargs):
        return [0.5] * len(completions)


counter = Counter()


def graded(completions, level, solution, hint="", **kwargs):
    return [0.0] * len(completions)


def chat(completions, **kwargs):
    return [len(completion[0]["content"]) for completion in completions]


def judged(completions, log_metric, log_extra, **kwargs):
    import numpy as np

    log_metric("confidence", np.float32(0.25))
    log_metric("confidence", 0.75)
    log_extra("judge says", [f"{len(text)} characters" for text in completions])
    log_extra("marks", np.arange(len(completions)))
    log_extra("note", [None] * (len(completions) - 1) + ["half a pair: " + chr(0xD83D)])
    return [0.0] * len(completions)


async def judged_later(completions, log_extra, **kwargs):
    log_extra("later", [{"a": [1, None]}] * len(completions))
    return [0.0] * len(completions)


def logs_too_few(completions, log_extra, **kwargs):
    log_extra("reason", ["good"])
    return [0.0] * len(completions)


def logs_one_text(completions, log_extra, **kwargs):
    log_extra("reason", "ok")
    return [0.0] * len(completions)


def logs_twice(completions, log_extra, **kwargs):
    log_extra("reason", list(completions))
    log_extra("reason", list(completions))
    return [0.0] * len(completions)


def logs_words(completions, log_metric, **kwargs):
    log_metric("confidence", "high")
    return [0.0] * len(completions)


constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return tmp_path


def sample(completion: str, answer: str = "5", **columns) -> Sample:
    return Sample("What is 2+3?", completion, (1, 2, 3, 4), answer, columns)


def section(*functions: RewardFunctionSection, **fields) -> RewardSection:
    return RewardSection(functions=list(functions), workers=1, **fields)


def use(name: str, weight: float = 1.0) -> RewardFunctionSection:
    return RewardFunctionSection(path=f"rewards.py:{name}", weight=weight)


def test_weighted_sum_of_accuracy_and_form(tmp_path):
    with RewardScorer(section()) as scorer:
        scores = scorer.score([sample(GOOD), sample(r"\boxed{5}"), sample(GOOD, "6"), sample("five")])
    assert [score.total for score in scores] == pytest.approx([1.0, 0.9, 0.1, 0.0])
    assert [score.accuracy for score in scores] == [1, 1, 0, 0]
    assert [score.format for score in scores] == [1, 0, 1, 0]
    assert scores[0].verdict == Verdict(True, "exact", "5")
    assert scores[3].verdict == Verdict(False, "no_box", None)
    assert all(score.failure is None and score.functions == {} for score in scores)


def test_no_samples_no_scores(tmp_path):
    with RewardScorer(section()) as scorer:
        assert scorer.score([]) == []


def test_a_failed_verification_is_nan_logged_and_visible(tmp_path, caplog):
    with RewardScorer(section(timeout_seconds=1.5)) as scorer, caplog.at_level(logging.WARNING):
        failed, fine = scorer.score([sample(HANGS), sample(GOOD)])
    assert math.isnan(failed.total)
    assert math.isnan(failed.accuracy)
    assert failed.format == 1
    assert failed.verdict is None
    assert failed.failure == "timeout after 1.5 s"
    assert fine.total == 1.0
    assert "timeout after 1.5 s" in caplog.text
    assert "gold: '5'" in caplog.text
    assert "9^{9^" in caplog.text


def test_without_accuracy_weight_a_failure_does_not_spoil_the_total(tmp_path):
    with RewardScorer(section(timeout_seconds=1.5, accuracy_weight=0.0, format_weight=0.5)) as scorer:
        (score,) = scorer.score([sample(HANGS)])
    assert math.isnan(score.accuracy)
    assert score.total == 0.5
    assert score.failure is not None


def test_a_response_of_which_nothing_that_counts_is_said_earned_no_0(folder):
    """Its answer would train as a wrong one; so it is masked, as one without a verdict is."""
    state = SimpleNamespace(global_step=7)
    with RewardScorer(section(use("only_geometry"), accuracy_weight=0.0, format_weight=0.0)) as scorer:
        judged, other = scorer.score([sample(GOOD, subject="geometry"), sample(GOOD, subject="algebra")], state)
    assert judged.total == 1.0
    assert math.isnan(other.total)
    assert other.accuracy == 1.0
    with RewardScorer(section(use("only_geometry"), accuracy_weight=0.0, format_weight=0.5)) as scorer:
        assert scorer.score([sample(GOOD, subject="algebra")], state)[0].total == 0.5


def test_functions_get_columns_as_trl_passes_them_and_none_adds_nothing(folder):
    state = SimpleNamespace(global_step=7)
    with RewardScorer(section(use("short", 0.5), use("only_geometry", -2.0))) as scorer:
        geometry, algebra, bare = scorer.score(
            [
                sample(GOOD, subject="geometry", answer_type="int"),
                sample(GOOD, subject="algebra"),
                Sample("q", GOOD, (1,), "5", {"answer": "5", "prompt": "ignored"}),
            ],
            trainer_state=state,
        )
    assert geometry.functions == {"short": 0.0, "only_geometry": 1.0}
    assert geometry.total == pytest.approx(1.0 - 2.0)
    assert algebra.total == pytest.approx(1.0)
    assert math.isnan(algebra.functions["only_geometry"])
    assert bare.total == pytest.approx(1.5), "a row without the column has None there"


def test_one_of_several_accepted_answers_is_enough_and_functions_get_the_list(folder):
    several = Sample("q", GOOD, (1,), ("4", "5", "five", "5"), {})
    with RewardScorer(section(use("soft"))) as scorer:
        right, wrong, single = scorer.score([several, sample(r"\boxed{6}", ("4", "5")), sample(GOOD)])
    assert (right.verdict, right.functions) == (Verdict(True, "exact", "5"), {"soft": 0.5})
    assert (wrong.accuracy, wrong.functions) == (0.0, {"soft": 0.25})
    assert math.isnan(single.functions["soft"]), "a single answer stays text"


def test_the_recipes_tolerance_reaches_the_verifiers():
    near = sample(r"\boxed{104}", ("200", "100"))
    with RewardScorer(section(numeric_tolerance=0.05)) as scorer:
        (score,) = scorer.score([near])
        assert scorer.same_answers([("104", "100"), ("110", "100")]) == [True, False]
    assert score.verdict == Verdict(True, "tolerance", "104")
    with RewardScorer(section()) as scorer:
        assert scorer.score([near])[0].verdict == Verdict(False, "none", "104")


def test_an_array_is_a_list_of_rewards(folder):
    with RewardScorer(section(use("array"))) as scorer:
        assert [score.functions["array"] for score in scorer.score([sample(GOOD), sample("x")])] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "returned a list of 1; return a list of 2 rewards"),
        ("infinite", "returned inf for completion 0"),
        ("words", "returned 'good' for completion 0"),
        ("crashes", r"raised ZeroDivisionError: division by zero \(rewards.py, line 36; called with "),
        ("number", "returned a float; return a list of 2"),
        ("logs_too_few", r"log_extra\('reason', ...\) got 1 values for 2 completions \(rewards.py, line \d+; called"),
        ("logs_one_text", r"log_extra\('reason', ...\) wants a list, one value per completion, got 'ok'"),
        ("logs_twice", r"log_extra\('reason', ...\) was called before for this batch"),
        ("logs_words", r"log_metric\('confidence', ...\) wants a number, got 'high'"),
    ],
)
def test_a_function_that_misbehaves_is_named(folder, name, message):
    with (
        RewardScorer(section(use(name))) as scorer,
        pytest.raises(RewardFunctionError, match=message) as caught,
    ):
        scorer.score([sample(GOOD), sample(GOOD)])
    assert repr(name) in str(caught.value)


def test_what_functions_need_is_looked_for_before_anything_is_sampled(folder):
    with RewardScorer(section(use("short"), use("graded"))) as scorer:
        scorer.check_columns({"level", "solution", "answer"})
        with pytest.raises(RewardFunctionError, match=r"'graded' needs level, solution, which the data does not have"):
            scorer.check_columns({"answer"})
        with pytest.raises(RewardFunctionError, match=r"\['prompts'\].*rename"):
            scorer.check_columns({"level", "solution", "prompts"})
    with RewardScorer(section()) as scorer:
        scorer.check_columns({"prompts"})  # nobody is called


def test_what_functions_log_is_kept_with_the_scores(folder):
    with RewardScorer(section(use("judged"), use("judged_later"))) as scorer:
        scorer.check_columns({"answer"})
        first, second = scorer.score([sample(GOOD), sample("x")])
        (again,) = scorer.score([sample("xy")])
    assert first.metrics == second.metrics == {"confidence": 0.5}
    later = '{"a": [1, null]}'
    assert first.extras == {"judge says": f"{len(GOOD)} characters", "marks": "0", "later": later}
    note = "half a pair: ?"  # UTF-8, and so the store, has no half of one
    assert second.extras == {"judge says": "1 characters", "marks": "1", "note": note, "later": later}
    assert again.extras["judge says"] == "2 characters", "each batch has its own"


def test_async_functions_and_instances_are_called(folder):
    with RewardScorer(section(use("later"), use("counter"))) as scorer:
        (score,) = scorer.score([sample(GOOD)])
    assert score.functions == {"later": 0.25, "counter": 0.5}


def test_async_functions_keep_their_loop_and_an_exit_in_one_is_an_error(folder):
    """Clients and locks made once belong to the loop of the first call."""
    (folder / "judges.py").write_text(
        "import asyncio, sys\n"
        "gate = asyncio.Semaphore(1)\n"
        "async def one(text):\n"
        "    async with gate:\n"
        "        await asyncio.sleep(0)\n"
        "        return float(len(text))\n"
        "async def judged(completions, **kwargs):\n"
        "    return await asyncio.gather(*map(one, completions))\n"
        "async def leaves(completions, **kwargs):\n"
        "    sys.exit('no key')\n"
    )
    with RewardScorer(section(RewardFunctionSection(path="judges.py:judged"))) as scorer:
        for _ in range(3):
            scores = scorer.score([sample(GOOD), sample(r"\boxed{5}")])
            assert [score.functions["judged"] for score in scores] == [len(GOOD), 9]
    with (
        RewardScorer(section(RewardFunctionSection(path="judges.py:leaves"))) as scorer,
        pytest.raises(RewardFunctionError, match=r"raised SystemExit: no key \(judges.py, line 10; called with "),
    ):
        scorer.score([sample(GOOD)])


def test_a_function_for_chat_messages_is_told_that_completions_are_text(folder):
    told = "are text, not chat messages"
    with RewardScorer(section(use("chat"))) as scorer, pytest.raises(RewardFunctionError, match=told):
        scorer.score([sample(GOOD)])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rewards.py", "write it as"),
        ("rewards.py:", "write it as"),
        (":short", "write it as"),
        ("missing.py:short", "there is no file"),
        ("rewards.py:longer", "defines no function 'longer'"),
        ("rewards.py:constant", "defines no function 'constant'"),
        ("rewards.py:by_place", "takes completions by position alone and is called by keyword; remove the /"),
        ("rewards.py:one_by_one", "has a yield; return a list"),
        ("rewards.py:untold", "does not say its arguments"),
        ("leaves.py:short", "importing .* raised SystemExit: no key"),
        ("rewards.py:no_kwargs", r"must take \*\*kwargs"),
        ("rewards.py:Counter", "is a class; name a function, or an instance of it"),
        ("broken.py:short", "raised ModuleNotFoundError: No module named 'nowhere'"),
        ("syntax.py:short", "raised SyntaxError"),
        ("rewards.txt:short", "must end in .py"),
    ],
)
def test_a_function_that_cannot_be_loaded_says_why(folder, spec, message):
    (folder / "broken.py").write_text("import nowhere")
    (folder / "syntax.py").write_text("def short(:")
    (folder / "leaves.py").write_text("raise SystemExit('no key')")
    (folder / "rewards.txt").write_text(FUNCTIONS)
    with pytest.raises(RewardFunctionError, match=message):
        load_reward_function(spec)


def test_absolute_paths_and_equal_file_names(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "rewards.py"
    other.write_text("def short(completions, **kwargs):\n    return [2.0] * len(completions)\n")
    mine, theirs = load_reward_function("rewards.py:short"), load_reward_function(f"{other}:short")
    assert theirs(completions=["a"]) == [2.0]
    assert mine(prompts=["q"], completions=["a"], completion_ids=[[1]]) == [1.0]
    duplicate = RewardFunctionSection(path=f"{other}:short")
    with pytest.raises(RewardFunctionError, match="two reward functions are called 'short'"):
        RewardScorer(section(use("short"), duplicate))


def test_a_prompt_that_opens_the_thinking_is_continued():
    assert is_well_formed(r"2+3</think> \boxed{5}", "<|im_start|>assistant\n<think>\n")
    assert not is_well_formed(GOOD, "<|im_start|>assistant\n<think>\n")
    assert not is_well_formed(r"2+3</think> \boxed{5}", "<|im_start|>assistant\n")
