"""Our tasks for lmms-eval: the recipe's words around its questions, and the real harness where it is installed."""

import json
from importlib.resources import files
from importlib.util import find_spec

import pytest
import yaml
from PIL import Image

from sharevl_lite.evaluation.harness import TASKS
from sharevl_lite.evaluation.lmms_tasks import prompt

FOLDER = files("sharevl_lite.evaluation").joinpath("lmms_tasks")
TEMPLATE = "Look. {problem}\nThink in <think> </think>, then \\boxed{{}}."


def user(*content):
    return {"role": "user", "content": list(content)}


def test_the_recipes_words_stand_around_the_question_and_images_stay():
    image = {"type": "image", "url": "an image"}
    asked = [
        {"role": "system", "content": [{"type": "text", "text": "Use <answer> tags."}]},
        user({"type": "text", "text": "See"}, image, {"type": "text", "text": "What is it?"}),
    ]
    plain = prompt.in_the_recipes_words(asked, TEMPLATE, None)
    after = "What is it?\nThink in <think> </think>, then \\boxed{}."
    assert plain == [user({"type": "text", "text": "Look. See"}, image, {"type": "text", "text": after})]
    assert asked[1]["content"][0]["text"] == "See", "the harness's own messages are left alone"
    single = prompt.in_the_recipes_words([user(image, {"type": "text", "text": "Q"})], TEMPLATE, "Be brief.")
    assert single[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert single[1]["content"][1]["text"] == "Look. Q\nThink in <think> </think>, then \\boxed{}."
    with pytest.raises(ValueError, match="0 pieces of text"):
        prompt.in_the_recipes_words([user(image)], TEMPLATE, None)


@pytest.mark.parametrize("benchmark", TASKS)
def test_every_benchmark_has_a_task_in_the_recipes_words(benchmark):
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load(FOLDER.joinpath(f"{TASKS[benchmark]}.yaml").read_text(), loader)
    assert task["task"] == TASKS[benchmark]
    module, name = task["doc_to_messages"].split(".")
    assert callable(getattr(prompt, name))
    assert (module, name) == ("prompt", benchmark)
    assert [metric["metric"] for metric in task["metric_list"]] == ["acc_score", "format_score"]
    harness_module, _ = prompt.HARNESS[benchmark]
    assert task["process_results"].startswith(harness_module + ".")


def options(*names):
    return {"options": list(names)}


IMAGE = Image.new("RGB", (28, 28))
QUESTIONS = {
    "mathvista": {
        "question_type": "multi_choice", "answer_type": "text", "question": "Which?", "choices": ["x", "y"],
        "answer": "y", "precision": None, "unit": None, "decoded_image": IMAGE,
    },
    "mathverse": {
        "question": "Find it.", "answer": "B", "query_wo": "Find it, please.", "query_cot": "Find it.",
        "question_type": "multi-choice", "problem_version": "Text Lite", "image": IMAGE,
    },
    "mathvision": {"question": "How many?", "answer": "B", "decoded_image": IMAGE, **options("1", "2")},
    "mmstar": {"question": "Which one? Options: A: x, B: y", "answer": "B", "image": IMAGE},
    "mmmu": {
        "id": "validation_Art_1", "question": "Look at <image 1> well.", "question_type": "multiple-choice",
        "options": "['x', 'y']", "answer": "B", "image_1": IMAGE,
    },
    "ai2d": {"question": "Which label?", "answer": "1", "image": IMAGE, **options("x", "y")},
}  # fmt: skip


needs_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms-eval is not installed (it has an environment of its own)"
)


@needs_lmms_eval
@pytest.mark.parametrize("benchmark", TASKS)
def test_the_real_harness_asks_in_our_words_and_accepts_a_box(benchmark, tmp_path, monkeypatch):
    (tmp_path / "prompt.json").write_text(json.dumps({"template": TEMPLATE, "system": None}))
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")  # its modules want one when they are imported
    monkeypatch.setenv("SHAREVL_PROMPT", str(tmp_path / "prompt.json"))
    from lmms_eval.utils import load_yaml_config

    task = load_yaml_config(yaml_path=str(FOLDER.joinpath(f"{TASKS[benchmark]}.yaml")))
    doc = QUESTIONS[benchmark]
    (message,) = task["doc_to_messages"](doc, task.get("lmms_eval_specific_kwargs", {}).get("default"))
    texts = [piece["text"] for piece in message["content"] if piece["type"] == "text"]
    assert texts[0].startswith("Look. ")
    assert texts[-1].endswith("\\boxed{}.")
    assert sum(piece["type"] == "image" for piece in message["content"]) == 1
    right, wrong = (task["process_results"](doc, [f"<think>so</think> \\boxed{{{x}}}"]) for x in "BA")
    assert (right["acc_score"], wrong["acc_score"], right["format_score"]) == (1, 0, 1)


@needs_lmms_eval
@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("The total is 42", "42"),
        ("it is 42.\nGood bye", "42"),
        ("<answer>I would say B because</answer>", "B"),
        (r"\boxed{A long time}", "Acute"),
        (r"\boxed{equilateral}", "equilatera"),
        (r"\boxed{1} <answer>2</answer>", "2"),
    ],
)
def test_the_real_harness_is_as_loose_as_the_protocol_says(response, gold, monkeypatch):
    """What `sharevl_lite.suite.SCORING` tells of it."""
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    from lmms_eval.tasks._task_utils.reasoning_utils import compute_score

    assert compute_score("mathvista", response, gold)["acc_score"] == 1
