# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Share-GRPO in a notebook
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sharevl-lite/sharevl-lite/blob/main/notebooks/quickstart.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/sharevl-lite/sharevl-lite/blob/main/notebooks/quickstart.ipynb&accelerator=nvidiaTeslaT4)
#
# Fine-tunes **Qwen2.5-VL-3B** in 4 bits on geometry problems with one T4, as Colab and Kaggle lend it: two ways of asking
# each problem, two answers under each, a few steps. Then it looks at what the policy tried and exports the result.
# On Colab choose a T4 under "Runtime", "Change runtime type"; on Kaggle a T4 and "Internet" among the session's options. It
# takes half an hour to three quarters there, most of it sampling (estimated: nobody has run it).
#
# Without a GPU the same notebook trains the small model that comes with the package on handwritten digits
# (`SHAREVL_SMOKE=1` asks for that on a GPU as well). **The outputs below are from such a run on a CPU.** The path for a
# T4 has not been run on one yet; its recipe was planned with `sharevl-lite doctor`.

# %% [markdown]
# ## Install
#
# Some minutes on Colab and Kaggle. Red lines there about what other packages would like do no harm. A package that the
# session had loaded may have been replaced: the cell says so, and wants the session restarted once.

# %%
import importlib.util
import subprocess
import sys
from importlib.metadata import version

packages = {  # an uploaded wheel instead: "sharevl-lite[unsloth] @ file:///content/sharevl_lite-0.1.0-py3-none-any.whl"
    "sharevl_lite": "sharevl-lite[unsloth] @ git+https://github.com/sharevl-lite/sharevl-lite",
    "matplotlib": "matplotlib",
}
missing = [source for name, source in packages.items() if importlib.util.find_spec(name) is None]
if missing:
    print("installing", *missing)
    if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing]).returncode:
        raise SystemExit(
            "pip could not install it (see above); is there internet? Else upload a wheel and name it above"
        )
loaded = [name for name in ("numpy", "pandas", "pyarrow") if name in sys.modules]
replaced = [name for name in loaded if sys.modules[name].__version__ != version(name)]
if replaced:
    raise SystemExit(
        f"{', '.join(replaced)} was loaded before it was replaced: restart the session, then run all cells"
    )

# %%
import os
import shutil
import subprocess
import sys

smi = shutil.which("nvidia-smi")  # it may be there and fail
gpu = smi is not None and subprocess.run([smi], capture_output=True).returncode == 0
SMOKE = os.environ.get("SHAREVL_SMOKE") == "1" or not gpu
print("the small model, on this CPU" if SMOKE else "Qwen2.5-VL-3B on the GPU")
if not gpu and {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"} & os.environ.keys():
    print(
        "for the large one choose a T4: Colab's menu Runtime, Change runtime type; Kaggle's Accelerator; then run all"
    )


def sharevl(*words):
    """Runs a command of sharevl-lite and shows what it prints."""
    command = [sys.executable, "-m", "sharevl_lite", *map(str, words)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise SystemExit(f"sharevl-lite {words[0]} ended with exit code {process.returncode}")


# %% [markdown]
# ## A recipe
#
# One YAML file describes a run; `sharevl-lite train --help` explains every knob. `share` is what Share-GRPO is about:
# *m* ways of asking a problem and *n* answers under each.

# %%
from pathlib import Path

T4 = """
name: quickstart
model:
  path: Qwen/Qwen2.5-VL-3B-Instruct
  loader: unsloth
  dtype: float16          # a T4 has no bfloat16; the loss is scaled
  load_in_4bit: true
  lora: {rank: 16, alpha: 32}
  gradient_checkpointing: true
  min_pixels: 65536
  max_pixels: 401408
data: {train: hiyouga/geometry3k, eval: hiyouga/geometry3k, max_prompt_length: 1024, on_bad_row: skip}
share: {num_variants: 2, num_responses: 2}
rollout: {max_completion_length: 384, batch_size: 16}
train: {rollouts: 4, problems_per_rollout: 8, problems_per_update: 8, token_budget: 4096}
eval: {problems: 16, samples: 1}
"""
SMALL = """
name: quickstart
model: {path: builtin:digits-vl, dtype: float32, lora: {rank: 16, alpha: 32}}
data:
  train: builtin:digits
  eval: builtin:digits
  prompt_template: "{problem} Think, then box the answer."
  max_prompt_length: 96
share: {num_variants: 2, num_responses: 4, transforms: {probability: 0.7}}
rollout: {max_completion_length: 32, batch_size: 192}
train: {rollouts: 6, problems_per_rollout: 24, problems_per_update: 12, learning_rate: 2.0e-3, token_budget: 1024}
eval: {problems: 64, samples: 2}
"""
work = Path("quickstart-run")
if SMOKE:  # a large run is kept, and gone on with
    shutil.rmtree(work, ignore_errors=True)
work.mkdir(exist_ok=True)
recipe = work / "recipe.yaml"
recipe.write_text((SMALL if SMOKE else T4) + f"output_dir: {work}/runs\n")
run = work / "runs" / "quickstart"

# %% [markdown]
# `doctor` looks at the GPU, if there is one, the versions and the memory that the recipe will take, and says what to lower
# where it does not fit, and what to do next.

# %%
sharevl("doctor", recipe)

# %% [markdown]
# ## Train
#
# The model is fetched (7.5 GB) and packed into 4 bits while it is loaded. Run again, the cell goes on where it was stopped.

# %%
sharevl("train", recipe, "--resume", "auto")

# %% [markdown]
# ## What the policy was asked
#
# Every response is in the rollout store, an Arrow table. Here is a problem of the last step, asked in two ways.

# %%
import matplotlib.pyplot as plt

import sharevl_lite
from sharevl_lite.store import RolloutStore

rows = sharevl_lite.store.read(run).to_pylist()
last = max(row["step"] for row in rows)
problems = {}
for row in rows:
    if row["step"] == last:
        problems.setdefault(row["problem_id"], []).append(row)


def spread(answers):
    """How much the rewards of a problem's answers differ."""
    totals = [row["rewards"]["total"] for row in answers if row["rewards"]["total"] is not None]
    return max(totals) - min(totals) if totals else 0.0


answers = max(problems.values(), key=lambda rows: (spread(rows), any(row["transform"] for row in rows)))
variants = {row["variant_index"]: row for row in answers}
figure, axes = plt.subplots(1, len(variants), figsize=(9, 3))
for axis, (j, row) in zip(axes, sorted(variants.items()), strict=True):
    axis.imshow(RolloutStore(run).image(row["image_sha"][0]))
    axis.set_title(f"variant {j}: {row['transform'] or 'as it is'}", fontsize=10)
    axis.set_axis_off()
    print(f"variant {j}: {row['variant_text']}")

# %% [markdown]
# ## Every answer under every variant
#
# A row is an answer, a column the variant it was scored under. The number is the advantage: what the update made of it.
# An answer's own variant sees both levels, the others the global one.

# %%
answers.sort(key=lambda row: (row["variant_index"], row["response_index"]))
table = [[scorer["advantage"] or 0.0 for scorer in row["scorers"]] for row in answers]
highest = max(abs(value) for values in table for value in values) or 1.0
figure, axis = plt.subplots(figsize=(6, 0.42 * len(table) + 0.8))
axis.imshow(table, cmap="RdBu", vmin=-highest, vmax=highest, aspect="auto")
for i, values in enumerate(table):
    for k, value in enumerate(values):
        colour = "white" if abs(value) > 0.65 * highest else "black"
        axis.text(k, i, f"{value:+.2f}", ha="center", va="center", color=colour)
labels = [f"{row['text'][:48].strip()!r}  ({row['rewards']['total']:.1f})" for row in answers]
axis.set(xticks=range(len(variants)), yticks=range(len(table)), yticklabels=labels, xlabel="scored under variant")
axis.set_title("advantage; reward in brackets")
plt.show()

# %% [markdown]
# ## The explorer
#
# The same and much more in the browser: `sharevl-lite view quickstart-run/runs/quickstart`. Colab and Jupyter show it right here; on Kaggle,
# and in a run without a screen, a problem goes into one HTML file that opens anywhere.

# %%
if SMOKE or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    sharevl("view", run, "--export", work / "problem.html", "--problem", answers[0]["problem_id"])
else:
    from sharevl_explorer.app import serve
    from sharevl_explorer.index import Index

    serve(Index([run]), block=False)

# %% [markdown]
# ## Export
#
# Merges the adapter into the base weights and writes a folder that transformers and vLLM load. It is reloaded and compared
# with base and adapter before the command says that it is done. `--push-to-hub you/your-model` uploads it.
#
# After a few steps an adapter's changes are smaller than the steps of 16-bit numbers: a merge may round most of them away,
# and the command then refuses it. So the large model is exported as an adapter here; train longer, then merge. Its check
# reads the base in 16 bits (7.5 GB, which the training has fetched).

# %%
kind = "merged-16bit" if SMOKE else "lora"
shutil.rmtree(work / "exported", ignore_errors=True)
sharevl("export", run, "--to", work / "exported", "--format", kind)

# %% [markdown]
# The exported model is an ordinary one:

# %%
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sharevl_lite.policy.float16_vision import keep_in_range

dtype = "auto" if SMOKE else torch.float16  # "auto" is the weights' bfloat16, which a T4 only emulates
place = "auto" if SMOKE else {"": 0}
model = AutoModelForImageTextToText.from_pretrained(work / "exported", dtype=dtype, device_map=place)
if not SMOKE:
    keep_in_range(model.model.visual)  # the vision tower exceeds float16 on some pictures; runs do this themselves
processor = AutoProcessor.from_pretrained(work / "exported")
asked = sharevl_lite.load_recipe(run / "recipe.yaml").data.prompt_template
question = variants[0]["variant_text"].replace("<image>", "")
content = [{"type": "image"}, {"type": "text", "text": asked.format(problem=question)}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
picture = RolloutStore(run).image(variants[0]["image_sha"][0])
inputs = processor(text=[prompt], images=[picture], return_tensors="pt").to(model.device)
written = model.generate(**inputs, max_new_tokens=32 if SMOKE else 384, do_sample=False)
print(question, "→", processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
print("right answer:", answers[0]["answer"])
