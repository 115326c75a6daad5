"""`ShareGRPOTrainer`: transformers' Trainer with Share-GRPO's step inside.

One optimizer step of the Trainer is one *update*: the pairs of `train.problems_per_update` problems over all processes.
The first update of a rollout collects its samples, the last one writes them to the store. Micro-batches are packed rows
of at most `train.token_budget` tokens, so the Trainer's own accumulation stays at 1. Everything else (optimizer,
schedule, clipping, callbacks, trackers, distribution, Hub upload) is the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME

from sharevl_lite.atomic import publish_directory, temporary_beside
from sharevl_lite.checkpoints import CHECKPOINT_PREFIX, keep_newest, list_checkpoints, reading
from sharevl_lite.collect import Collector, Rollout
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem
from sharevl_lite.difficulty import visits_of
from sharevl_lite.dynamic import everything_asked
from sharevl_lite.heldout import Evaluator
from sharevl_lite.hub import AdapterUploads
from sharevl_lite.learn import Learner, Pair, RowLoss, UpdatePlan
from sharevl_lite.loss_scale import LossScale
from sharevl_lite.metrics import (
    Attempt,
    Tally,
    peak_memory_mib,
    percentile_95,
    tally_difficulties,
    tally_plans,
    tally_replaced,
    tally_rollout,
    tally_scores,
)
from sharevl_lite.metrics_log import MetricsLog
from sharevl_lite.policy.hf import load_adapter, save_adapter
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.records import StoredPictures, rollout_rows
from sharevl_lite.sampling import RolloutSource
from sharevl_lite.schedule import Schedule, UpdateStep
from sharevl_lite.step_checks import check_gap, check_loss
from sharevl_lite.store import RolloutStore
from sharevl_lite.together import in_all
from sharevl_lite.training_arguments import training_arguments

T = TypeVar("T")
BEST_SPLIT = "best"
"""Split of the store for the evaluation of the best checkpoint, put back at the end of a run."""


class ShareGRPOTrainer(Trainer):
    """Trains a :class:`PackedPolicy` with Share-GRPO.

    `evaluate` needs an evaluator (made from `eval_problems`). Every process puts the images of its own rollout into
    `store`; the rows there, `metrics_log` and `uploads` are the main process's.
    """

    uploads: AdapterUploads | None = None
    eval_split = "eval"
    """Split of the store that evaluations are written to."""
    leaving: Callable[[Callable[[], Any]], Any] = staticmethod(lambda work: work())
    """Does work of this process alone that an interrupt may end; see :class:`sharevl_lite.interrupt`."""

    def __init__(
        self,
        recipe: Recipe,
        policy: PackedPolicy,
        problems: Sequence[Problem],
        collector: Collector,
        *,
        eval_problems: Sequence[Problem] | None = None,
        store: RolloutStore,
        metrics_log: MetricsLog,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        arguments = training_arguments(recipe)
        # One process drives one device; with more of them the Trainer would turn to DataParallel, which splits batches
        # that a packed row does not have. Several GPUs: torchrun.
        arguments._n_gpu = min(1, arguments.n_gpu)
        super().__init__(
            model=policy,
            args=arguments,
            train_dataset=problems,
            eval_dataset=eval_problems,
            callbacks=callbacks,
        )
        self.recipe = recipe
        self.policy = policy
        self.problems = problems
        self.collector = collector
        self.store = store
        self.metrics_log = metrics_log
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.schedule = Schedule(recipe, len(problems), rank=rank, world=world)
        self.evaluator = (
            None
            if eval_problems is None
            else Evaluator(recipe, collector, eval_problems, rank=rank, world=world, gather=self.gather)
        )
        self.source = RolloutSource(recipe, policy, problems, collector, self.schedule, self.in_all)
        self._loss_scale = LossScale(enabled=policy.base_dtype == torch.float16)
        self._pictures = StoredPictures(store.put_image)
        self._step_metrics: dict[str, float] = {}
        self._alone = self._finishing = False
        self.control: TrainerControl

    # -- the data ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[UpdateStep]:
        """Every process walks through all updates of the run; the schedule says which problems are its own."""
        return DataLoader(self.schedule, batch_size=1, shuffle=False, collate_fn=_as_inputs)

    # -- the step ------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, UpdateStep], num_items_in_batch: Any = None) -> Tensor:
        """One update, its gradient accumulated over packed rows; returns its loss."""
        model.train()
        step = inputs["step"]
        if step.update == 0:
            self._begin_rollout(step.rollout)
        with self._watch.part("update"):
            loss = self._update(model, self._plans[step.update % self.schedule.chunks])
        if step.update == 0:
            self.in_all(self._check_sampler)
        if step.update == self.recipe.train.updates_per_rollout - 1:
            self._finish_rollout()
        return loss

    def _begin_rollout(self, number: int) -> None:
        self._started = time.perf_counter()
        self._tally = Tally()
        self._rollout: Rollout = self._sample(number)
        self._pictures.start(self._rollout)
        self._watch = self._rollout.stopwatch
        self._learner = Learner(self.recipe, self.policy, self._rollout)
        self._clipped: dict[Pair, float] = {}
        with self._watch.part("score"):
            self.policy.eval()
            self._plans = [self._learner.plan(self.schedule.members(c)) for c in range(self.schedule.chunks)]
            self.in_all(self._score, leave=True)
            self.policy.train()

    def _score(self) -> None:
        for chunk, plan in enumerate(self._plans):
            self._learner.score(plan, first=chunk == 0)

    def _sample(self, number: int) -> Rollout:
        """Rollout `number`: what was sampled while the one before was trained, or samples of the current weights."""
        rollout, sampled_at = self.source.sample(number, self.state)
        if self.recipe.rollout.overlap:
            self._tally.peak("lag_updates", self.state.global_step - sampled_at)
        return rollout

    def _check_sampler(self) -> None:
        """Stops before the optimizer's first step on responses that the policy would hardly have given so.

        Raises RolloutError.
        """
        section = self.recipe.rollout
        if section.max_sampler_gap is None or section.top_p < 1.0:
            return
        gaps = self._learner.sampler_gaps().abs()
        sums = self.gather((float(gaps.sum()), gaps.numel()))
        mean = sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))
        check_gap(self.recipe, self._rollout.number, mean)

    def _update(self, model: nn.Module, plan: UpdatePlan) -> Tensor:
        tokens = sum(self._learner.length_of(pair) for pair in plan.valid)
        counts = self.gather((len(plan.valid), tokens))
        count, tokens = max(1, sum(c for c, _ in counts)), max(1, sum(t for _, t in counts))
        while True:
            attempt = Attempt(torch.zeros((), dtype=torch.float64, device=self.args.device))
            self._backward(model, plan, count, tokens, attempt)
            self.in_all(partial(check_loss, self._rollout.number, attempt.loss))
            # Gradients are averaged over processes, and so equal in all of them: each decides alike.
            if self._loss_scale.unscale(model.parameters()):
                break
        self._tally = Tally.merged([self._tally, attempt.tally])
        self._clipped |= attempt.clipped
        return attempt.loss * self.accelerator.num_processes

    def _backward(self, model: nn.Module, plan: UpdatePlan, count: int, tokens: int, attempt: Attempt) -> None:
        # The loss is a sum over processes where gradients are averaged.
        factor = self.accelerator.num_processes * self._loss_scale.scale
        rows = len(plan.trained_rows)
        losses = self._learner.losses(model, plan, count, tokens)
        done: list[RowLoss] = []
        for place in range(rows):
            with nullcontext() if place == rows - 1 else self.accelerator.no_sync(model):
                row_loss = next(losses)
                self.accelerator.backward(row_loss.loss * factor)
            done.append(row_loss.detached())
            attempt.loss += done[-1].loss
        # Read at the end: it waits for the device, which the next row can be prepared for meanwhile.
        for row_loss in done if plan.active else ():
            attempt.add(row_loss)

    def _finish_rollout(self) -> None:
        self._finishing = True
        with self._watch.part("store"):
            self._store_rows("train", self._rollout, self._learner, self._clipped)
        tally_rollout(self._tally, self._rollout)
        tally_plans(self._tally, self._plans)
        tally_scores(self._tally, self._learner)
        self._tally_choices()
        if self._loss_scale.enabled:
            self._tally.peak("loss_scale", self._loss_scale.scale)
        self._tally.peak("peak_memory_mib", peak_memory_mib())
        self._tally.peak("seconds/step", time.perf_counter() - self._started)
        record = Tally.merged(self.gather(self._tally)).as_record()
        gaps = self.gather(self._learner.gaps())
        p95 = percentile_95(torch.cat(gaps))
        if p95 is not None:
            record["gap_p95"] = p95
        record["tokens_per_second"] = record["sampled_tokens"] / record["seconds/step"]
        self._step_metrics = record
        del self._rollout, self._learner, self._plans  # pixels, features and log-probs need not outlive the step
        self.policy.forget_images()
        self._finishing = False

    def _tally_choices(self) -> None:
        """What dynamic sampling replaced and how hard problems were asked; their success rates go on."""
        if self.recipe.rollout.dynamic_sampling:
            masked = self.recipe.objective.mask_truncated_completions
            tally_replaced(self._tally, self._rollout, self.recipe.share.levels, masks_truncated=masked)
        if self.recipe.share.difficulty.adaptive:
            tally_difficulties(self._tally, self._rollout)
            visits = self.gather(visits_of(everything_asked(self._rollout)))
            self.source.success = self.source.success.after(visit for part in visits for visit in part)

    # -- evaluation, logging, checkpoints ------------------------------------------------------------------------

    @property
    def rollouts_done(self) -> int:
        """Finished rollouts of the run."""
        return int(self.state.global_step) // self.recipe.train.updates_per_rollout

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out accuracy of the current policy; logged, and stored as the split `eval_split`."""
        evaluator = self.evaluator
        if evaluator is None:
            raise ValueError("there is nothing to evaluate on; set data.eval in the recipe")
        step = self.rollouts_done
        self.source.wait()  # it samples with the weights of its time
        self.in_all(self.collector.engine.sync)
        self.collector.trainer_state = self.state
        leave = not self.control.should_evaluate  # else a step was made, and a resumed run would not evaluate it again
        evaluation = evaluator.figures(self.in_all(lambda: evaluator.ask(step), leave=leave))
        self.policy.forget_images()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in evaluation.record.items()}
        if self.eval_split == BEST_SPLIT:
            metrics[f"{metric_key_prefix}_of_update"] = float(self.state.best_global_step or 0)
        self._store_rows(self.eval_split, evaluation.rollout)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the step's figures to the Trainer's own and writes metrics.jsonl besides the trackers."""
        if "train_runtime" in logs:
            return  # its samples are updates, and it counts no operations
        if "loss" in logs:
            logs = {**logs, **self._step_metrics}
        if self.accelerator.is_main_process:
            self.metrics_log.append({"step": self.rollouts_done, "update": self.state.global_step, **logs})
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint that appears under its name only when it is whole."""
        final = Path(self.args.output_dir) / f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        staging = Path(self.from_main(lambda: str(temporary_beside(final))))
        staging.mkdir(parents=True, exist_ok=True)
        self._meet()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        self._save_optimizer_and_scheduler(str(staging))
        self._save_rng_state(str(staging))
        if self.accelerator.is_main_process:
            save_adapter(self.policy, staging)
            self._loss_scale.save(staging)
            self.source.save(staging, self.rollouts_done + 1)
            self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
        self._meet()
        if self.accelerator.is_main_process:
            publish_directory(staging, final, replace=True)
            self._finish_current_push()  # the checkpoint being sent may be one that goes now
            limit = self.recipe.train.save_total_limit
            keep_newest(Path(self.args.output_dir), limit, best=self.state.best_model_checkpoint)
        self._meet()
        if self.uploads is not None:
            self.uploads.start(final, f"step {self.rollouts_done}")

    def save_before_failure(self, *, alone: bool = False) -> bool:
        """Saves a checkpoint of the finished steps where the next one failed before its first update; whether it did.

        All processes must call it, or with `alone` the main process, which others have left. Not where an evaluation
        failed, which a resumed run would pass over: it repeats the step instead.
        """
        self._alone = alone
        done = int(self.state.global_step)
        newest = self.from_main(lambda: [path.name for path in list_checkpoints(Path(self.args.output_dir))][-1:])
        fresh = done > 0 and newest != [f"{CHECKPOINT_PREFIX}{done}"]
        begun = done % self.recipe.train.updates_per_rollout or self.control.should_evaluate or self._finishing
        if not fresh or begun:
            return False
        self._save_checkpoint(self.model, None)
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Restores the adapter, strictly, the loss scale and what the next rollout is sampled by."""
        checkpoint = Path(resume_from_checkpoint)
        load_adapter(self.policy, checkpoint)
        with reading(checkpoint):
            self._loss_scale.load(checkpoint)
            self.source.load(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._keep_to_learning_rate()
            self.state.compute_steps(self.args, self.state.max_steps)  # when to save: the checkpoint has its own

    def _keep_to_learning_rate(self) -> None:
        """The recipe's peak, where the checkpoint was saved under another one; nothing else of the schedule moves."""
        peak = self.recipe.train.learning_rate
        for group in self.optimizer.param_groups:
            if group["initial_lr"] != peak:
                group["lr"] *= peak / group["initial_lr"]
                group["initial_lr"] = peak
        self.lr_scheduler.base_lrs = [peak for _ in self.lr_scheduler.base_lrs]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def init_hf_repo(self, token: str | None = None) -> None:
        """Called by the Trainer's constructor where the recipe asks for uploads."""
        if self.accelerator.is_main_process:
            self.uploads = AdapterUploads(str(self.args.hub_model_id))

    def _finish_current_push(self) -> None:
        """Called by the Trainer at the end of training."""
        if self.uploads is not None:
            self.uploads.finish()

    # -- several processes ---------------------------------------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order."""
        gathered: list[Any] = gather_object([value])
        return gathered

    def in_all(self, work: Callable[[], T], *, leave: bool = False) -> T:
        """What `work` gives in this process, where it fails in none; see :mod:`sharevl_lite.together`.

        With `leave` an interrupt of one of them ends it in all: work without collectives, before a step's first update.
        """
        return in_all(partial(self.leaving, work) if leave else work, self.gather, self.accelerator.process_index)

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, on all of them."""
        if self._alone:
            return make()
        box = [make() if self.accelerator.is_main_process else None]
        return broadcast_object_list(box)[0]

    def _meet(self) -> None:
        if not self._alone:
            self.accelerator.wait_for_everyone()

    def _store_rows(
        self, split: str, rollout: Rollout, learner: Learner | None = None, clipped: dict[Pair, float] | None = None
    ) -> None:
        rows = rollout_rows(self.recipe.name, rollout, self._pictures.take(), learner, clipped)
        everyone = [row for part in self.gather(rows) for row in part]
        if self.accelerator.is_main_process:
            self.store.write(split, rollout.number, everyone)


def _as_inputs(steps: list[UpdateStep]) -> dict[str, UpdateStep]:
    """The Trainer wants a mapping for a batch."""
    return {"step": steps[0]}
