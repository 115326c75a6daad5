"""lmms-eval's questions in a recipe's words. lmms-eval reads this, in an environment that may lack sharevl-lite.

The harness's reasoning tasks ask for <answer> tags in a system turn. Here that turn is the recipe's own (none by
default), and what the recipe's `data.prompt_template` puts around a question stands around it in the user's turn, as in
training. SHAREVL_PROMPT names a JSON file with `template` and `system`.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Messages = list[dict[str, Any]]
MARK = "\x00"
HARNESS = {
    "mathvista": ("lmms_eval.tasks.mathvista.reasoning.utils", "mathvista_doc_to_messages"),
    "mathverse": ("lmms_eval.tasks.mathverse.reasoning.utils", "mathverse_doc_to_messages"),
    "mathvision": ("lmms_eval.tasks.mathvision.reasoning.utils", "mathvision_doc_to_messages"),
    "mmstar": ("lmms_eval.tasks.mmstar.reasoning.utils", "mmstar_reasoning_doc_to_messages"),
    "mmmu": ("lmms_eval.tasks.mmmu.reasoning.utils", "mmmu_reward_doc_to_messages"),
    "ai2d": ("lmms_eval.tasks.ai2d.reasoning.utils", "ai2d_doc_to_messages"),
}
"""Where the harness makes the messages of a benchmark."""


def in_the_recipes_words(messages: Messages, template: str, system: str | None) -> Messages:
    """The messages with the recipe's system turn, and its template around the user's text.

    Images stay where they are: what the template has before the question goes before the first piece of text, what it
    has after goes after the last. Raises ValueError for messages without a single user's turn with text.
    """
    before, after = template.format(problem=MARK).split(MARK)
    users = [message for message in messages if message["role"] == "user"]
    pieces = [piece for message in users for piece in message["content"] if piece["type"] == "text"]
    if len(users) != 1 or not pieces:
        raise ValueError(f"a question with {len(users)} user's turns and {len(pieces)} pieces of text in them")
    content = [dict(piece) for piece in users[0]["content"]]
    texts = [piece for piece in content if piece["type"] == "text"]
    texts[0]["text"] = before + texts[0]["text"]
    texts[-1]["text"] += after
    first = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*first, {"role": "user", "content": content}]


def _asked_by(benchmark: str) -> Callable[..., Messages]:
    def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> Messages:
        module, name = HARNESS[benchmark]
        messages = getattr(importlib.import_module(module), name)(doc, lmms_eval_specific_kwargs)
        prompt = json.loads(Path(os.environ["SHAREVL_PROMPT"]).read_text("utf-8"))
        return in_the_recipes_words(messages, prompt["template"], prompt["system"])

    return doc_to_messages


mathvista, mathverse, mathvision = _asked_by("mathvista"), _asked_by("mathverse"), _asked_by("mathvision")
mmstar, mmmu, ai2d = _asked_by("mmstar"), _asked_by("mmmu"), _asked_by("ai2d")
