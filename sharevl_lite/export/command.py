"""The command: locate, write, verify, publish, upload."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sharevl_lite.export import four_bit, gguf, verify, verify_four_bit
from sharevl_lite.export.adapter import read_adapter
from sharevl_lite.export.base import INDEX, PROCESSING, BaseModel, check_base, find_base, read_tensor, stored_tensors
from sharevl_lite.export.card import CARD, prepare_card
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.merge import copy_files, write_merged
from sharevl_lite.export.probes import Probe, find_probes
from sharevl_lite.export.publish import check_space, published, resolved
from sharevl_lite.export.settings import Settings, check
from sharevl_lite.export.snippets import VLLM_NOTE, llama_command, vllm_command, vllm_fault
from sharevl_lite.export.source import Source, find_source
from sharevl_lite.hub import ADAPTER_FILES, ModelUpload

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
        if settings.kind == "gguf":
            checks = _write_gguf(settings, source, base, folder, converter)
        elif settings.kind == "lora":
            checks = _write_adapter(settings, source, base, folder)
        elif settings.kind == "merged-4bit":
            write = _write_four_bits if settings.saver == "own" else _write_four_bits_with_unsloth
            checks = write(settings, source, base, folder)
        else:
            checks = _write_merged(settings, source, base, folder).checks
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


@dataclass(frozen=True)
class Merged:
    """A verified merge: what was checked, on what, and what base and merged model say to it."""

    checks: list[str]
    probes: list[Probe]
    expected: verify.Expected
    logits: tuple[verify.Logits, ...]


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


def _write_merged(settings: Settings, source: Source, base: BaseModel, folder: Path, name: str = "") -> Merged:
    """Merges and verifies; Unsloth, which does both in one, writes GGUF files of this name beside `folder` as well."""
    changes = read_adapter(source.adapter, base)
    tolerance = verify.tolerance_of(base) if settings.tolerance is None else settings.tolerance
    steps = 0.5 if settings.saver == "own" else 2.0  # a GPU's matrix products may be coarser than float32's
    if settings.saver == "own":
        write_merged(base, changes, folder, settings.max_shard_bytes)
    else:
        from sharevl_lite.export import unsloth

        if settings.kind == "gguf":
            unsloth.save_gguf(source, base, folder, name, settings.gguf_type)
        else:
            unsloth.save_merged(source, base, folder)
    verify.check_files(base, folder)
    verify.check_tensors(base, folder)
    probes = find_probes(source, settings.prompts)
    expected = verify.expect(base, source, probes, folder, steps=steps)
    found = verify.check_logits(expected, source, probes, folder, tolerance, None)
    checks = [
        f"names, shapes and types of {len(base.tensors)} tensors are the base checkpoint's; it loads without a missing "
        "or unexpected key",
        f"{len(changes)} adapted weights are W + ΔW to {steps:g} units in the last place and hold {found.kept:.2%} of "
        "ΔW, all others are the base's bit for bit",
        found.sentence(),
    ]
    return Merged(checks, probes, expected, found.found)


def _write_four_bits(settings: Settings, source: Source, base: BaseModel, folder: Path) -> list[str]:
    lost = verify_four_bit.LOST if settings.tolerance is None else settings.tolerance
    merged = folder / "merged"
    merged.mkdir()
    whole = _write_merged(replace(settings, tolerance=None), source, base, merged)
    four_bit.pack(merged, base, folder, settings.max_shard_bytes)
    verify.check_files(base, folder, four_bit.SAME)
    tensors = stored_tensors(merged)
    packed = verify_four_bit.check_packed(base, folder, lambda name: read_tensor(tensors[name], name))
    effect = verify_four_bit.check_effect(whole.expected, whole.logits, source, whole.probes, base, folder, lost)
    shutil.rmtree(merged)
    return [*(f"before the quantisation: {check}" for check in whole.checks), packed.sentence(), effect.sentence()]


def _write_four_bits_with_unsloth(settings: Settings, source: Source, base: BaseModel, folder: Path) -> list[str]:
    from sharevl_lite.export import unsloth

    changes = read_adapter(source.adapter, base)
    if others := sorted(changes.keys() - four_bit.packed_names(base)):
        raise ExportError(
            f"--saver unsloth --format merged-4bit: the adapter changes {others[0]}, which stays in 16 bits; leave "
            "--saver unsloth out"
        )
    unsloth.save_four_bits(source, base, folder)
    verify.check_files(base, folder, four_bit.SAME)
    packed = verify_four_bit.check_packed(
        base,
        folder,
        lambda name: unsloth.weights_before_packing(base, changes, name),
        slack=verify_four_bit.ROUNDING + unsloth.slack_of(base),
    )
    probes = find_probes(source, settings.prompts)
    expected = verify.expect(base, source, probes)
    lost = verify_four_bit.LOST if settings.tolerance is None else settings.tolerance
    effect = verify_four_bit.check_effect(expected, expected.adapted, source, probes, base, folder, lost)
    return [
        f"packed by Unsloth, which adds ΔW to {len(changes)} weights that were packed before: {packed.sentence()}",
        effect.sentence(),
    ]


def _write_adapter(settings: Settings, source: Source, base: BaseModel, folder: Path) -> list[str]:
    for name in ADAPTER_FILES:
        if not (source.adapter / name).is_file():
            raise ExportError(f"{source.adapter}: holds no {name}; choose another one with --checkpoint")
        shutil.copyfile(source.adapter / name, folder / name)
    config = json.loads((folder / ADAPTER_FILES[0]).read_text("utf-8"))
    config["base_model_name_or_path"] = base.public_name
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    copy_files(base, folder, PROCESSING)
    verify.check_files(base, folder, PROCESSING)
    probes = find_probes(source, settings.prompts)
    expected = verify.expect(base, source, probes)
    tolerance = 0.01 if settings.tolerance is None else settings.tolerance
    return [verify.check_logits(expected, source, probes, folder, tolerance, base).sentence()]


def _write_gguf(settings: Settings, source: Source, base: BaseModel, folder: Path, converter: Path | None) -> list[str]:
    merged = folder / "merged"
    merged.mkdir()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", (settings.push_to_hub or settings.name).rpartition("/")[2])
    checks = [f"before the conversion: {check}" for check in _write_merged(settings, source, base, merged, name).checks]
    if converter is not None:
        gguf.convert(converter, merged, folder, name, settings.gguf_type)
    checks.append(gguf.check_gguf(folder, merged, read_adapter(source.adapter, base)))
    shutil.rmtree(merged)
    return checks


def _needed(settings: Settings, source: Source, base: BaseModel) -> int:
    if settings.kind == "lora":
        return sum(
            (source.adapter / name).stat().st_size for name in ADAPTER_FILES if (source.adapter / name).is_file()
        )
    weights = sum(tensor.nbytes for tensor in base.tensors.values())
    if settings.kind == "merged-4bit":
        return four_bit.size_of(base) + (weights if settings.saver == "own" else 0)
    return weights if settings.kind == "merged-16bit" else int(weights * (1 + gguf.WIDTHS[settings.gguf_type]))


def _last_words(settings: Settings, source: Source, base: BaseModel, say: Callable[[str], None]) -> None:
    from sharevl_lite.run import typed_command

    named = settings.to if settings.to.name.strip(".") else resolved(settings.to)
    where = settings.push_to_hub or str(named)
    say(f"exported  {settings.to}")
    say(
        f"card      {settings.to / CARD}    with a program for transformers to start from"
        if settings.kind != "gguf"
        else f"card      {settings.to / CARD}"
    )
    if settings.kind == "gguf":
        say(f"next      cd {settings.to} && {llama_command(settings.to)}")
        return
    served = base.name if base.is_on_hub else str(base.folder)
    fault = vllm_fault(source, settings.kind)
    say(f"next      {fault or vllm_command(source, base, settings.kind, where, served)}")
    if settings.kind == "merged-4bit":
        say(f"          {VLLM_NOTE}")
    if settings.kind in FULL:
        say(f"          {typed_command()} eval {settings.to} --recipe {source.run / 'recipe.yaml'} --data DATA")
