"""What both sides of `bench_trl.py` are given: settings, a model, problems, and one recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COIN = """
import hashlib

def coin(completion_ids, **columns):
    return [float(hashlib.sha256(repr(list(ids)).encode()).digest()[0] % 2) for ids in completion_ids]
"""
TEMPLATE = "{problem} Think, then box the answer."
STILL = 1e-6
"""Learning rate of timed steps: every step meets nearly the same policy."""
TOKEN = 28
"""Pixels along an image token of Qwen2.5-VL."""


@dataclass(frozen=True)
class Setting:
    """What is asked. `side`: pixels along enlarged pictures; None: the demo's problems and rewards."""

    name: str
    problems: int
    responses: int
    length: int
    side: int | None
    batches: tuple[int, ...]
    budgets: tuple[int, ...]
    model: str = "builtin:digits-vl"
    checkpointing: bool = False


SETTINGS = {
    "short": Setting("short", 16, 8, 32, None, (16, 32, 128), (1024, 4096)),
    "long": Setting("long", 4, 8, 64, 560, (4, 8, 32), (1024, 4096)),
}
ON_A_GPU = Setting("long", 32, 8, 300, 896, (4, 8, 16), (8192, 16384, 32768), checkpointing=True)


@dataclass(frozen=True)
class Job:
    """What a process of `trl_worker.py` does."""

    side: str
    size: int
    recipe: str
    threads: int
    changes: dict[str, Any] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The side with the size of its passes."""
        return f"{self.side}-{self.size}"


# ---------------------------------------------------------------- model, data, recipe


def endless_model(source: Path, side: int, folder: Path) -> Path:
    """The model by links, with room for pictures of this size and an end token that is never sampled."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "generation_config.json": {"eos_token_id": [config["video_token_id"]]},
        "tokenizer_config.json": {"eos_token": "<|video_pad|>", "model_max_length": 32768},
    }
    processor = json.loads((source / "processor_config.json").read_text())
    changes["processor_config.json"] = {"image_processor": processor["image_processor"] | {"size": exactly(side)}}
    for name, change in changes.items():
        file = folder / name
        known = json.loads(file.read_text()) if file.exists() else {}
        file.unlink(missing_ok=True)
        file.write_text(json.dumps(known | change))
    return folder


def exactly(side: int) -> dict[str, int]:
    """A processor's bounds that leave pictures of this size alone."""
    return {"shortest_edge": side**2, "longest_edge": side**2}


def build_data(folder: Path, count: int, side: int) -> Path:
    """The demo's questions on enlarged pictures."""
    from sharevl_lite.data.digits import digits_problems

    rows = []
    for problem in digits_problems("train")[:count]:
        file = folder / f"{problem.id}.png"
        problem.images[0].resize((side, side)).save(file)
        rows.append({"problem": problem.text, "images": [str(file)], "answer": problem.answer})
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(setting: Setting, folder: Path, steps: int) -> Path:
    """The recipe that both sides follow."""
    from sharevl_lite.policy.hf import resolve_model_path

    folder.mkdir()
    model, data, prompt, reward = setting.model, "builtin:digits", 96, {}
    if setting.side is not None:
        model = str(endless_model(Path(resolve_model_path(model)), setting.side, folder / "model"))
        data = str(build_data(folder, setting.problems * steps, setting.side))
        prompt += (setting.side // TOKEN) ** 2
        (folder / "coin.py").write_text(COIN)
        coin = {"path": str(folder / "coin.py") + ":coin"}
        reward = {"accuracy_weight": 0.0, "format_weight": 0.0, "functions": [coin]}
    sections: dict[str, Any] = {
        "output_dir": str(folder / "runs"),
        "model": {"path": model, "lora": {"rank": 16, "alpha": 32}, "gradient_checkpointing": setting.checkpointing},
        "data": {
            "train": data,
            "train_limit": setting.problems * steps,
            "max_prompt_length": prompt,
            "prompt_template": TEMPLATE,
        },
        "share": {"num_variants": 1, "num_responses": setting.responses, "levels": "local", "trajectories": "own"},
        "rollout": {"max_completion_length": setting.length, "batch_size": setting.problems * setting.responses},
        "reward": reward,
        "train": {
            "rollouts": steps,
            "problems_per_rollout": setting.problems,
            "problems_per_update": setting.problems,
            "learning_rate": STILL,
            "save_rollouts": None,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path
