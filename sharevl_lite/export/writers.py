"""The writers, one for each format: each writes into a folder, verifies what lies there, and tells what was checked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharevl_lite.export import four_bit, gguf, verify, verify_four_bit
from sharevl_lite.export.adapter import LowRank, read_adapter
from sharevl_lite.export.base import PROCESSING, BaseModel, read_tensor, stored_tensors
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.merge import copy_files, write_merged
from sharevl_lite.export.probes import Probe, find_probes
from sharevl_lite.export.settings import Settings
from sharevl_lite.export.source import Source
from sharevl_lite.hub import ADAPTER_FILES
from sharevl_lite.policy.folder import ADAPTER_CONFIG

LORA_TOLERANCE = 0.01
"""Of an adapter that is copied, as a share of its effect."""


def write(settings: Settings, source: Source, base: BaseModel, folder: Path, converter: Path | None) -> list[str]:
    """Writes the export into `folder` and verifies it; returns what was checked, in sentences.

    `converter` is llama.cpp's, where we run it ourselves. Raises ExportError.
    """
    if settings.kind == "lora":
        return _write_adapter(settings, source, base, folder)
    if settings.kind == "gguf":
        return _write_gguf(settings, source, base, folder, converter)
    if settings.kind == "merged-16bit":
        return _write_merged(settings, source, base, folder, settings.tolerance).checks
    if settings.saver == "own":
        return _write_four_bits(settings, source, base, folder)
    return _write_four_bits_with_unsloth(settings, source, base, folder)


def _write_adapter(settings: Settings, source: Source, base: BaseModel, folder: Path) -> list[str]:
    for name in ADAPTER_FILES:
        if not (source.adapter / name).is_file():
            raise ExportError(f"{source.adapter}: holds no {name}; choose another one with --checkpoint")
        shutil.copyfile(source.adapter / name, folder / name)
    config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = base.public_name
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    copy_files(base, folder, PROCESSING)
    verify.check_files(base, folder, PROCESSING)
    probes = find_probes(source, settings.prompts)
    expected = verify.expect(base, source, probes)
    tolerance = LORA_TOLERANCE if settings.tolerance is None else settings.tolerance
    return [verify.check_logits(expected, source, probes, folder, tolerance, base).sentence()]


@dataclass(frozen=True)
class Merged:
    """A verified merge: what was checked, on what, and what base and merged model say to it."""

    checks: list[str]
    probes: list[Probe]
    expected: verify.Expected
    logits: tuple[verify.Logits, ...]


def _write_merged(
    settings: Settings, source: Source, base: BaseModel, folder: Path, tolerance: float | None, name: str = ""
) -> Merged:
    """Merges and verifies; `tolerance` None: by the base's type. GGUF files that Unsloth writes are called `name`."""
    changes = read_adapter(source.adapter, base)
    tolerance = verify.tolerance_of(base) if tolerance is None else tolerance
    _merge(settings, source, base, changes, folder, name)
    verify.check_files(base, folder)
    verify.check_tensors(base, folder)
    steps = 0.5 if settings.saver == "own" else 2.0  # a GPU's matrix products may be coarser than float32's
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


def _merge(
    settings: Settings, source: Source, base: BaseModel, changes: Mapping[str, LowRank], folder: Path, name: str
) -> None:
    """Writes the merged model; for GGUF Unsloth, which merges and converts in one, writes that beside `folder` too."""
    if settings.saver == "own":
        write_merged(base, changes, folder, settings.max_shard_bytes)
        return
    from sharevl_lite.export import unsloth

    if settings.kind == "gguf":
        unsloth.save_gguf(source, base, folder, name, settings.gguf_type)
    else:
        unsloth.save_merged(source, base, folder)


def _write_gguf(settings: Settings, source: Source, base: BaseModel, folder: Path, converter: Path | None) -> list[str]:
    merged = folder / "merged"
    merged.mkdir()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", (settings.push_to_hub or settings.name).rpartition("/")[2])
    whole = _write_merged(settings, source, base, merged, settings.tolerance, name)
    if converter is not None:
        gguf.convert(converter, merged, folder, name, settings.gguf_type)
    converted = gguf.check_gguf(folder, merged, read_adapter(source.adapter, base))
    shutil.rmtree(merged)
    return [*(f"before the conversion: {check}" for check in whole.checks), converted]


def _write_four_bits(settings: Settings, source: Source, base: BaseModel, folder: Path) -> list[str]:
    merged = folder / "merged"
    merged.mkdir()
    whole = _write_merged(settings, source, base, merged, None)
    four_bit.pack(merged, base, folder, settings.max_shard_bytes)
    verify.check_files(base, folder, four_bit.SAME)
    tensors = stored_tensors(merged)
    packed = verify_four_bit.check_packed(base, folder, lambda name: read_tensor(tensors[name], name))
    effect = verify_four_bit.check_effect(
        whole.expected, whole.logits, source, whole.probes, base, folder, _most_lost(settings)
    )
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
    effect = verify_four_bit.check_effect(
        expected, expected.adapted, source, probes, base, folder, _most_lost(settings)
    )
    return [
        f"packed by Unsloth, which adds ΔW to {len(changes)} weights that were packed before: {packed.sentence()}",
        effect.sentence(),
    ]


def _most_lost(settings: Settings) -> float:
    """The share of the adapter's effect that packing may lose."""
    return verify_four_bit.LOST if settings.tolerance is None else settings.tolerance
