"""The command: locate, write, verify, publish, upload."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from sharevl_lite.export import four_bit, gguf
from sharevl_lite.export.base import INDEX, BaseModel, check_base, find_base
from sharevl_lite.export.card import CARD, prepare_card
from sharevl_lite.export.publish import check_space, published, resolved
from sharevl_lite.export.settings import Settings, check
from sharevl_lite.export.snippets import VLLM_NOTE, llama_command, vllm_command, vllm_fault
from sharevl_lite.export.source import Source, find_source
from sharevl_lite.export.writers import write
from sharevl_lite.hub import ADAPTER_FILES, ModelUpload
from sharevl_lite.run_files import RECIPE_FILE
from sharevl_lite.wording import typed_command

FULL = ("merged-16bit", "merged-4bit")
"""The formats that are a whole model of transformers."""
WHOLE_MODEL = rf"model(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(INDEX)}"
REPLACED = {
    **dict.fromkeys(FULL, re.compile("|".join([WHOLE_MODEL, *map(re.escape, ADAPTER_FILES)]))),
    "lora": re.compile(WHOLE_MODEL),
}
"""What an earlier export may have left at the root of a repository that would be loaded in place of this one: shards
and their index; beside a whole model also an adapter, which transformers would look for first."""


def export(settings: Settings, say: Callable[[str], None] = print) -> Path:
    """Writes, verifies and publishes an export, and says what was checked and what to do next; returns its folder.

    Raises ExportError, HubError or the recipe's errors.
    """
    check(settings)
    source = find_source(settings.run, settings.checkpoint)
    converter = _find_programs(settings)
    upload = ModelUpload(settings.push_to_hub, private=settings.private) if settings.push_to_hub else None
    base = find_base(settings.base or source.recipe.model.path, mergeable=settings.kind != "lora")
    of_base, is_same = check_base(base, source.base_digests, named=settings.base is not None)
    check_space(settings.to, _needed(settings, source, base))
    title = settings.push_to_hub or f"{source.recipe.name} ({settings.kind})"
    card = prepare_card(source, base, settings.kind, title=title, where=settings.push_to_hub or settings.name)
    for note in (*source.notes, *card.notes, *(() if is_same else (of_base,))):
        say(note)
    say(f"exporting {source.label} of {source.run} on {base.name} as {settings.kind}")
    if source.recipe.model.load_in_4bit and settings.kind != "lora":
        say("it was trained against 4-bit weights and is merged into, and compared with, the 16-bit ones")
    with published(settings.to) as folder:
        checks = write(settings, source, base, folder, converter)
        card.write(folder, [of_base, *checks])
    say(f"verified: {'; '.join([*([of_base] if is_same else []), *checks])}")
    if upload is not None:
        _upload(upload, settings, source, say)
    _last_words(settings, source, base, say)
    return settings.to


def _upload(upload: ModelUpload, settings: Settings, source: Source, say: Callable[[str], None]) -> None:
    message = f"{settings.kind} of {source.label}"
    sent = upload.send(settings.to, message, replaced=REPLACED.get(settings.kind))
    say(f"uploaded  {sent.address}")
    if sent.gone:
        say(f"replaced  {', '.join(sent.gone)} there, of an earlier export (the repository's history keeps them)")
    if sent.stays:
        say(f"kept      {', '.join(sent.stays)} there: weights that are not of this export")


def _find_programs(settings: Settings) -> Path | None:
    """What a format needs beside this program; returns llama.cpp's converter, where we run it ourselves.

    Raises ExportError, before anything is written.
    """
    if settings.kind == "merged-4bit":
        four_bit.require_bitsandbytes()
    if (settings.kind, settings.saver) == ("gguf", "unsloth"):
        from sharevl_lite.export.unsloth import require_llama_cpp

        require_llama_cpp()
        return None
    return gguf.find_converter() if settings.kind == "gguf" else None


def _needed(settings: Settings, source: Source, base: BaseModel) -> int:
    """Bytes on the disk while it is written."""
    if settings.kind == "lora":
        return sum(
            (source.adapter / name).stat().st_size for name in ADAPTER_FILES if (source.adapter / name).is_file()
        )
    weights = sum(tensor.nbytes for tensor in base.tensors.values())
    if settings.kind == "merged-4bit":
        return four_bit.size_of(base) + (weights if settings.saver == "own" else 0)
    return weights if settings.kind == "merged-16bit" else int(weights * (1 + gguf.WIDTHS[settings.gguf_type]))


def _last_words(settings: Settings, source: Source, base: BaseModel, say: Callable[[str], None]) -> None:
    named = settings.to if settings.to.name.strip(".") else resolved(settings.to)
    where = settings.push_to_hub or str(named)
    say(f"exported  {settings.to}")
    start = "" if settings.kind == "gguf" else "    with a program for transformers to start from"
    say(f"card      {settings.to / CARD}{start}")
    if settings.kind == "gguf":
        say(f"next      cd {shlex.quote(str(settings.to))} && {llama_command(settings.to)}")
        return
    served = base.name if base.is_on_hub else str(base.folder)
    fault = vllm_fault(source, settings.kind)
    say(f"next      {fault or vllm_command(source, base, settings.kind, where, served)}")
    if settings.kind == "merged-4bit":
        say(f"          {VLLM_NOTE}")
    if settings.kind in FULL:
        folder, recipe = (shlex.quote(str(path)) for path in (settings.to, source.run / RECIPE_FILE))
        say(f"          {typed_command()} eval {folder} --recipe {recipe} --data DATA")
