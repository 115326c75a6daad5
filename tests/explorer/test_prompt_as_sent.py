"""The prompt as sent: the chat text that the run keeps, else the turns of its recipe, or why they are not known."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from hostile_rows import rows
from sharevl_explorer.export import export
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.prompt import prompt_as_sent
from tiny_models import tiny_processor

from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.recipes import dump_recipe, load_recipe
from sharevl_lite.store import RolloutStore, read

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
QUESTION = "<image>Is {x} larger than\n $y$?"


def folds(page):
    return re.findall(r'<details class="prompt">(.*?)</details>', page, re.S)


def chat_text(fold):
    (found,) = re.findall(r'</summary><bdi class="words code" dir="auto">(.*?)</bdi><p class="quiet">', fold, re.S)
    return html.unescape(found)


def demo_renderer():
    from transformers import AutoProcessor

    from sharevl_lite.policy.folder import resolve_model_path

    recipe = load_recipe(DEMO)
    processor = AutoProcessor.from_pretrained(resolve_model_path(recipe.model.path))
    return PromptRenderer(processor, recipe.data.prompt_template, recipe.data.system_prompt)


def turns(fold):
    found = re.findall(r'<h3>(.*?)</h3><bdi class="words code" dir="auto">(.*?)</bdi>', fold, re.S)
    return [(role, html.unescape(said)) for role, said in found]


def written(run, template, system=None):
    recipe = load_recipe(DEMO, {"data.prompt_template": template, "data.system_prompt": system})
    (run / "recipe.yaml").write_text(dump_recipe(recipe))


def test_the_turns_are_those_that_the_model_was_given(tmp_path):
    """The words of the chat text that training renders, image parts in their places, are the words of the fold."""
    template, system = "Look: {problem}\nThen give \\boxed{{}}.", "Answer in <b>one</b> word."
    written(tmp_path, template, system)
    fold = str(prompt_as_sent(tmp_path, QUESTION))
    assert turns(fold) == [
        ("system", system),
        ("user", "Look: ▣Is {x} larger than\n $y$?\nThen give \\boxed{}."),
    ]
    assert "▣ is an image" in fold
    assert "some models" not in fold
    sent = PromptRenderer(tiny_processor("qwen2_5_vl"), template, system).render(QUESTION)
    for _, said in turns(fold):
        for piece in said.split("▣"):
            assert piece in sent
    written(tmp_path, "{problem}")
    assert turns(prompt_as_sent(tmp_path, "How many?")) == [("user", "How many?")]
    assert "The recipe has no system turn; some models" in prompt_as_sent(tmp_path, "How many?")
    assert "is an image" not in prompt_as_sent(tmp_path, "How many?")


def test_problem_response_and_file_have_it(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 1, rows(store, 1, {"a": "<i>one</i>"}))
    written(tmp_path, "{problem} Box it.")
    index = Index([tmp_path])
    cards = [turns(fold) for fold in folds(render(index, "?view=problem&step=1&problem=p-a"))]
    assert cards == [[("user", f"▣<i>one</i> Q{j} Box it.")] for j in (0, 1)]
    (fold,) = folds(render(index, "?view=response&step=1&problem=p-a&variant=1"))
    assert turns(fold) == [("user", "▣<i>one</i> Q1 Box it.")]
    export(index, tmp_path / "out.html")
    assert "Q1 Box it." in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (None, "the folder holds no recipe.yaml"),
        ("data: [", "recipe.yaml cannot be used (ParserError"),
        ("data: {prompt_template: '{problem}'}", "recipe.yaml cannot be used (KeyError: 'system_prompt')"),
        ("data: {prompt_template: 3, system_prompt: null}", "recipe.yaml cannot be used (TypeError"),
        ("data: {prompt_template: '{problem', system_prompt: null}", "does not format"),
        ("data: {prompt_template: '{problem:>999999999}', system_prompt: null}", "does not hold {problem} once"),
        ("data: {prompt_template: '{problem.__class__}', system_prompt: null}", "does not hold {problem} once"),
    ],
)
def test_what_the_recipe_does_not_tell_is_not_guessed(tmp_path, recipe, reason):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    fold = prompt_as_sent(tmp_path, "How many?")
    assert turns(fold) == []
    assert reason in html.unescape(fold)


def test_a_run_shows_each_prompt_in_the_models_own_template(trained):
    """Of every variant that the run asked: the text that its processor renders, letter by letter."""
    renderer, asked = demo_renderer(), sorted(set(read(trained)["variant_text"].to_pylist()))
    assert len(asked) > 6
    for question in asked:
        fold = str(prompt_as_sent(trained, question))
        assert chat_text(fold) == renderer.render(question)
        assert "<|vision_start|><|image_pad|><|vision_end|> is where an image goes." in html.unescape(fold)
        assert "does not keep" not in fold
    (row, *_) = read(trained).to_pylist()
    place = f"?view=response&step={row['step']}&problem={row['problem_id']}&variant={row['variant_index']}"
    (fold,) = folds(render(Index([trained]), place))
    assert chat_text(fold) == renderer.render(row["variant_text"])


def test_a_run_of_an_older_program_shows_its_turns(trained, tmp_path):
    shutil.copy(trained / "recipe.yaml", tmp_path)
    fold = prompt_as_sent(tmp_path, "How many?")
    assert turns(fold) == [("user", "How many? Think, then box the answer.")]
    assert "which the run does not keep" in fold


@pytest.mark.parametrize("kept", ["{", "[]", '{"start": "a", "end": "b"}', '{"start": "a", "image": 3, "end": "b"}'])
def test_a_kept_prompt_that_cannot_be_used_is_said(tmp_path, kept):
    (tmp_path / "prompt.json").write_text(kept)
    fold = html.unescape(prompt_as_sent(tmp_path, "How many?"))
    assert "not known: prompt.json cannot be used" in fold
    assert turns(fold) == []


def test_what_the_template_writes_is_shown_not_run(tmp_path):
    (tmp_path / "prompt.json").write_text(json.dumps({"start": "<script>", "image": "<img>", "end": "</bdi>"}))
    fold = str(prompt_as_sent(tmp_path, "<image>{x}"))
    assert chat_text(fold) == "<script><img>{x}</bdi>"
    assert "<script>" not in fold
