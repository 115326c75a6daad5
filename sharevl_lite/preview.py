"""`--dry-run`: the resolved recipe, what one step takes in rows and tokens, and a memory estimate.

Nothing is trained and no weight is read. Prompt lengths are measured on the first problems when data and model are at
hand without a download; otherwise, and for responses always, the recipe's upper bounds stand in and are called so.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from sharevl_lite.config import Recipe
from sharevl_lite.engines import check_installed
from sharevl_lite.errors import UserError
from sharevl_lite.first_checks import check_trackers
from sharevl_lite.precheck import FirstLook, look
from sharevl_lite.recipe_notes import recipe_notes
from sharevl_lite.recipes import dump_recipe
from sharevl_lite.run_folder import holds_run
from sharevl_lite.wording import counted

MIB = 2**20
SHOWN_CHARACTERS = 1600
"""Of a prompt, at most."""


@dataclass(frozen=True)
class StepSize:
    """Responses, pairs and tokens of one rollout with all its updates, over all processes."""

    responses: int
    pairs: int
    tokens_separate: int
    tokens_packed: int
    updates: int


def preview(recipe: Recipe) -> str:
    """The text of a dry run. Raises the errors of the recipe's model and data where those are at hand, and of reward
    functions that do not load, as `train` would."""
    first = look(recipe)
    prompt_length, measured = _prompt_length(recipe, first)
    size = step_size(recipe, prompt_length)
    train, share = recipe.train, recipe.share
    response = recipe.rollout.max_completion_length
    lines = [
        dump_recipe(recipe).rstrip(),
        "",
        *_prompt_lines(first),
        f"# one step: {counted(train.problems_per_rollout, 'problem')} x {counted(share.num_variants, 'variant')} x "
        f"{counted(share.num_responses, 'response')}, {counted(size.updates, 'update')} of "
        f"{counted(train.problems_per_update, 'problem')}",
        *_data_lines(recipe, first),
        f"prompt            {prompt_length:,} tokens ({measured})",
        f"response          at most {response:,} tokens (rollout.max_completion_length)",
        f"responses         {size.responses:,}{_extra_rounds(recipe, size)}",
        f"pairs             {size.pairs:,} ({_pair_formula(recipe)})",
        f"rows, separate    {size.pairs:,} rows, at most {size.tokens_separate:,} tokens",
        f"rows, packed      at most {size.tokens_packed:,} tokens in rows of {train.token_budget:,} "
        f"({size.tokens_separate / size.tokens_packed:.2f} x fewer)",
        *_option_lines(first),
        *_repeat_lines(recipe, first),
        *(f"recipe            {note}" for note in recipe_notes(recipe)),
        *_memory_lines(recipe),
        *_server_lines(recipe),
        f"written to        {recipe.run_dir}{_run_there(recipe)}",
        *_missing_lines(recipe),
    ]
    return "\n".join(lines) + "\n"


def _run_there(recipe: Recipe) -> str:
    there = holds_run(recipe.run_dir)
    return " (holds a run: --resume auto goes on with it, --name NAME starts another)" if there else ""


def _extra_rounds(recipe: Recipe, size: StepSize) -> str:
    """What dynamic sampling may add."""
    rollout = recipe.rollout
    if not rollout.dynamic_sampling:
        return ""
    rounds = rollout.max_extra_rounds
    return f", and up to {rounds * size.responses:,} in {rounds} rounds of replacements"


def step_size(recipe: Recipe, prompt_length: int) -> StepSize:
    """Counts of one rollout when every prompt has `prompt_length` tokens and every response is as long as allowed."""
    share, problems = recipe.share, recipe.train.problems_per_rollout
    responses = problems * share.num_variants * share.num_responses
    scorers = share.num_variants if share.trajectories == "shared" else 1
    pairs = responses * scorers
    longest = recipe.rollout.max_completion_length
    prefixes = _prefix_copies(recipe, prompt_length)
    return StepSize(
        responses=responses,
        pairs=pairs,
        tokens_separate=pairs * (prompt_length + longest),
        tokens_packed=prefixes * prompt_length + pairs * (longest - 1),
        updates=recipe.train.updates_per_rollout,
    )


def _prefix_copies(recipe: Recipe, prompt_length: int) -> int:
    """How often a prefix stands in the packed rows: once a group, more where the token budget splits it."""
    share = recipe.share
    inputs = recipe.rollout.max_completion_length - 1
    in_group = share.num_responses * (share.num_variants if share.trajectories == "shared" else 1)
    fitting = max(1, (recipe.train.token_budget - prompt_length) // max(1, inputs))
    return recipe.train.problems_per_rollout * share.num_variants * -(-in_group // fitting)


def _pair_formula(recipe: Recipe) -> str:
    share, problems = recipe.share, recipe.train.problems_per_rollout
    if share.trajectories == "own":
        return f"P·m·n = {problems}·{share.num_variants}·{share.num_responses}"
    return f"P·m²·n = {problems}·{share.num_variants}²·{share.num_responses}"


def _option_lines(first: FirstLook) -> list[str]:
    """Where the answer options are from, and the first question and answer that are made with them."""
    from sharevl_lite.data.options import split_options
    from sharevl_lite.intake import words_on_options

    told = words_on_options(first.problems)
    if told is None:
        return []
    lettered = (problem for problem in first.problems if split_options(problem.text)[1])
    shown = next(((problem.text, problem.gold) for problem in lettered), None)
    example = "" if shown is None else f": {_one_line(shown[0])} → {shown[1]}"
    return [f"options           {told}{example}"]


def _one_line(text: str, most: int = 160) -> str:
    """The text on one line; of a long one the end, where its options stand."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"… {line[-most:]}"


def _repeat_lines(recipe: Recipe, first: FirstLook) -> list[str]:
    from sharevl_lite.variants.expand import words_on_repeats

    told = words_on_repeats(first.problems, recipe.share)
    return [] if told is None else [f"variants          of {first}: {told}"]


def _data_lines(recipe: Recipe, first: FirstLook) -> list[str]:
    """How much of the data was looked at, and how often a run passes over it."""
    if not first.problems:
        return []
    told = f"{first} looked at"
    if first.rows is not None and not first.whole:
        told += f", of {first.rows:,} rows"
    if first.skipped:
        told += f"; bad rows skipped: {first.skipped:,}"
    lines = [f"data              {told} ({recipe.data.train})"]
    if first.most_problems:
        rollouts, asked = recipe.train.rollouts, recipe.train.problems_per_rollout
        passes = rollouts * asked / first.most_problems
        length = f"{counted(rollouts, 'step')} of {counted(asked, 'problem')}"
        lines.append(f"passes            {passes:,.2f} over the data ({length})")
    return lines


def _prompt_lines(first: FirstLook) -> list[str]:
    """The first problem's prompt as the model reads it, a long one cut in its middle, and its right answer."""
    if first.prompts is None or not first.problems:
        return []
    problem = first.problems[0]
    text = first.prompts.show(problem.text, problem.image_sizes)
    cut = len(text) - SHOWN_CHARACTERS
    if cut > 0:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]} [... {cut:,} characters ...] {text[-half:]}"
    head = f"# the plain prompt of the first problem ({problem.id})"
    answer = textwrap.shorten(problem.gold, SHOWN_CHARACTERS // 8, placeholder=" …")
    return [head, *(f"  {line}" for line in text.splitlines()), f"# its right answer: {answer}", ""]


def _prompt_length(recipe: Recipe, first: FirstLook) -> tuple[int, str]:
    """(tokens, where the figure is from)."""
    if first.prompts is None or not first.problems:
        return recipe.data.max_prompt_length, "upper bound: data.max_prompt_length"
    lengths = [first.prompts.count_tokens(problem.text, problem.image_sizes) for problem in first.problems]
    return round(sum(lengths) / len(lengths)), f"mean of {first}"


def _memory_lines(recipe: Recipe) -> list[str]:
    import torch

    from sharevl_lite.memory_plan import plan_memory
    from sharevl_lite.model_shape import find_config, measure_shape
    from sharevl_lite.policy.hf import has_bfloat16

    found = find_config(recipe.model.path)
    if found is None:
        return [f"memory            not estimated: {recipe.model.path} is not on this machine yet"]
    gpu = torch.cuda.is_available()
    plan = plan_memory(
        recipe,
        measure_shape(found[0]),
        total=torch.cuda.get_device_properties(0).total_memory if gpu else None,
        half=gpu and has_bfloat16(),
    )
    planned = [("train", plan.training), ("sample", plan.sampling)]
    lines = []
    if recipe.rollout.uses_vllm and not gpu:
        planned.pop()  # a share of a GPU that is not here
        lines = [
            "memory            of vLLM not estimated without a GPU; sharevl-lite doctor RECIPE --memory-gib N plans it"
        ]
    return [
        f"memory (estimate) {sum(parts.values()) / MIB:,.0f} MiB to {what} on the {'GPU' if gpu else 'CPU'}: "
        + ", ".join(f"{name} {amount / MIB:,.0f}" for name, amount in parts.items())
        for what, parts in planned
    ] + lines


def _missing_lines(recipe: Recipe) -> list[str]:
    """What `train` would stop for here, and a machine that only plans need not have."""
    lines = []
    for check in (check_installed, check_trackers):
        try:
            check(recipe)
        except UserError as error:
            lines.append(f"not installed     {error}: here train would stop with this")
    return lines


def _server_lines(recipe: Recipe) -> list[str]:
    """The commands that start the servers the recipe samples from."""
    if recipe.rollout.engine != "server":
        return []
    from sharevl_lite.rollout.serve_command import serve_command

    return [f"server            {serve_command(recipe, url=url)}" for url in recipe.rollout.server_urls]
