"""How to use an export: the code in its card and on the screen."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from sharevl_lite.export.base import BaseModel
from sharevl_lite.export.source import Source
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.limits import LORA_RANKS, vllm_rank
from sharevl_lite.rollout.serve_command import picture_size

VLLM_NOTE = "vLLM from 0.28 on reads these 4 bits with its plug-in: pip install vllm-bnb-plugin"
"""vLLM moved bitsandbytes out of itself (github.com/vllm-project/vllm/pull/43529)."""
WHOLE_MODEL = """\
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto", device_map="auto")"""
LOADING = {
    "merged-16bit": WHOLE_MODEL,
    "merged-4bit": f"# pip install bitsandbytes\n{WHOLE_MODEL}",
    "lora": """\
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained({base}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(model, path)""",
}


def usage(source: Source, base: BaseModel, kind: str, folder: Path, where: str) -> Iterator[str]:
    """The sections about use, in Markdown."""
    if kind == "gguf":
        yield "## Use with llama.cpp"
        yield f"```sh\n{llama_command(folder)}\n```"
        yield _asking(source)
        return
    yield "## Use with transformers"
    yield f"```python\n{transformers_snippet(source, base, kind, where)}```"
    yield "## Use with vLLM"
    if kind == "merged-4bit":
        yield f"{VLLM_NOTE.removesuffix('pip install vllm-bnb-plugin')}`pip install vllm-bnb-plugin`."
    if (fault := vllm_fault(source, kind)) is not None:
        yield f"{fault}."
        yield _asking(source)
        return
    if kind == "lora" and not base.is_on_hub:
        yield f"Put the folder of the base model for `{_elsewhere(base)}`."
    yield f"```sh\n{vllm_command(source, base, kind, where)}\n```"
    yield _asking(source)


def _elsewhere(base: BaseModel) -> str:
    """Where an adapter's base is for the reader of a card: its Hub id, or what stands for a folder of theirs."""
    return base.name if base.is_on_hub else f"PATH/TO/{base.folder.resolve().name}"


def _base_in_python(base: BaseModel) -> tuple[str, str, str]:
    """Of an adapter's program: the imports that its base needs, the lines that name it, and what they name it."""
    if base.is_built_in:
        imported = "from sharevl_lite.policy.hf import resolve_model_path  # the base is a part of sharevl-lite\n"
        return imported, "", f"resolve_model_path({base.name!r})"
    if base.is_on_hub:
        return "", "", repr(base.name)
    return "", f"base = {_elsewhere(base)!r}  # put the folder of the base model here\n", "base"


def transformers_snippet(source: Source, base: BaseModel, kind: str, where: str) -> str:
    """A program that asks one question about one picture."""
    recipe = source.recipe
    question = json.dumps(recipe.data.prompt_template.format(problem="\0"), ensure_ascii=False)
    question = question.replace("\\u0000", "What does the picture show?")
    peft = "from peft import PeftModel\n" if kind == "lora" else ""
    imported, named, place = _base_in_python(base) if kind == "lora" else ("", "", "")
    system = ""
    if recipe.data.system_prompt is not None:
        content = json.dumps([{"type": "text", "text": recipe.data.system_prompt}], ensure_ascii=False)
        system = f'messages.insert(0, {{"role": "system", "content": {content}}})\n'
    bounds = "".join(
        f'processor.image_processor.size["{edge}"] = {pixels}  # as in training\n'
        for edge, pixels in (("shortest_edge", recipe.model.min_pixels), ("longest_edge", recipe.model.max_pixels))
        if pixels is not None
    )
    return f"""\
{peft}from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
{imported}
path = {where!r}
{named}{LOADING[kind].format(base=place)}
{bounds}picture = Image.open("picture.png").convert("RGB")
question = {question}
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": question}}]
messages = [{{"role": "user", "content": content}}]
{system}inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, max_new_tokens={recipe.rollout.max_completion_length})
answer = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
print(answer)
"""


def vllm_fault(source: Source, kind: str) -> str | None:
    """Why vLLM does not serve an export of this kind, in words; None where it does."""
    rank = source.recipe.model.lora.rank
    try:
        vllm_rank(rank)
    except RolloutError:
        if kind == "lora":
            return (
                f"vLLM takes adapters of rank {LORA_RANKS[-1]} at most, and this one has {rank}: "
                "it can be served when it is merged (`--format merged-16bit`)"
            )
    return None


def vllm_command(source: Source, base: BaseModel, kind: str, where: str, served: str | None = None) -> str:
    """The command that serves the export with vLLM's OpenAI-compatible server.

    `served` is where an adapter's base is: by default what a reader on another machine can put there.
    Raises RolloutError for an adapter of a rank that :func:`vllm_fault` tells of.
    """
    size = picture_size(source.recipe)
    kwargs = f" --mm-processor-kwargs {shlex.quote(json.dumps({'size': size}))}" if size else ""
    if kind == "lora":
        served = served or _elsewhere(base)
        name, rank = Path(where).name, vllm_rank(source.recipe.model.lora.rank)
        loras = f" --enable-lora --max-lora-rank {rank} --lora-modules {shlex.quote(f'{name}={where}')}"
        return f"vllm serve {shlex.quote(served)}{loras}{kwargs}"
    return f"vllm serve {shlex.quote(where)}{kwargs}"


def llama_command(folder: Path) -> str:
    """The command that serves the export with llama.cpp."""
    vision, text = sorted(
        (file.name for file in folder.glob("*.gguf")), key=lambda name: not name.startswith("mmproj-")
    )
    return f"llama-server -m {shlex.quote(text)} --mmproj {shlex.quote(vision)}"


def _asking(source: Source) -> str:
    template = source.recipe.data.prompt_template.format(problem="{problem}")  # braces that are doubled in it
    return f"It was trained with questions in this form, images where the text has them:\n\n```text\n{template}\n```"
