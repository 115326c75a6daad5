"""A training step against TRL's GRPOTrainer: plain GRPO with LoRA and images, transformers samples on both sides.

    python scripts/bench_trl.py [--settings short long] [--steps 5 --threads 2] [--seeds 3 --learn-steps 16]

Both sides get the same model in the same precision, adapter, problems with images, rewards, number of problems and
responses, lengths, temperature, learning rate, loss, clips, and one update a rollout without a KL term. Neither saves,
evaluates or reports; ours logs and stores its responses, as it always does.

- short: the demo's problems and rewards, responses end by themselves.
- long: larger pictures, so that a prompt is longer than its responses, which all have their full length (the model's
  end token is one that neither side samples); the reward is a coin that depends on the tokens. With `--model FOLDER`,
  which `random_models.py` has written, this is the only setting, with sizes for a GPU.

Each trainer has a process of its own and takes a step when its turn comes, so that all of them meet the same moments of
a machine; steps are timed from the end of one to the end of the next. Each side is tried with several sizes of a pass
(responses at TRL, tokens of a packed row at ours); the fastest of each are compared, round by round.

`--seeds` trains both sides from the same model with the demo's learning rate, and asks both adapters the same held-out
questions. On a CPU, TRL's head runs as plain torch operations (`trl_side.py` says why).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl_setup import ON_A_GPU, SETTINGS, TOKEN, Job, Setting, write_recipe

LEARNING_RATE = 1e-3
PARTS = ("prepare", "sample", "reward", "train", "rest")
COUNTS = ("sampled_tokens", "trained_tokens", "patches")
FIELDS = ("seconds", "fastest", "slowest", *PARTS, *COUNTS, "peak_memory_mib")


# ---------------------------------------------------------------- processes


class Process:
    """A trainer in a process of its own, which takes a step when it is told to."""

    def __init__(self, job: Job, folder: Path, out: Path) -> None:
        self.job = job
        self.steps: list[dict[str, float]] = []
        self.log = out / f"trl-{folder.name}-{job.name}.log"
        file = folder / f"{job.name}.json"
        file.write_text(json.dumps(asdict(job)))
        words = [sys.executable, str(Path(__file__).with_name("trl_worker.py")), str(file)]
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # lengths differ from step to step
        environment.pop("TRITON_INTERPRET", None)  # for tests; it would slow TRL's side down
        pipe = subprocess.PIPE
        with self.log.open("w") as errors:
            self.run = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)

    def record(self, kind: str) -> Any:
        """The next record of this kind. Raises RuntimeError where the process ends before."""
        assert self.run.stdout is not None
        for line in self.run.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("peer") and kind in found:
                    return found[kind]
        raise RuntimeError(f"{self.job.name} ended with exit code {self.run.wait()}, see {self.log}")

    def step(self) -> None:
        """Lets it take a step and waits for its end."""
        assert self.run.stdin is not None
        self.run.stdin.write("\n")
        self.run.stdin.flush()
        self.steps.append(self.record("step"))

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.run.kill()
        self.run.communicate()


def run_in_turns(jobs: Sequence[Job], steps: int, folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Each job's record after so many steps, taken in turns; every other round goes backwards."""
    processes: list[Process] = []
    try:
        processes += [Process(job, folder, out) for job in jobs]
        trained = {process.job.name: process.record("ready") for process in processes}
        if len(set(trained.values())) > 1:
            raise RuntimeError(f"the sides do not train the same number of parameters: {trained}")
        for number in range(steps):
            for process in processes if number % 2 == 0 else processes[::-1]:
                process.step()
        return {process.job.name: process.record("done") for process in processes}
    finally:
        for process in processes:
            process.end()


# ---------------------------------------------------------------- seconds


def time_setting(setting: Setting, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Each way's figures of the steps behind the warm-up."""
    steps = options.warm_up + options.steps
    recipe = str(write_recipe(setting, folder, steps))
    ours = [Job("ours", size, recipe, options.threads, {"train.token_budget": size}) for size in setting.budgets]
    trl = [Job("trl", size, recipe, options.threads) for size in setting.batches]
    jobs = [job for pair in zip(ours, trl, strict=False) for job in pair]
    jobs += [job for job in (*ours, *trl) if job not in jobs]
    jobs = [replace(job, changes={**job.changes, "name": job.name}) for job in jobs]
    done = run_in_turns(jobs, steps, folder, options.out)
    return {job.name: figures(job, done[job.name], options.warm_up) for job in jobs}


def figures(job: Job, record: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Medians of a process's steps; `each` holds the seconds of every one."""
    each = [step["seconds"] for step in record["steps"]][warm_up:]
    parts = record["parts"][warm_up:]
    median = {name: statistics.median(part[name] for part in parts) for name in PARTS[:-1]}
    rest = [second - sum(part.values()) for second, part in zip(each, parts, strict=True)]
    counts = {name: statistics.median(step[name] for step in record["steps"][warm_up:]) for name in COUNTS}
    return {
        "side": job.side,
        "each": each,
        "train_each": [part["train"] for part in parts],
        "seconds": statistics.median(each),
        "fastest": min(each),
        "slowest": max(each),
        **median,
        "rest": statistics.median(rest),
        **counts,
        "peak_memory_mib": record["peak_memory_mib"],
        "prompt": record.get("prompt"),
    }


def best(found: dict[str, dict[str, Any]], side: str) -> str:
    """The name of this side's fastest way."""
    return min((name for name in found if found[name]["side"] == side), key=lambda name: found[name]["seconds"])


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """The median of the rounds' ratios, with the range."""
    each = [t / o for t, o in zip(theirs, ours, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def show(setting: Setting, found: dict[str, dict[str, Any]]) -> None:
    """Prints a setting's table and how the fastest ways compare."""
    prompt = next(row["prompt"] for row in found.values() if row["side"] == "trl")
    lengths = f"up to {setting.length} tokens" if setting.side is None else f"{setting.length} tokens each"
    print(
        f"\n{setting.name}: {setting.problems} problems, the first prompt has {prompt} tokens, x {setting.responses} "
        f"responses of {lengths}"
    )
    print(
        "| way | s a step (range) | prepare | sample | reward | train | rest | tokens: sample | train | patches | MiB |"
    )
    print("|---" * 11 + "|")
    for name, row in found.items():
        parts = " | ".join(f"{row[part]:.2f}" for part in PARTS)
        counts = " | ".join(f"{row[count]:,.0f}" for count in COUNTS)
        span = f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})"
        print(f"| {name} | {span} | {parts} | {counts} | {row['peak_memory_mib']:,.0f} |")
    ours, theirs = best(found, "ours"), best(found, "trl")
    step = ratios(found[theirs]["each"], found[ours]["each"])
    train = ratios(found[theirs]["train_each"], found[ours]["train_each"])
    print(f"{theirs} / {ours}: a step {step}, training alone {train}", flush=True)


# ---------------------------------------------------------------- what is learnt


def learn(setting: Setting, sizes: dict[str, int], options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Trains both sides with every seed; rewards of the first and last steps, and accuracy on held-out problems."""
    steps, rows = options.learn_steps, []
    recipe = str(write_recipe(setting, folder, steps))
    learning = {
        "train.learning_rate": LEARNING_RATE,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_updates": min(4, steps - 1),
        "data.train_limit": None,  # seeds draw from all of the demo's problems
        "data.eval": "builtin:digits",
        "eval.problems": options.eval_problems,
    }
    for seed in range(options.seeds):
        changes = {"seed": seed, "train.token_budget": sizes["ours"]}
        blind = learning | {"data.eval": None} | changes  # nothing is asked while training
        jobs = [
            Job(side, sizes[side], recipe, options.threads, blind | {"name": f"learn-{side}-{seed}"})
            for side in ("ours", "trl")
        ]
        done = run_in_turns(jobs, steps, folder, options.out)
        adapters = [str(folder / "runs" / f"learn-{job.side}-{seed}" / "adapter") for job in jobs]
        judge = Process(Job("judge", seed, recipe, options.threads, learning, adapters), folder, options.out)
        try:
            before, *after = judge.record("accuracies")
        finally:
            judge.end()
        quarter = max(1, steps // 4)
        for job, accuracy in zip(jobs, after, strict=True):
            rewards = done[job.name]["rewards"]
            first, last = statistics.mean(rewards[:quarter]), statistics.mean(rewards[-quarter:])
            row = {"side": job.side, "seed": seed, "reward_first": first, "reward_last": last}
            rows.append(row | {"accuracy_before": before, "accuracy": accuracy})
    return rows


def show_learnt(rows: Sequence[dict[str, Any]], steps: int) -> None:
    """Prints means over seeds with the range."""
    print(f"\nlearnt in {steps} steps, {len(rows) // 2} seeds: mean (range)")
    print("| side | reward, first quarter | reward, last quarter | held-out accuracy before | after |")
    print("|---" * 5 + "|")
    for side in ("ours", "trl"):
        cells = [side]
        for name in ("reward_first", "reward_last", "accuracy_before", "accuracy"):
            values = [row[name] for row in rows if row["side"] == side]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print("| " + " | ".join(cells) + " |", flush=True)


# ---------------------------------------------------------------- the command


def versions(threads: int) -> dict[str, str]:
    """Where this was measured."""
    import torch

    found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "threads": str(threads)}
    return found | {package: metadata.version(package) for package in ("torch", "transformers", "peft", "trl")}


def parse() -> argparse.Namespace:
    """The command's options, checked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="what is timed (default: both)")
    add("--steps", type=int, default=5, help="timed steps of each way (default: 5)")
    add("--warm-up", type=int, default=2, help="steps before those (default: 2)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads on both sides (default: all cores)")
    add("--problems", type=int, help="problems of a step, instead of the setting's")
    add("--responses", type=int, help="responses to each problem")
    add("--length", type=int, help="most tokens of a response")
    add("--side", type=int, help="pixels along a picture of the setting `long`")
    add("--trl-batch", type=int, nargs="+", help="responses in a pass of TRL's that are tried")
    add("--token-budget", type=int, nargs="+", help="tokens in a packed row of ours that are tried")
    add(
        "--seeds", type=int, default=0, help="train so many times on each side, and compare what is learnt (default: 0)"
    )
    add("--learn-steps", type=int, default=16, help="steps of that training (default: 16)")
    add("--eval-problems", type=int, default=256, help="held-out problems, asked four times each (default: 256)")
    add("--model", type=Path, help="a folder that random_models.py has written: `long` alone, in sizes for a GPU")
    add("--quick", action="store_true", help="one step of tiny sizes: tries the script")
    add("--out", type=Path, default=Path("bench-results"), help="folder of the figures and logs")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.warm_up, options.threads = 1, 1, 1
    check(options, parser)
    return options


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Ends with exit code 2 where an option makes no sense."""
    for name in ("steps", "threads", "problems", "responses", "length", "side", "learn_steps", "eval_problems"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    for name in ("warm_up", "seeds"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must be at least 0, not {getattr(options, name)}")
    if options.side is not None and options.side % TOKEN:
        parser.error(f"--side must be a multiple of {TOKEN}, not {options.side}")
    if options.model is not None and not (options.model / "config.json").is_file():
        parser.error(f"--model: {options.model} holds no config.json; scripts/random_models.py writes such a folder")
    if options.model is not None and options.seeds:
        parser.error("--seeds needs the shipped model: a random one learns nothing")
    if find_spec("trl") is None:
        parser.error("TRL is not installed; pip install trl==1.15.0")
    names = ["long"] if options.model else dict.fromkeys(options.settings)
    options.chosen = [settle(options, name, parser) for name in names]


def settle(options: argparse.Namespace, name: str, parser: argparse.ArgumentParser) -> Setting:
    """A setting with what the options change, and with sizes that fit it."""
    setting = ON_A_GPU if options.model else SETTINGS[name]
    if options.quick:
        setting = replace(setting, problems=2, responses=4, length=8, side=setting.side and 4 * TOKEN)
        setting = replace(setting, batches=(8,), budgets=(1024,))
    wanted = {key: getattr(options, key) for key in ("problems", "responses", "length")}
    wanted |= {"side": options.side if setting.side else None, "model": options.model and str(options.model.resolve())}
    wanted |= {"batches": options.trl_batch, "budgets": options.token_budget}
    setting = replace(setting, **{key: value for key, value in wanted.items() if value is not None})
    count = setting.problems * setting.responses
    if setting.responses < 2:
        parser.error("--responses must be at least 2: GRPO compares the responses to a problem")
    batches = [min(batch, count) for batch in setting.batches]
    for batch in batches:
        if batch < 1 or count % batch:
            parser.error(f"--trl-batch {batch} does not divide the step's {count} responses")
    if min(setting.budgets) < 1:
        parser.error(f"--token-budget must be at least 1, not {min(setting.budgets)}")
    return replace(setting, batches=tuple(dict.fromkeys(batches)), budgets=tuple(dict.fromkeys(setting.budgets)))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows, with their keys as the header."""
    with path.open("w", newline="") as sheet:
        writer = csv.DictWriter(sheet, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")


def main() -> int:
    """Prints the tables and writes the CSVs."""
    options = parse()
    where = versions(options.threads)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sharevl-bench-"))
    rows: list[dict[str, Any]] = []
    try:
        for setting in options.chosen:
            found = time_setting(setting, options, folder / setting.name)
            show(setting, found)
            sizes = {side: int(best(found, side).rpartition("-")[2]) for side in ("ours", "trl")}
            for name, row in found.items():
                rows.append({"setting": setting.name, "way": name} | {key: row[key] for key in FIELDS} | where)
            if options.seeds and setting.side is None:
                learnt = learn(setting, sizes, options, folder / "learn")
                show_learnt(learnt, options.learn_steps)
                write_csv(options.out / "trl-learnt.csv", [row | where for row in learnt])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_csv(options.out / "trl.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
