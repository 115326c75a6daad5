"""A policy update on a Share-GRPO group: packed rows against one row per pair.

    python kernels/benchmarks/bench_packed_update.py [--prompt 1100 --response 300 --variants 2 --responses 6]

A random model in the shape of Qwen2.5-VL-3B's text model with rank-32 LoRA on every linear layer, bfloat16 with
float32 adapters, gradient checkpointing. The update is forward + backward of the policy loss over all m·m·n pairs. The
yardstick is the ordinary way: rows of [prompt | response] in batches of four, causal scaled-dot-product attention
(FlashAttention), with the same head and the same loss. Prompts are text, so that the vision tower's pass, which packing
does once per image and rows do m·n times, is on neither side.

The check: log-probs and gradients of both forms in bfloat16 against separate rows in float32 (root mean square in nats;
norm of the difference over the norm). The forms are two draws of the same roundings, 5% apart by chance; a packed row
that is more than 10% further off than separate rows has no time. Both forms run the layers of transformers and PEFT as
they are; with the largest budget packed rows run once more with fused layers (`sharevl_lite/policy/fused.py`).
`--profile` prints the kernels that a packed update spends its time in. The last row is the loss alone, as a share of
the packed update: a fused kernel for it would pay above 2%.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from harness import OK, Report, Row, Timing, arguments, device_of, measure, measure_in_turns, peak_mib
from peft import LoraConfig, get_peft_model
from sharevl_kernels.grouped_logprob import grouped_logprob
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sharevl_lite.policy.fused import fuse, stock_layers
from sharevl_lite.policy.hf import enable_checkpointing
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.share import Clipping, PackedRow, Prefix, SegmentGroup, pack_row, plan_rows, policy_loss

SHAPE_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
SHAPE_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1009,
}
ROPE_SECTION = {2048: [16, 24, 24], 64: [2, 3, 3]}
ROWS_PER_BATCH = 4
GOAL_SPEED, GOAL_MEMORY = 3.5, 1.2
CHANCE = 1.1
"""How much further off than separate rows a packed row may be."""
CLIPPING = Clipping(0.2, 0.3, 3.0)


@dataclass(frozen=True)
class Group:
    """Prompts [K, P] (one per scoring variant), responses [B, R] (all m·n), and an advantage per response."""

    prompts_KP: Tensor
    responses_BR: Tensor
    advantages_B: Tensor


def build_policy(shape: dict[str, int], device: torch.device) -> PackedPolicy:
    """A random policy, in bfloat16 on a GPU; on a CPU in float32."""
    text = {
        **shape,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": ROPE_SECTION[shape["hidden_size"]],
        },
    }
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2}
    vision |= {"out_hidden_size": shape["hidden_size"], "fullatt_block_indexes": [0]}
    special = dict(zip(("image", "video", "vision_start", "vision_end"), range(4), strict=True))
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **{f"{name}_token_id": number for name, number in special.items()}
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model = model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).requires_grad_(False)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".language_model." in f".{n}."]
    adapted = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=linear))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.01)
    enable_checkpointing(adapted)
    fuse(adapted)
    return PackedPolicy(adapted, processor=None).train()


def build_group(run: argparse.Namespace, vocabulary: int, device: torch.device) -> Group:
    """Random tokens, none of them a vision token."""
    draw = torch.Generator().manual_seed(1)
    count = run.variants * run.responses
    prompts = torch.randint(8, vocabulary, (run.variants, run.prompt), generator=draw)
    responses = torch.randint(8, vocabulary, (count, run.response), generator=draw)
    return Group(prompts.to(device), responses.to(device), torch.randn(count, generator=draw).double().to(device))


def packed_rows(group: Group, budget: int) -> list[PackedRow]:
    """The group's pairs in rows of at most `budget` tokens; pairs are numbered k·B + b."""
    count, length = group.responses_BR.shape[0], group.prompts_KP.shape[1]
    positions = torch.arange(length).expand(3, -1)
    responses = tuple(group.responses_BR.cpu())
    groups = [
        SegmentGroup(Prefix(prompt.cpu(), positions, ()), responses, tuple(range(k * count, (k + 1) * count)))
        for k, prompt in enumerate(group.prompts_KP)
    ]
    return [pack_row(part) for part in plan_rows(groups, budget)]


def score_packed(policy: PackedPolicy, row: PackedRow) -> Tensor:
    """Log-probs [B, R] of a packed row's pairs."""
    return policy(row, {}).logprobs_S.view(len(row.pairs), -1)


def score_separately(policy: PackedPolicy, group: Group, pairs: list[int]) -> Tensor:
    """Log-probs [B, R] of some pairs, a row each, through the ordinary forward pass of the text model."""
    count = group.responses_BR.shape[0]
    prompts = group.prompts_KP[[pair // count for pair in pairs]]
    responses_BR = group.responses_BR[[pair % count for pair in pairs]]
    ids_BL = torch.cat([prompts, responses_BR[:, :-1]], dim=1)
    with policy.autocast():
        embeds_BLH = policy.base.get_input_embeddings()(ids_BL)
        hidden_BLH = policy.base.model.language_model(inputs_embeds=embeds_BLH, use_cache=False).last_hidden_state
        hidden_SH = hidden_BLH[:, prompts.shape[1] - 1 :].flatten(0, 1)
        head = policy.base.get_output_embeddings().weight
        return grouped_logprob(hidden_SH, head, responses_BR.flatten()).logprobs_T.view(len(pairs), -1)


def loss_of(logprobs_BR: Tensor, advantages_B: Tensor, tokens: int) -> Tensor:
    """The policy loss of some pairs, as the learner computes it: float64, on policy, token mean."""
    logprobs_S = logprobs_BR.flatten().double()
    advantages_S = advantages_B.repeat_interleave(logprobs_BR.shape[1])
    weights_S = torch.full_like(logprobs_S, 1.0 / tokens)
    return policy_loss(logprobs_S, logprobs_S.detach(), advantages_S, weights_S, CLIPPING).loss


class Updates:
    """Both forms of one update on one group; packed rows have at most `budget` tokens, and if so asked fused layers,
    which keep their activations."""

    def __init__(
        self, policy: PackedPolicy, group: Group, budget: int, *, fused: bool = False, kept: bool = False
    ) -> None:
        self.policy = policy
        self.fused = fused
        self.kept = kept
        self.group = group
        self.rows = packed_rows(group, budget)
        self.count = group.responses_BR.shape[0]
        self.pairs = list(range(len(group.prompts_KP) * self.count))
        self.tokens = len(self.pairs) * group.responses_BR.shape[1]

    @property
    def batches(self) -> list[list[int]]:
        """The pairs of every batch of separate rows."""
        return [self.pairs[i : i + ROWS_PER_BATCH] for i in range(0, len(self.pairs), ROWS_PER_BATCH)]

    def packed(self) -> None:
        """Gradients of the update from packed rows."""
        self.policy.zero_grad()
        with self._layers(self.fused, kept=self.kept):
            for row in self.rows:
                self._backward(score_packed(self.policy, row), list(row.pairs))

    def separate(self) -> None:
        """The same from separate rows."""
        self.policy.zero_grad()
        with self._layers(fused=False):
            for pairs in self.batches:
                self._backward(score_separately(self.policy, self.group, pairs), pairs)

    @contextlib.contextmanager
    def _layers(self, fused: bool, *, kept: bool = False) -> Iterator[None]:
        layers = self.policy.base.model.language_model.layers
        for layer in layers:
            layer.gradient_checkpointing = not kept
        with contextlib.nullcontext() if fused else stock_layers(self.policy.model):
            yield

    def _backward(self, logprobs_BR: Tensor, pairs: list[int]) -> None:
        advantages_B = self.group.advantages_B[[pair % self.count for pair in pairs]]
        loss_of(logprobs_BR, advantages_B, self.tokens).backward()

    def loss_alone(self) -> None:
        """Forward and backward of the loss for the first packed row, without the model."""
        row = self.rows[0]
        shape = (len(row.pairs), self.group.responses_BR.shape[1])
        logprobs_BR = torch.full(shape, -1.0, device=self.policy.device, requires_grad=True)
        self._backward(logprobs_BR, list(row.pairs))

    @torch.no_grad()
    def logprobs(self, packed: bool) -> Tensor:
        """Log-probs of all pairs in order."""
        with self._layers(packed and self.fused):
            if not packed:
                return torch.cat([score_separately(self.policy, self.group, pairs) for pairs in self.batches])
            scores = torch.cat([score_packed(self.policy, row) for row in self.rows])
        order = [pair for row in self.rows for pair in row.pairs]
        return scores[torch.tensor(order, device=scores.device).argsort()]

    def gradient(self, run: Callable[[], object]) -> Tensor:
        """All adapter gradients of one form in a row."""
        run()
        return torch.cat([p.grad.flatten() for p in self.policy.parameters() if p.grad is not None]).clone()


def compare(packed: dict[str, Updates], run: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times separate rows and each form of packed rows in turns, checks them, and shows the times of what passes.

    Leaves the policy in float32.
    """
    case = f"P={run.prompt} R={run.response} m={run.variants} n={run.responses}"
    version = f"torch {torch.__version__}"
    any_form = next(iter(packed.values()))
    separate = f"rows, batches of {ROWS_PER_BATCH}"
    runs: dict[str, Callable[[], object]] = {separate: any_form.separate}
    runs |= {name: updates.packed for name, updates in packed.items()}
    timings = measure_in_turns(runs, device, run.repeats)
    peaks = {name: peak_mib(form, device) for name, form in runs.items()}
    loss = measure(any_form.loss_alone, device, run.repeats).median * len(any_form.rows)
    errors = _errors(separate, packed, runs)
    # On a CPU both forms are float32 and differ by rounding alone.
    limits = [max(CHANCE * error, 1e-5) for error in errors[separate]]
    rows = [_row(case, separate, version, timings[separate], peaks[separate], 1.0, errors[separate])]
    for name in list(runs)[1:]:
        if any(error > limit for error, limit in zip(errors[name], limits, strict=True)):
            red = "RED: further from float32 than separate rows"
            rows.append(Row(case, name, version, red, logprob_error=errors[name][0], gradient_error=errors[name][1]))
            continue
        speed = timings[separate].median / timings[name].median
        note = _goals(speed, peaks[separate], peaks[name]) if device.type == "cuda" else ""
        rows.append(_row(case, name, version, timings[name], peaks[name], speed, errors[name], note))
    share = loss / min(timings[name].median for name in list(runs)[1:])
    rows.append(Row(case, "policy loss alone", version, OK, loss, note=f"{share:.2%} of the faster packed update"))
    return rows


def _errors(
    separate: str, packed: dict[str, Updates], runs: dict[str, Callable[[], object]]
) -> dict[str, tuple[float, float]]:
    """Of log-probs and gradients, against separate rows of the same model in float32, which it is from here on."""
    of = {separate: next(iter(packed.values()))} | packed
    found = {name: (of[name].logprobs(name != separate), of[name].gradient(run)) for name, run in runs.items()}
    of[separate].policy.float()
    logprobs, gradient = of[separate].logprobs(packed=False), of[separate].gradient(runs[separate])
    return {
        name: (
            (scores - logprobs).square().mean().sqrt().item(),
            ((slope - gradient).norm() / gradient.norm()).item(),
        )
        for name, (scores, slope) in found.items()
    }


def _row(
    case: str,
    what: str,
    version: str,
    timing: Timing,
    peak: float | None,
    ratio: float,
    errors: tuple[float, float],
    note: str = "",
) -> Row:
    numbers = (timing.median, timing.lowest, timing.highest, ratio, peak, *errors)
    return Row(case, what, version, OK, *numbers, note=note)


def _goals(speed: float, separate_mib: float | None, packed_mib: float | None) -> str:
    memory = (packed_mib or 0.0) / (separate_mib or 1.0)
    reached = speed >= GOAL_SPEED and memory <= GOAL_MEMORY
    return f"memory × {memory:.2f}; goals ≥ {GOAL_SPEED} and ≤ {GOAL_MEMORY}: {'reached' if reached else 'MISSED'}"


def profile(updates: Updates, device: torch.device) -> None:
    """Prints where a packed update spends its time."""
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    updates.packed()
    with torch.profiler.profile(activities=activities) as found:
        updates.packed()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def main() -> int:
    """Prints the table and writes the CSV. Exit code 1 where packed rows are red."""
    parser = arguments(str(__doc__).splitlines()[0], repeats="5")
    for name, default in (("prompt", 1100), ("response", 300), ("variants", 2), ("responses", 6)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument(
        "--token-budget",
        type=int,
        nargs="+",
        default=[8192, 16384],
        help="tokens of a packed row (default: %(default)s)",
    )
    parser.add_argument("--profile", action="store_true", help="print the kernels of a packed update as well")
    run = parser.parse_args()
    device = device_of(run)
    shape = SHAPE_3B if device.type == "cuda" else SHAPE_TINY
    policy, group = build_policy(shape, device), build_group(run, shape["vocab_size"], device)
    packed = {f"packed, rows of {budget}": Updates(policy, group, budget) for budget in run.token_budget}
    largest = max(run.token_budget)
    fused = Updates(policy, group, largest, fused=True)
    packed[f"packed and fused, rows of {largest}"] = fused
    kept = Updates(policy, group, largest, fused=True, kept=True)
    packed[f"packed and fused, nothing recomputed, rows of {largest}"] = kept
    if run.profile:
        profile(fused, device)
    table = Report("packed update", "× rows", device, run.out)
    table.add(compare(packed, run, device))
    return table.finish()


if __name__ == "__main__":
    sys.exit(main())
