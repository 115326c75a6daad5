"""The recipe: one YAML file describes a run, and nothing outside it changes what the run computes.

Every model is frozen and forbids unknown keys. Field names follow TRL's ``GRPOConfig`` where TRL has the knob
(`temperature`, `top_p`, `max_completion_length`, `beta`, `epsilon`, `epsilon_high`, `delta`) and transformers'
``TrainingArguments`` where that has it; the rest is Share-GRPO's own (arXiv 2505.16673, "the paper" below).

Reading a recipe never imports torch: ``sharevl-lite --help`` and ``--dry-run`` of a bad file answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sharevl_lite.config_base import Count, Fraction, NonNegative, Positive, Section
from sharevl_lite.config_model import ModelSection
from sharevl_lite.config_rollout import RolloutSection

TransformName = Literal[
    "rotate_90_cw",
    "rotate_90_ccw",
    "rotate_180",
    "noise_10",
    "noise_25",
    "noise_50",
    "mirror_horizontal",
    "mirror_vertical",
    "tilt_5_cw",
    "tilt_5_ccw",
    "scale_50",
    "brightness_70",
    "brightness_130",
    "contrast_70",
    "contrast_130",
    "jpeg_50",
    "jpeg_20",
]


FOUND = "found"
"""Value of `data.columns.choices` for a column that is known by its name."""


class ColumnNames(Section):
    """Which column of the data holds what. The defaults are EasyR1's names."""

    problem: str = "problem"
    images: str = "images"
    answer: str = "answer"
    """A text or a number, or a list of these, each of which is right."""
    variants: str = "variants"
    """Optional column of rewritten problems; `new_questions` is understood as well."""
    id: str = "id"
    """Optional column; rows without one are numbered."""
    choices: Annotated[str, Field(min_length=1)] | None = FOUND
    """Optional column of answer options (a list of texts), put below each question as `(A) …` unless the question shows
    them; the answer may be a letter or an option's text. `found`: a column called `choices` or `options`, if there is
    one; null: none is read."""


class DataSection(Section):
    """Where the problems come from."""

    train: Annotated[str, Field(min_length=1)] = "builtin:digits"
    """A .parquet or .jsonl file, a folder of them, a Hub dataset id, or `builtin:digits`. Paths start at the current
    folder."""
    eval: Annotated[str, Field(min_length=1)] | None = None
    """Held-out problems, in the same forms. None: no evaluation."""
    train_split: str = "train"
    """Split of a Hub or built-in dataset; of a folder, the files whose names start with that word."""
    eval_split: str = "test"
    train_limit: Count | None = None
    """Use the first so many problems. None: all."""
    columns: ColumnNames = ColumnNames()
    prompt_template: str = (
        "{problem}\nReason step by step inside <think> </think>, then give the final answer in \\boxed{{}}."
    )
    """Text sent to the model; `{problem}` is the question. Literal braces are doubled."""
    system_prompt: str | None = None
    """System turn. None keeps the chat template's own."""
    max_prompt_length: Count = 2048
    """Longest prompt in tokens, image tokens included; a longer row is a bad row."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Stop at the first bad row with its number and reason, or skip it and count it."""

    @model_validator(mode="after")
    def _template_formats(self) -> DataSection:
        try:
            text = self.prompt_template.format(problem="\0")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"prompt_template does not format ({error!r}); double literal braces: {{{{ }}}}") from None
        if text.count("\0") != 1:
            raise ValueError("prompt_template must contain {problem} exactly once")
        return self


class TransformSection(Section):
    """Online image transforms; each one says so in a sentence before the question (paper, section 3.2)."""

    probability: Fraction = 0.3
    """Chance that a variant's images are transformed (paper: 0.3)."""
    kinds: list[TransformName] = [
        "rotate_90_cw",
        "rotate_90_ccw",
        "rotate_180",
        "noise_10",
        "noise_25",
        "noise_50",
    ]
    """Drawn from uniformly. noise_N: Gaussian noise with standard deviation N on the 0..255 scale."""
    allow_mirrors: bool = False
    """A mirror swaps left and right and reverses writing, so it needs this or a row's own `allow_mirrors: true`."""
    guard: bool = True
    """Decide per problem: no mirrors where the text speaks of sides, letters or points, or the image seems to hold
    lines of writing; nothing that moves things where the answer is a box or the text asks for pixel coordinates;
    nothing that blurs small writing. A row's own `transforms` (some of `kinds`) overrides it."""
    noise_decay: Literal["none", "linear", "sigmoid"] = "none"
    """Noise fades over the run (after NoisyRollout, arXiv 2504.13055): from its full strength in the first rollout to
    nothing in the last, evenly or with the steepest part in the middle."""

    @model_validator(mode="after")
    def _kinds_to_draw(self) -> TransformSection:
        if self.probability > 0 and not self.kinds:
            raise ValueError("kinds is empty while probability is above 0; list transforms or set probability: 0")
        return self


class DifficultySection(Section):
    """Harder variants for problems that are always solved, plainer ones for those never solved (the idea of DIVA-GRPO,
    arXiv 2603.01106; levels, bounds and defaults are ours)."""

    adaptive: bool = False
    """Choose variants by each problem's running success rate; a problem's first visit is as without."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Weight of the earlier visits in the running success rate, an exponential mean over visits; 0: the last alone."""
    solved: Fraction = 0.9
    """From this success rate (share of right answers) on: rewrites alone, not the original even under `original: kept`,
    transformed `transform_factor` times as often, by the stronger of `transforms.kinds`: not noise_10, noise_25, tilts,
    tones or jpeg_50, unless no others are allowed."""
    unsolved: Fraction = 0.1
    """Up to this success rate: the original wording and images in every variant."""
    transform_factor: Annotated[float, Field(ge=1.0)] = 2.0
    """Multiplies `transforms.probability` for solved problems, up to 1."""

    @model_validator(mode="after")
    def _apart(self) -> DifficultySection:
        if self.unsolved >= self.solved:
            raise ValueError(f"unsolved ({self.unsolved}) must be below solved ({self.solved})")
        return self


class ShareSection(Section):
    """What Share-GRPO shares. `levels: local` with `trajectories: own` is GRPO on the same variants and samples."""

    num_variants: Count = 2
    """m, ways of asking each problem, the original included (paper: 2)."""
    num_responses: Count = 6
    """n, responses sampled under each variant (paper: 6)."""
    original: Literal["kept", "sampled"] = "kept"
    """`kept`: variant 0 is the untouched original. `sampled`: drawn like the others (the public code)."""
    transforms: TransformSection = TransformSection()
    difficulty: DifficultySection = DifficultySection()
    levels: Literal["hierarchical", "global", "local"] = "hierarchical"
    """Reward sharing: global + local for own-variant pairs (paper), or one level only."""
    trajectories: Literal["shared", "own"] = "shared"
    """Score every response under all m variants (paper), or under its own only."""
    std: Literal["plain", "repeated", "none"] = "plain"
    """What differences from the mean reward are divided by: the standard deviation; `repeated`: the public code's
    global deviation, over rewards repeated m times; `none`: nothing (Dr. GRPO, with `objective.aggregation`)."""

    @model_validator(mode="after")
    def _rewards_to_compare(self) -> ShareSection:
        if self.num_responses * (1 if self.levels == "local" else self.num_variants) < 2:
            alone = "" if self.num_variants == 1 else f" of each of the {self.num_variants} variants alone"
            raise ValueError(
                f"levels: {self.levels} with num_responses: 1 compares one reward{alone} with itself, so nothing is "
                "learnt; set num_responses to 2 or more"
            )
        return self


class RewardFunctionSection(Section):
    """A user's reward: a Python file and a function with TRL's signature."""

    path: str
    """`file.py:function`, relative to the recipe's folder or absolute."""
    weight: float = 1.0
    """Factor of this reward in the sum."""


class RewardSection(Section):
    """reward = accuracy_weight * correct + format_weight * well-formed + user functions."""

    accuracy_weight: NonNegative = 0.9
    """Weight of a right answer (paper: 0.9)."""
    format_weight: NonNegative = 0.1
    """Weight of the `<think>…</think> … \\boxed{…}` form (paper: 0.1)."""
    numeric_tolerance: NonNegative = 0.0
    """A number is also right if it is off by at most this share of the right one (ChartQA: 0.05)."""
    functions: list[RewardFunctionSection] = []
    """Rewards of your own, each a `{path: rewards.py:function, weight: 1.0}` of a function with TRL's signature. Paths
    start at the recipe's folder, not at the current one as those of data do."""
    timeout_seconds: Positive = 10.0
    """A verification that takes longer is killed and counted as a failure, never as a wrong answer."""
    workers: Count = 2
    """Verifier processes."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> RewardSection:
        if not any([self.accuracy_weight, self.format_weight, *(function.weight for function in self.functions)]):
            raise ValueError("every weight is 0: all responses earn the same, and nothing is learnt; give one a weight")
        return self

    @property
    def names(self) -> list[str]:
        """What the functions are called in metrics."""
        return [function.path.rpartition(":")[2] for function in self.functions]


class ObjectiveSection(Section):
    """The clipped policy objective."""

    aggregation: Literal["token", "sequence", "dr_grpo"] = "sequence"
    """`sequence`: mean over tokens, then over pairs (paper). `token`: mean over all tokens (DAPO). `dr_grpo`: sum over
    tokens divided by max_completion_length (arXiv 2503.20783)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """What has a ratio: each `token` (paper), or each `sequence`, the geometric mean over its tokens (GSPO, arXiv
    2507.18071; it clips at epsilon 3e-4, epsilon_high 4e-4 and no delta, and aggregates by `sequence`)."""
    epsilon: NonNegative = 0.2
    """Lower clip of the ratio: 1 - epsilon."""
    epsilon_high: NonNegative = 0.3
    """Upper clip of the ratio: 1 + epsilon_high (paper: 0.3)."""
    delta: Positive | None = 3.0
    """Dual clip: with a negative advantage the ratio counts at most this much (arXiv 1912.09729). None: off."""
    beta: NonNegative = 0.0
    """Weight of the k3 estimate of KL to the model without adapters (paper: 0)."""
    mask_truncated_completions: bool = False
    """Responses that reached `rollout.max_completion_length` without an end train nothing (DAPO's overlong filtering,
    arXiv 2503.14476); their rewards still count in the group's mean and deviation."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of a cross-variant token, whose behaviour policy was another variant's: 1 (paper); its importance ratio
    truncated at `correction_cap`; or 1, and 0 where the ratio is outside [1/correction_cap, correction_cap]."""
    correction_cap: Annotated[float, Field(ge=1.0)] = 1.0
    """Cap of the correction, at least 1, so that own-variant tokens keep their weight. `mask` needs a cap above 1."""
    sampler_cap: Annotated[float, Field(ge=1.0)] | None = None
    """Truncated importance sampling: weights a token by min(π_old / π_sampler, sampler_cap), which corrects for a
    sampler whose numbers differ from the trainer's. None: off."""

    @model_validator(mode="after")
    def _bounds(self) -> ObjectiveSection:
        if self.delta is not None and self.delta <= 1.0 + self.epsilon_high:
            raise ValueError(f"delta ({self.delta}) must exceed 1 + epsilon_high ({1.0 + self.epsilon_high})")
        if self.correction == "mask" and self.correction_cap <= 1.0:
            raise ValueError("correction: mask needs correction_cap above 1 (it keeps ratios in [1/cap, cap])")
        if self.epsilon >= 1.0:
            raise ValueError("epsilon must be below 1")
        return self


class TrainSection(Section):
    """The optimisation."""

    rollouts: Count = 100
    """Length of the run: how many times responses are sampled."""
    problems_per_rollout: Count = 32
    """Problems asked in one rollout, over all processes (paper: 512)."""
    problems_per_update: Count = 32
    """Problems behind one optimizer step, over all processes, with all their m*m*n pairs (paper: 128)."""
    epochs_per_rollout: Count = 1
    """Passes over a rollout's problems."""
    learning_rate: Positive = 2e-5
    """Peak rate of Adam on the adapters. The paper's 1e-6 is for full weights; adapters start at 0 and need more."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant_with_warmup"
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the rate rises from 0, which is that of the first one, as in transformers."""
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    token_budget: Count = 8192
    """Most tokens in one packed row: the knob for memory. A group that is longer splits by responses."""
    score_skipped: bool = True
    """Score pairs without an advantage, which train nothing, as well: for entropy, gaps and the explorer. Without, a
    step saves their forward pass, and those figures are of the pairs that train."""
    save_rollouts: Count | None = 20
    """Save a checkpoint every so many rollouts. None: at the end only."""
    save_total_limit: Count | None = 3
    """Keep the newest so many checkpoints (and the best)."""
    load_best_model_at_end: bool = False
    """Finish with the checkpoint of the best held-out accuracy (the best reward where `reward.accuracy_weight` is 0);
    needs evaluation at every save."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Trackers, besides metrics.jsonl, which is always written."""
    push_to_hub: bool = False
    """Upload the adapter with each checkpoint."""
    hub_model_id: str | None = None

    @model_validator(mode="after")
    def _divides(self) -> TrainSection:
        if self.problems_per_rollout % self.problems_per_update:
            raise ValueError(
                f"problems_per_rollout ({self.problems_per_rollout}) must be a multiple of problems_per_update "
                f"({self.problems_per_update})"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps taken on one rollout's samples."""
        return self.epochs_per_rollout * self.problems_per_rollout // self.problems_per_update


class EvalSection(Section):
    """Evaluation with its own sampling, on plain questions and on variants of them."""

    problems: Count = 256
    """Held-out problems, the first so many."""
    samples: Count = 4
    """Responses to each problem."""
    temperature: NonNegative = 1.0
    """0 takes the most likely token."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    every_rollouts: Count | None = None
    """Evaluate during training every so many rollouts. None: before and after only."""


class Recipe(Section):
    """A whole run. Load with :func:`sharevl_lite.load_recipe`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")] = "run"
    """The run is written to `<output_dir>/<name>`."""
    output_dir: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Fixes the data order, the variants, the samples and the adapter's start."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    share: ShareSection = ShareSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()

    @model_validator(mode="after")
    def _engines(self) -> Recipe:
        if self.rollout.overlap and self.rollout.engine != "server":
            raise ValueError(
                f"rollout.overlap needs rollout.engine: server; {self.rollout.engine} samples where the policy trains"
            )
        if self.rollout.overlap and self.objective.sampler_cap is None:
            raise ValueError("rollout.overlap trains on older samples; set objective.sampler_cap (2.0 is usual)")
        if self.rollout.engine == "unsloth" and self.model.loader != "unsloth":
            raise ValueError("rollout.engine: unsloth samples with the weights of model.loader: unsloth; set both")
        if self.model.load_in_4bit and self.model.dtype in ("float32", "float64"):
            raise ValueError(
                "model.load_in_4bit computes in half precision; set model.dtype: auto, bfloat16 or float16"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.train.load_best_model_at_end:
            if self.data.eval is None or self.eval.every_rollouts is None or self.train.save_rollouts is None:
                raise ValueError(
                    "train.load_best_model_at_end needs data.eval, eval.every_rollouts and train.save_rollouts"
                )
            if self.train.save_rollouts != self.eval.every_rollouts:
                raise ValueError("train.load_best_model_at_end needs train.save_rollouts equal to eval.every_rollouts")
        if self.train.push_to_hub and not self.train.hub_model_id:
            raise ValueError("train.push_to_hub needs train.hub_model_id (owner/name)")
        return self

    @property
    def best_metric(self) -> str:
        """What the best checkpoint is best in: held-out accuracy, or the reward where accuracy has no weight in it."""
        return "eval_accuracy" if self.reward.accuracy_weight > 0.0 else "eval_reward"

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.output_dir / self.name

    @property
    def max_sequence_length(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.data.max_prompt_length + self.rollout.max_completion_length
