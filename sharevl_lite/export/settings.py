"""What is asked of an export, and checked of it before anything heavy is imported."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.publish import check_target, resolved
from sharevl_lite.export.source import find_source

UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Settings:
    """What is asked. `tolerance` None: by the base's type, or that of 4 bits. `base` None: the recipe's."""

    run: Path
    to: Path
    kind: str = "merged-16bit"
    checkpoint: str = "last"
    base: str | None = None
    saver: str = "own"
    max_shard_bytes: int = 5 * 10**9
    prompts: int = 4
    tolerance: float | None = None
    gguf_type: str = "auto"
    push_to_hub: str | None = None
    private: bool = False

    @property
    def name(self) -> str:
        """That of the folder to write, however it was given: `--to .` too has one."""
        return resolved(self.to).name


def settings_of(options: argparse.Namespace, unknown: list[str]) -> Settings:
    """What the command line asks. Raises ExportError for an unknown option or size."""
    if unknown:
        raise ExportError(f"export: unknown option {unknown[0]}; see sharevl-lite export --help")
    return Settings(
        run=Path(options.target),
        to=Path(options.to),
        kind=options.format,
        checkpoint=options.checkpoint,
        base=options.base,
        saver=options.saver,
        max_shard_bytes=parse_size(options.max_shard_size),
        prompts=options.prompts,
        tolerance=options.tolerance,
        gguf_type=options.gguf_type,
        push_to_hub=options.push_to_hub,
        private=options.private,
    )


def check(settings: Settings) -> None:
    """Raises ExportError where what is asked does not fit together, the run or its adapter is not there, or the folder
    to write is in use."""
    _check_options(settings)
    check_target(settings.to)
    find_source(settings.run, settings.checkpoint)


def _check_options(settings: Settings) -> None:
    if settings.private and settings.push_to_hub is None:
        raise ExportError("--private is for --push-to-hub")
    if settings.push_to_hub is not None and settings.push_to_hub.count("/") != 1:
        raise ExportError(f"--push-to-hub {settings.push_to_hub}: give ORG/NAME")
    if settings.prompts < 1:
        raise ExportError(f"--prompts {settings.prompts}: at least one is needed to compare anything")
    if settings.tolerance is not None and not 0.0 < settings.tolerance < 1.0:
        raise ExportError(f"--tolerance {settings.tolerance}: a share of the adapter's effect, above 0 and below 1")
    if settings.saver == "unsloth" and settings.kind == "lora":
        raise ExportError("--saver unsloth is for merged weights; an adapter is copied as it is")
    if settings.gguf_type != "auto" and settings.kind != "gguf":
        raise ExportError(f"--gguf-type {settings.gguf_type} is for --format gguf, not {settings.kind}")


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB or 500MiB. Raises ExportError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    size = int(float(match[1]) * UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise ExportError(f"--max-shard-size {text}: write it as 5GB or 500MB")
    return size
