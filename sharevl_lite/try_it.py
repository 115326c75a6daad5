"""`sharevl-lite view RUN --model MODEL`: a model answers questions of one's own, asked in the run's m ways.

Prompt, rewards, transforms and sampling are those of the run's recipe; the rewrites are made by rules, as
`sharevl-lite variants` makes them. The explorer gets a callable and plain records: it knows neither model nor trainer.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from sharevl_explorer.trial import IMAGE_PIXELS, AskedVariant, Attempt, Trial, TrialError, Tryout

from sharevl_lite.config import Recipe
from sharevl_lite.data.errors import RowFault
from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.problem import PLACEHOLDER, Problem
from sharevl_lite.evaluation.subject import check_model, locate
from sharevl_lite.image_files import png_bytes
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.folder import ADAPTER_CONFIG, folder_on_disk, near
from sharevl_lite.policy.hf import load_adapter, load_policy
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer, Sample, Score, known
from sharevl_lite.rewards.verifier import Gold
from sharevl_lite.rewrite.filters import sift
from sharevl_lite.rewrite.rules import rewrite_by_rules
from sharevl_lite.rollout.engine import Response, Sampling, SamplingRequest
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.run_files import RECIPE_FILE
from sharevl_lite.run_folder import RunError
from sharevl_lite.share import hierarchical_advantage
from sharevl_lite.variants import expand_problem

RUN = "run"
SPARE_REWRITES = 2
"""Rewrites made beyond those asked for, since filters reject some."""


def open_tryout(run: str, model: str) -> Tryout:
    """The model to ask, loaded.

    Args:
        run: the run's folder; without a recipe in it, the defaults stand in.
        model: `run` for the run's own policy; a run, a checkpoint or an adapter; a model as in `model.path`.

    Raises:
        RunError: `run` was asked for and has no recipe, a run has no adapter yet, or there is no such folder.
        PolicyError: the model or its adapter does not load.
    """
    target = Path(run) if model == RUN else Path(model)
    adapter, found = locate(target)
    if model == RUN and found is None:
        raise RunError(
            f"--model run: {target} holds no {RECIPE_FILE}; name the model, such as --model builtin:digits-vl"
        )
    own = Path(run) / RECIPE_FILE
    recipe = load_recipe(own if own.is_file() else None)
    if adapter is None and (target / ADAPTER_CONFIG).is_file():
        adapter = target  # one that was copied out of its run: for the model of this run
    elif found is not None:
        recipe = recipe.model_copy(update={"model": load_recipe(found / RECIPE_FILE).model})
    else:
        _check_name(model)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": model})})
    with _said_of_option(recipe.model.path == model):
        policy = load_policy(recipe.model, seed=recipe.seed, temperature=recipe.rollout.temperature)
    if adapter is not None:
        load_adapter(policy, adapter)
    told = recipe.model.path if adapter is None else f"{recipe.model.path} with the adapter {adapter}"
    told += f"; prompt, variants and rewards of {own}" if own.is_file() else "; default prompt, variants and rewards"
    tester = Tester(recipe, policy)
    return Tryout(
        told, recipe.share.num_variants, recipe.rollout.max_completion_length, tester.ask, tester.scorer.close
    )


def _check_name(model: str) -> None:
    """Raises RunError or PolicyError where there is no such model, as far as names tell: a try at the Hub without a
    connection takes half a minute, and no model of a supported family is there without an organisation."""
    with _said_of_option(True):
        check_model(model)
        if "/" not in model and folder_on_disk(model) is None:
            raise RunError(
                f"--model {model}: no such run, checkpoint or model{near(model)}; give {RUN}, a folder, ORG/NAME "
                "on the Hub, or builtin:digits-vl"
            )


@contextlib.contextmanager
def _said_of_option(given: bool) -> Iterator[None]:
    """Calls the model `--model` in messages where it was `given` there and is not the recipe's."""
    try:
        yield
    except PolicyError as error:
        if not given:
            raise
        raise PolicyError(str(error).replace("model.path:", "--model:", 1)) from error


class Tester:
    """Asks a policy what a page sends; asking the same again draws other variants and samples."""

    def __init__(self, recipe: Recipe, policy: PackedPolicy) -> None:
        self.recipe = recipe
        self.scorer = RewardScorer(recipe.reward)
        self.encoder = PromptEncoder.of(policy, recipe.data)
        self.engine = HFRolloutEngine(policy, recipe.rollout.batch_size)
        self._visits = itertools.count()

    def ask(self, trial: Trial) -> tuple[AskedVariant, ...]:
        """The question's m variants with `trial.samples` responses to each.

        Raises:
            TrialError: the image does not decode, placeholders and images differ in number, or the prompt is too long.
        """
        recipe, visit = self.recipe, next(self._visits)
        problem = self._problem(trial)
        variants = expand_problem(problem, recipe.share, seed=recipe.seed, visit=visit)
        prompts = [self.encoder.encode(variant.text, variant.images) for variant in variants]
        requests = [
            SamplingRequest(f"try/{visit}/{variant.index}", prompt, trial.samples)
            for variant, prompt in zip(variants, prompts, strict=True)
        ]
        sampling = Sampling(recipe.rollout.temperature, recipe.rollout.top_p, trial.tokens, recipe.seed)
        responses = self.engine.sample(requests, sampling)
        texts = [prompt.text for prompt in prompts]
        attempts = _plain(responses) if trial.answer is None else self._rewarded(trial.answer, texts, responses)
        return tuple(
            AskedVariant(variant.text, variant.transform, tuple(map(png_bytes, variant.images)), tuple(row))
            for variant, row in zip(variants, attempts, strict=True)
        )

    def _problem(self, trial: Trial) -> Problem:
        images = () if trial.image is None else (_decoded(trial.image),)
        text = trial.question if PLACEHOLDER in trial.question else PLACEHOLDER * len(images) + trial.question
        if text.count(PLACEHOLDER) != len(images):
            there = "there is 1 image" if len(images) == 1 else f"there are {len(images)} images"
            raise TrialError(
                f"The question has {text.count(PLACEHOLDER)} {PLACEHOLDER} and {there}; leave the placeholder "
                "out, it is put before the question."
            )
        wanted = self.recipe.share.num_variants
        offered = rewrite_by_rules(text, wanted + SPARE_REWRITES, seed=self.recipe.seed)
        accepted, _ = sift(text, offered, trial.answer or "")
        problem = Problem("try", text, images, trial.answer or "", tuple(accepted[:wanted]))
        longest = max(self.encoder.count_tokens(t, problem.image_sizes) for t in (text, *problem.variants))
        if longest > self.recipe.data.max_prompt_length:
            raise TrialError(
                f"The prompt has {longest:,} tokens; the run's recipe allows {self.recipe.data.max_prompt_length:,} "
                "(data.max_prompt_length). Ask shorter, or choose a smaller image."
            )
        return problem

    def _rewarded(self, answer: Gold, prompts: list[str], responses: list[list[Response]]) -> list[list[Attempt]]:
        samples = [
            Sample(prompt, response.text, response.token_ids, answer, {})
            for prompt, row in zip(prompts, responses, strict=True)
            for response in row
        ]
        scores = self.scorer.score(samples)
        rewards_PMN = torch.tensor([score.total for score in scores], dtype=torch.float64).reshape(1, len(prompts), -1)
        mask_PMN = torch.isfinite(rewards_PMN)
        levels = hierarchical_advantage(rewards_PMN, mask_PMN, std=self.recipe.share.std)
        given = iter(scores)
        return [
            [
                _attempt(
                    response,
                    next(given),
                    (float(levels.global_PMN[0, j, i]), float(levels.local_PMN[0, j, i]))
                    if mask_PMN[0, j, i]
                    else None,
                )
                for i, response in enumerate(row)
            ]
            for j, row in enumerate(responses)
        ]


def _plain(responses: list[list[Response]]) -> list[list[Attempt]]:
    return [[Attempt(r.text, len(r.token_ids), r.truncated) for r in row] for row in responses]


def _attempt(response: Response, score: Score, advantages: tuple[float, float] | None) -> Attempt:
    return Attempt(
        text=response.text,
        tokens=len(response.token_ids),
        truncated=response.truncated,
        total=known(score.total),
        accuracy=known(score.accuracy),
        format=score.format,
        functions={name: known(value) for name, value in score.functions.items()},
        extracted=score.verdict.extracted if score.verdict else None,
        rule=score.verdict.rule if score.verdict else None,
        failure=score.failure,
        adv_global=advantages[0] if advantages else None,
        adv_local=advantages[1] if advantages else None,
        logged=score.extras,
    )


def _decoded(data: bytes) -> Image.Image:
    """The uploaded image, RGB and upright. Its size is read before its pixels are."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise TrialError("This file is no image that can be read.") from error
    except Exception as error:  # Pillow raises a dozen kinds, its guard against decompression bombs among them
        raise TrialError(f"This file is no image that can be read ({type(error).__name__}: {error}).") from error
    if width * height > IMAGE_PIXELS:
        raise TrialError(f"The image has {width} × {height} pixels; at most {IMAGE_PIXELS // 10**6} million are read.")
    try:
        return ImageReader().read(data, None)[0]
    except RowFault as fault:
        raise TrialError(f"The image cannot be used: {fault}.") from fault
