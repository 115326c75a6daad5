"""The model card: what was trained on what, how well it does and how that was measured, and how to use it.

The card goes out into the world with the model, so the recipe in it keeps no folder names and no servers of this
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from sharevl_lite import __version__, metrics_log
from sharevl_lite.data.sources import HUB_ID
from sharevl_lite.export.base import BaseModel
from sharevl_lite.export.figures import figures_of
from sharevl_lite.export.public import named, public
from sharevl_lite.export.snippets import usage
from sharevl_lite.export.source import Source
from sharevl_lite.policy.hf import BUILTIN_PREFIX
from sharevl_lite.recipe_yaml import dump as dump_yaml
from sharevl_lite.run_files import DATA_FILE, METRICS_FILE, read_record
from sharevl_lite.wording import counted

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


@dataclass(frozen=True)
class Card:
    """A card but for the checks: what it says is found out before anything is written, so that nothing about it can
    stop an export that was verified. `notes` tell the user what is not in it.
    """

    source: Source
    base: BaseModel
    kind: str
    where: str
    opening: tuple[str, ...]
    facts: tuple[str, ...]
    closing: tuple[str, ...]
    notes: tuple[str, ...]

    def write(self, folder: Path, checks: Sequence[str]) -> Path:
        """Writes it beside the files of the export."""
        parts = [
            *self.opening,
            *usage(self.source, self.base, self.kind, folder, self.where),
            *self.facts,
            "## Checks of this export",
            "\n".join(f"- {check}" for check in checks),
            *self.closing,
        ]
        path = folder / CARD
        ModelCard("\n\n".join(parts) + "\n").save(path)
        return path


def prepare_card(source: Source, base: BaseModel, kind: str, *, title: str, where: str) -> Card:
    """The card of an export of this `kind`. `where` is what a user loads: a Hub id or a folder's name."""
    licence, figures = licence_of(base), figures_of(source)
    header = _front_matter(source, base, kind, licence)
    recipe = public(source.recipe.model_dump(mode="json"))
    return Card(
        source,
        base,
        kind,
        where,
        opening=(f"---\n{header.to_yaml()}\n---", f"# {title}", _introduction(source, base, kind)),
        facts=("## Data", _data(source), "## Metrics", *figures.paragraphs),
        closing=(
            "## Recipe",
            f"```yaml\n{dump_yaml(recipe)}```",
            "## Licence",
            licence.sentence,
            "## Citation",
            f"```bibtex\n{CITATION}\n```",
        ),
        notes=figures.notes,
    )


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
    adapter = source.label.replace("the run's", "the")
    text = (
        f"`{public(base.name, 'path')}`{commit} fine-tuned with Share-GRPO by sharevl-lite {__version__}: {what}. "
        f"It is {adapter} of the run `{source.recipe.name}`: LoRA of rank {model.lora.rank}, "
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
    kept = read_record(source.run / DATA_FILE).get("problems")
    count = "problems" if kept is None else f"{kept:,} problems"
    held = f"held out: {named(data.eval, data.eval_split)}" if data.eval else "nothing was held out"
    rollouts, begun = divmod(source.updates, train.updates_per_rollout)
    whole = "" if rollouts == train.rollouts else f" (the run's recipe asks for {train.rollouts})"
    rest = f" and {counted(begun, 'update')} of the next" if begun else ""
    return (
        f"{count} of {named(data.train, data.train_split)}; {held}. Trained on "
        f"{counted(rollouts, 'rollout')} of {counted(train.problems_per_rollout, 'problem')}, "
        f"{counted(train.updates_per_rollout, 'update')} each{rest}{whole}{_rates(source)}."
    )


def _rates(source: Source) -> str:
    """The learning rates of the steps behind the adapter: a resumed run's recipe has its last steps' alone."""
    log = source.run / METRICS_FILE
    steps = [record for record in (metrics_log.read(log) if log.is_file() else []) if "learning_rate" in record]
    rates = [record["learning_rate"] for record in steps if record["update"] <= source.updates]
    if not rates:
        return ""
    low, high = min(rates), max(rates)
    return f", at a learning rate of {high:g}" if low == high else f", at learning rates from {low:g} to {high:g}"


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
