"""The model card: what was trained on what, how well it does and how that was measured, and how to use it.

The card goes out into the world with the model, so the recipe in it keeps no folder names and no servers of this
machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from sharevl_lite import __version__, metrics_log
from sharevl_lite.data.sources import HUB_ID
from sharevl_lite.display import counted
from sharevl_lite.evaluation.document import read as read_evaluation
from sharevl_lite.evaluation.saving import EVAL_DIR
from sharevl_lite.evaluation.statistics import Figure
from sharevl_lite.export.base import BaseModel
from sharevl_lite.export.snippets import usage
from sharevl_lite.export.source import Source
from sharevl_lite.heldout import SHARES
from sharevl_lite.policy.hf import BUILTIN_PREFIX
from sharevl_lite.recipe_yaml import dump as dump_yaml
from sharevl_lite.run_folder import DATA_FILE, METRICS_FILE

CARD = "README.md"
RELATIONS = {"merged-16bit": "finetune", "merged-4bit": "quantized", "lora": "adapter", "gguf": "quantized"}
CITATION = """@article{yao2025r1sharevl,
  title   = {R1-ShareVL: Incentivizing Reasoning Capability of Multimodal Large Language Models via Share-GRPO},
  author  = {Yao, Huanjin and Yin, Qixiang and Zhang, Jingyi and Yang, Min and Wang, Yibo and Wu, Wenhao and Su, Fei
             and Shen, Li and Qiu, Minghui and Tao, Dacheng and Huang, Jiaxing},
  journal = {arXiv preprint arXiv:2505.16673},
  year    = {2025}
}"""


@dataclass(frozen=True)
class Licence:
    """Front-matter values (`license`, and `license_name`, `license_link` for one without an own id), and a sentence."""

    fields: Mapping[str, str]
    sentence: str


def write_card(
    folder: Path, source: Source, base: BaseModel, kind: str, *, title: str, where: str, checks: Sequence[str]
) -> Path:
    """Writes the card of an export of this `kind`. `where` is what a user loads: a Hub id or a folder's name."""
    licence = licence_of(base)
    parts = [
        f"# {title}",
        _introduction(source, base, kind),
        *usage(source, base, kind, folder, where),
        "## Data",
        _data(source),
        "## Metrics",
        *_metrics(source),
        "## Checks of this export",
        "\n".join(f"- {check}" for check in checks),
        "## Recipe",
        f"```yaml\n{dump_yaml(_public(source.recipe.model_dump(mode='json')))}```",
        "## Licence",
        licence.sentence,
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    header = _front_matter(source, base, kind, licence)
    path = folder / CARD
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(path)
    return path


def _front_matter(source: Source, base: BaseModel, kind: str, licence: Licence) -> ModelCardData:
    extra: dict[str, Any] = dict(licence.fields)
    if base.is_on_hub:
        extra |= {"base_model": base.name, "base_model_relation": RELATIONS[kind]}
    named = [name for name in (source.recipe.data.train, source.recipe.data.eval) if name and _on_hub(name)]
    if named:
        extra["datasets"] = sorted(set(named))
    return ModelCardData(
        library_name={"lora": "peft", "gguf": "llama.cpp"}.get(kind, "transformers"),
        pipeline_tag="image-text-to-text",
        tags=["share-grpo", "grpo", "reinforcement-learning", "lora", "sharevl-lite"],
        **extra,
    )


def _introduction(source: Source, base: BaseModel, kind: str) -> str:
    model, share = source.recipe.model, source.recipe.share
    what = {
        "merged-16bit": "the adapter merged into the base model's weights, in their own layout and precision",
        "merged-4bit": "the adapter merged into the base model's weights, and the text layers of the merged model "
        "packed in 4 bits (NF4 with double quantisation); the vision tower and the head are not",
        "lora": "the adapter in PEFT's form, with the base model's processor beside it",
        "gguf": "the adapter merged into the base model's weights and converted to GGUF",
    }[kind]
    commit = f" (commit `{base.commit}`)" if base.commit else ""
    text = (
        f"`{_public(base.name)}`{commit} fine-tuned with Share-GRPO by sharevl-lite {__version__}: {what}. "
        f"It is {source.label} of the run `{source.recipe.name}`: LoRA of rank {model.lora.rank}, "
        f"{share.num_variants} variants of each question x {share.num_responses} responses, seed {source.recipe.seed}."
    )
    if model.load_in_4bit:
        packed = kind == "merged-4bit"
        here = "went into 16-bit weights before they were packed" if packed else "goes with 16-bit weights here"
        text += (
            f"\n\nThe adapter was trained against the base model in 4 bits (NF4) and {here}: "
            "they differ from the trained model by what the quantisation changed."
        )
    return text


def _data(source: Source) -> str:
    data, train = source.recipe.data, source.recipe.train
    file = source.run / DATA_FILE
    count = f"{json.loads(file.read_text())['problems']:,} problems" if file.is_file() else "problems"
    held = f"held out: `{_public(data.eval)}`, split `{data.eval_split}`" if data.eval else "nothing was held out"
    return (
        f"{count} of `{_public(data.train)}`, split `{data.train_split}`; {held}. "
        f"{counted(train.rollouts, 'rollout')} of {counted(train.problems_per_rollout, 'problem')}, "
        f"{counted(train.updates_per_rollout, 'update')} each."
    )


def _metrics(source: Source) -> Iterator[str]:
    recipe, section = source.recipe, source.recipe.eval
    path = source.run / METRICS_FILE
    records = [r for r in (metrics_log.read(path) if path.is_file() else []) if r.get("eval_accuracy") is not None]
    first = next((record for record in records if record["update"] == 0), None)
    start = (
        "base model" if recipe.model.lora.start_from is None else "before training, with the adapter it started from"
    )
    columns = {start: first, source.label: source.evaluation}
    known = {name: record for name, record in columns.items() if record is not None}
    if known:
        rows = [
            f"| {name.replace('_', ', ')} | " + " | ".join(_share(r.get(f"eval_{name}")) for r in known.values()) + " |"
            for name in SHARES
        ]
        yield "\n".join([f"| held out | {' | '.join(known)} |", "|---|" + "---|" * len(known), *rows])
        yield (
            f"Protocol: the first {section.problems} problems of `{_public(recipe.data.eval or '')}`, split "
            f"`{recipe.data.eval_split}`, each as it is (plain) and as one variant of it, {section.samples} responses "
            f"to either; temperature {section.temperature}, top-p {section.top_p}, at most "
            f"{recipe.rollout.max_completion_length} tokens, seed {recipe.seed}, one run, engine "
            f"{recipe.rollout.engine}. "
            f"{int(known[next(iter(known))].get('eval_responses') or 0)} responses in each column."
        )
    reports = list(_reports(source.run / EVAL_DIR))
    yield from reports
    if not known and not reports:
        yield "This state of the run was not evaluated."


def _reports(folder: Path) -> Iterator[str]:
    """The evaluations that `sharevl-lite eval` left in the run."""
    for file in sorted(folder.glob("*.json")):
        report = read_evaluation(file)
        protocol = "; ".join(f"{name}: {_public(value)}" for name, value in report.protocol.items())
        rows = [f"| {name} | {_share(found.value)} | {_interval(found)} |" for name, found in report.metrics.items()]
        yield "\n".join([f"| evaluation `{file.stem}` | value | interval |", "|---|---|---|", *rows])
        yield f"Protocol: {protocol}."


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "-"
    return f"{_share(figure.low)} to {_share(figure.high)}"


def _share(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}"


def licence_of(base: BaseModel) -> Licence:
    """The base model's, by its card's front matter or a licence file beside it; unknown otherwise."""
    if base.name.startswith(BUILTIN_PREFIX):
        return Licence({"license": "apache-2.0"}, "Apache-2.0, as the base model, which is a part of sharevl-lite.")
    card = base.folder / CARD
    known: dict[str, Any] = {}
    if card.is_file():
        known = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    fields = {name: str(known[name]) for name in ("license", "license_name", "license_link") if known.get(name)}
    files = [file.name for file in base.files(("LICENSE*", "NOTICE*"))]
    beside = f" Its {' and '.join(files)} lie beside the weights." if files else ""
    if fields:
        return Licence(fields, f"That of the base model: {fields.get('license_name', fields.get('license'))}.{beside}")
    if files:
        return Licence({}, f"That of the base model.{beside}")
    return Licence(
        {}, "Unknown: the base model came without a card or licence file. Ask its makers before you share this."
    )


def _on_hub(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def _public(value: Any, key: str = "") -> Any:
    """Of folders of this machine the last part, of servers nothing."""
    if isinstance(value, Mapping):
        return {name: _public(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [] if key == "server_urls" else [_public(inner) for inner in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value
