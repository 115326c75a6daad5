# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Share-GRPO, from rewards to gradients
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sharevl-lite/sharevl-lite/blob/main/notebooks/share_grpo_explained.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/sharevl-lite/sharevl-lite/blob/main/notebooks/share_grpo_explained.ipynb)
#
# A group of answers in which all are right, or all are wrong, teaches GRPO nothing. This notebook follows one step of
# **Share-GRPO** ([arXiv 2505.16673](https://arxiv.org/abs/2505.16673)) on a real, if small, model: a Qwen2.5-VL of 1.9
# million parameters that reads two handwritten digits. Nothing below is simulated unless it says so, and a plain CPU
# will do.

# %%
import importlib.util
import os
import subprocess
import sys

packages = {
    "sharevl_lite": "sharevl-lite @ git+https://github.com/sharevl-lite/sharevl-lite",
    "matplotlib": "matplotlib",
}
missing = [source for name, source in packages.items() if importlib.util.find_spec(name) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the command line does: waiting threads leave the cores to others

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import CenteredNorm

from sharevl_lite.collect import Collector
from sharevl_lite.config import Recipe
from sharevl_lite.data import load_problems
from sharevl_lite.learn import Learner
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.share import Clipping, SegmentGroup, hierarchical_advantage, pack_row, policy_loss

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False, "image.cmap": "RdBu"})
M, N = 2, 6  # ways of asking each problem, answers under each: the paper's setting

# %% [markdown]
# ## 1. Why groups fall silent
#
# With a chance $p$ of a right answer, all $n$ answers of a group agree with probability $p^n + (1-p)^n$. A problem that is
# solved once in twenty times is silent in most groups of six. Sharing does two things: the group has $mn$ answers, and
# variants differ in difficulty, so one that is always wrong can be rescued by one that is sometimes right. (This figure is
# arithmetic.)

# %%
p = torch.linspace(0, 1, 201)


def silent(chance, count):
    """Probability that `count` answers, each right with `chance`, are all right or all wrong."""
    return chance**count + (1 - chance) ** count


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
left.plot(p, silent(p, N), label=f"GRPO: {N} answers to one question")
left.plot(p, silent(p, M * N), label=f"Share-GRPO: {M} ways × {N} answers")
left.set(xlabel="chance of a right answer", ylabel="probability of no signal", title="equally hard variants")
left.legend(frameon=False)
hard, easy = torch.meshgrid(p, p, indexing="ij")
both = hard**N * easy**N + (1 - hard) ** N * (1 - easy) ** N
rescued = (silent(hard, N) - both).T
picture = right.imshow(rescued, origin="lower", extent=(0, 1, 0, 1), cmap="viridis", aspect="auto")
right.set(xlabel="chance under variant 0", ylabel="chance under variant 1", title="variant 0 silent, problem not")
figure.colorbar(picture, ax=right)
figure.tight_layout()

# %% [markdown]
# ## 2. Expand and explore
#
# One rollout as `sharevl-lite train` makes it: problems are expanded into variants (reworded, and with probability 0.7
# turned or noised, with a sentence that says so), the policy answers each variant, and the answers are verified.

# %%
recipe = Recipe.model_validate(
    {
        "name": "explained",
        "model": {"path": "builtin:digits-vl", "dtype": "float32"},
        "data": {"prompt_template": "{problem} Think, then box the answer.", "max_prompt_length": 96},
        "share": {"num_variants": M, "num_responses": N, "transforms": {"probability": 0.7}},
        "rollout": {"max_completion_length": 32, "batch_size": 96},
    }
)
problems = load_problems("builtin:digits", recipe.data, split="train", limit=32).problems
policy = load_policy(recipe.model, seed=0)
encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template, None)
with RewardScorer(recipe.reward) as scorer:
    rollout = Collector(recipe, encoder, HFRolloutEngine(policy, recipe.rollout.batch_size), scorer).collect(
        1, problems
    )

# %%
silent_PM, silent_P = rollout.advantages.silent_PM, rollout.advantages.silent_P
rescued_P = silent_PM.any(1) & ~silent_P
print(f"{int(silent_PM.sum())} of {silent_PM.numel()} variant groups hold answers of one reward only")
print(
    f"{int(silent_P.sum())} of {len(problems)} problems do; {int(rescued_P.sum())} have a silent group and are rescued"
)

# %% [markdown]
# A problem that sharing rescues: under one variant nothing differs, across both something does.

# %%
spread_P = rollout.rewards_PMN.flatten(1).std(1)
shown = int(spread_P.where(rescued_P, -1.0).argmax())
figure, axes = plt.subplots(1, M, figsize=(9, 2.6))
for j, (axis, variant) in enumerate(zip(axes, rollout.variants[shown], strict=True)):
    axis.imshow(variant.images[0])
    axis.set_axis_off()
    axis.set_title(f"variant {j}: {variant.transform or 'as it is'}", fontsize=10)
    print(f"variant {j}: {variant.text}")
    for response, score in zip(rollout.responses[shown][j], rollout.scores[shown][j], strict=True):
        print(f"    {score.total:.1f}  {response.text}")
print("right answer:", problems[shown].answer)

# %% [markdown]
# ## 3. Rewards shared at two levels
#
# $$G_{ji} = \frac{R_{ji} - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon} \qquad
#   L_{ji} = \frac{R_{ji} - \mathrm{mean}(R_j)}{\mathrm{std}(R_j) + \epsilon}$$
#
# $G$ compares an answer with all $mn$ answers to the problem, $L$ with the $n$ answers to the same wording. An answer's own
# variant sees $G + L$, the other variants see $G$.

# %%
rewards_PMN = rollout.rewards_PMN
advantages = hierarchical_advantage(rewards_PMN)
pairs_KMN = advantages.as_pairs()[shown]
tables = {
    "rewards $R$": rewards_PMN[shown],
    "global $G$": advantages.global_PMN[shown],
    "local $L$": advantages.local_PMN[shown],
    "seen by variant 0": pairs_KMN[0],
    "seen by variant 1": pairs_KMN[1],
}


def write_numbers(axis, table, form="{:.1f}"):
    """The number of each cell, in the cell; white on the darkest."""
    darkest = 0.65 * float(table.abs().max())
    for row, values in enumerate(table.tolist()):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > darkest else "black"
            axis.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=colour)


figure, axes = plt.subplots(1, len(tables), figsize=(15, 2))
for axis, (title, table_MN) in zip(axes, tables.items(), strict=True):
    colours = {"cmap": "Greys", "vmin": 0, "vmax": 1.2} if "R" in title else {"norm": CenteredNorm()}
    axis.imshow(table_MN, **colours)
    write_numbers(axis, table_MN)
    axis.set(title=title, xticks=[], yticks=range(M), yticklabels=[f"variant {j}" for j in range(M)])
figure.tight_layout()

# %% [markdown]
# The silent variant has $L = 0$, and under GRPO its answers would be lost. $G$ is not 0: they are still better or worse than
# the answers to the other wording.
#
# ## 4. Trajectories shared: every answer under every variant
#
# All $mn$ answers are scored under all $m$ variants. An answer may be likely where it was sampled and unlikely elsewhere;
# the gap tells how far apart two variants are for the policy.

# %%
learner = Learner(recipe, policy, rollout)
plan = learner.plan(range(len(problems)))
learner.score(plan)
logprobs_KMN = torch.zeros(M, M, N)
for pair, old_R in learner.scores.old.items():
    if pair.p == shown:
        logprobs_KMN[pair.k, pair.j, pair.i] = old_R.mean()
own_MN = torch.stack([logprobs_KMN[j, j] for j in range(M)])
gap = (logprobs_KMN - own_MN).permute(1, 2, 0).reshape(M * N, M)
figure, axis = plt.subplots(figsize=(3.2, 4.6))
picture = axis.imshow(gap, norm=CenteredNorm(), aspect="auto")
write_numbers(axis, gap, "{:+.2f}")
axis.set(title="gap, nats per token", xlabel="scored under variant", xticks=range(M), yticks=range(M * N))
axis.set_yticklabels([f"answer {row % N} of variant {row // N}" for row in range(M * N)])
figure.colorbar(picture)
print(f"over all problems: mean gap {float(learner.gaps().mean()):+.2f} nats per token")

# %% [markdown]
# ## 5. One row for all of them
#
# Row by row, the prompt with its image would pass through the model once for every pair. Packed, it passes once for every
# variant, and each answer sees its own prompt and itself alone; an answer that was given twice stands there once. On the
# right: who sees whom in the row of one problem.


# %%
def group_of(k, members):
    """All answers to the shown problem behind variant k's prompt."""
    answers = [torch.tensor(rollout.responses[shown][j][i].token_ids) for j, i in members]
    return SegmentGroup(rollout.prompts[shown][k].prefix, tuple(answers), tuple(range(len(answers))))


everyone = [(j, i) for j in range(M) for i in range(N)]
row = pack_row([group_of(k, everyone) for k in range(M)])
alone = [pack_row([group_of(k, [member])]) for k in range(M) for member in everyone]
counts = {"separate rows": sum(one.ids_T.numel() for one in alone), "one packed row": row.ids_T.numel()}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=[1, 1.4])
left.bar(list(counts), list(counts.values()), color=["#999999", "#3366aa"])
left.set(title="tokens forwarded for one problem")
left.bar_label(left.containers[0])
right.imshow(row.layout(torch.device("cpu")).mask[0, 0], cmap="Blues", interpolation="nearest")
right.set(title="a token (down) sees (across)", xlabel="token of the row")
figure.tight_layout()

# %% [markdown]
# It is the same computation, not an approximation. In float64, where rounding is far below what we look for:

# %%
exact = load_policy(recipe.model.model_copy(update={"dtype": "float64"}), seed=0)
with torch.no_grad():
    packed_S = exact(row, rollout.images).logprobs_S
    separate_S = torch.cat([exact(one, rollout.images).logprobs_S for one in alone])
difference = float((packed_S - separate_S).abs().max())
print(f"{packed_S.numel()} log-probs; largest difference {difference:.1e} nats")
assert difference < 1e-10

# %% [markdown]
# ## 6. The objective
#
# The ratio starts at 1 for every pair, because $\pi_{old}$ is taken under the scoring variant. What an update gains from
# moving a token's ratio is clipped on both sides, and for negative advantages bounded once more:

# %%
clipping = Clipping(epsilon=0.2, epsilon_high=0.3, delta=3.0)
ratio_T = torch.linspace(0.013, 4, 400, dtype=torch.float64)
figure, axis = plt.subplots(figsize=(6, 3.2))
for advantage in (1.0, -1.0):
    logprobs_T = ratio_T.log().requires_grad_(True)
    ones_T = torch.ones_like(ratio_T)
    found = policy_loss(logprobs_T, torch.zeros_like(ratio_T), advantage * ones_T, ones_T, clipping)
    (gradient_T,) = torch.autograd.grad(found.loss, logprobs_T)
    axis.plot(ratio_T, -gradient_T, label=f"advantage {advantage:+.0f}")
axis.axvline(1, color="grey", lw=0.8)
axis.set(xlabel="ratio", ylabel="pull on the log-prob", title="where the gradient stops")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## 7. What one update does
#
# One step of Adam on this rollout, then the same answers scored again: answers that were better than their siblings should
# have become more likely, the others less.

# %%
policy.train()
optimizer = torch.optim.Adam([q for q in policy.parameters() if q.requires_grad], lr=1e-3)
tokens = sum(learner.scores.old[pair].numel() for pair in plan.valid)
for part in learner.losses(policy, plan, len(plan.valid), tokens):
    part.loss.backward()
optimizer.step()
policy.eval()
moved, wanted = [], []
with torch.no_grad():
    for one in plan.active_rows:
        pieces = policy(one, rollout.images).logprobs_S.split(one.cu_seqlens_B1.diff().tolist())
        for pair, now_R in zip(one.pairs, pieces, strict=True):
            moved.append(float((now_R - learner.scores.old[pair]).mean()))
            wanted.append(float(learner.pairs_PKMN[pair]))
figure, axis = plt.subplots(figsize=(5.5, 3.4))
axis.scatter(wanted, moved, s=8, alpha=0.5)
axis.axhline(0, color="grey", lw=0.8)
axis.axvline(0, color="grey", lw=0.8)
axis.set(xlabel="advantage of the pair", ylabel="change, nats per token", title="one update")
figure.tight_layout()
agreement = torch.corrcoef(torch.tensor([wanted, moved]))[0, 1]
print(f"{len(plan.valid)} pairs, {len(plan.valid) - len(plan.active)} of them skipped: they cannot change the gradient")
print(f"correlation of advantage and change: {float(agreement):.2f}")
assert agreement > 0.3

# %% [markdown]
# A whole training run is `sharevl-lite train`, with the same parts: `notebooks/quickstart.ipynb` runs one.
