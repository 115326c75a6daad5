# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sharevl-lite/sharevl-lite/blob/main/notebooks/bring_your_own_data.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/sharevl-lite/sharevl-lite/blob/main/notebooks/bring_your_own_data.ipynb)
#
# From a folder of pictures and a file of questions to a trained and evaluated model: rows, variants, a reward of your own,
# training, evaluation. It runs on a CPU with the small model of the package; with a GPU and a real model only the recipe
# changes.

# %%
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

packages = {
    "sharevl_lite": "sharevl-lite @ git+https://github.com/sharevl-lite/sharevl-lite",
    "matplotlib": "matplotlib",
}
missing = [source for name, source in packages.items() if importlib.util.find_spec(name) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def sharevl(*words, expect=0, last=None):
    """Runs a command of sharevl-lite, shows the `last` lines it prints (all), and checks its exit code."""
    command = [sys.executable, "-m", "sharevl_lite", *map(str, words)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print("\n".join(done.stdout.splitlines()[-(last or 0) :]))
    if done.returncode != expect:
        raise SystemExit(f"sharevl-lite {words[0]} ended with exit code {done.returncode}")


work = Path("own-data-run")
shutil.rmtree(work, ignore_errors=True)
(work / "pictures").mkdir(parents=True)

# %% [markdown]
# ## 1. Rows
#
# A problem is a question, its pictures and the right answer. Any names will do; a recipe says which column is which. Here
# are questions about two handwritten digits from scikit-learn, with pictures in a folder. The first 220 scans make the
# training rows, later ones the held-out rows, so that no scan is in both.

# %%
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

scans = load_digits()
rng = np.random.default_rng(7)


def make_rows(name, first, last, count):
    """Writes `count` questions about the scans [first, last) and their pictures."""
    with open(work / f"{name}.jsonl", "w") as file:
        for number in range(count):
            left, right = rng.integers(first, last, 2)
            grey = np.hstack([scans.images[left], scans.images[right]])
            picture = Image.fromarray((255 - grey * 255 / 16).astype(np.uint8)).resize((112, 56), Image.BICUBIC)
            path = work / "pictures" / f"{name}-{number}.png"
            picture.save(path)
            a, b = int(scans.target[left]), int(scans.target[right])
            word, answer = [("sum", a + b), ("difference", abs(a - b))][number % 2]
            link = "of" if word == "sum" else "between"
            row = {"question": f"What is the {word} {link} the two digits?", "picture": f"pictures/{path.name}"}
            file.write(json.dumps({**row, "solution": str(answer), "topic": word}) + "\n")


make_rows("train", 0, 220, 160)
make_rows("test", 220, 400, 48)
lines = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
figure, axes = plt.subplots(1, 4, figsize=(10, 1.8))
for axis, line in zip(axes, lines, strict=False):
    axis.imshow(Image.open(work / line["picture"]), cmap="gray")
    axis.set_axis_off()
    axis.set_title(f"the {line['topic']}: {line['solution']}", fontsize=10)
print(lines[0])

# %% [markdown]
# Every row is checked before anything is trained. A mistake is one message that says what is wrong, where, and what to do:

# %%
(work / "wrong.jsonl").write_text('{"question": "How many?", "picture": "pictures/nowhere.png", "solution": "3"}\n')
columns = "problem=question,images=picture,answer=solution"
sharevl("variants", work / "wrong.jsonl", "--out", work / "wrong", "--columns", columns, expect=2)

# %% [markdown]
# ## 2. Variants
#
# Share-GRPO asks each problem in several ways. `rules` rewrites questions without any model; with a vision-language model
# behind an OpenAI-compatible address it is `--with openai --base-url … --model …`. A rewrite whose facts differ is rejected, and
# the report says why.

# %%
sharevl("variants", work / "train.jsonl", "--out", work / "variants", "--columns", columns, "--num", 3)

# %%
import pyarrow.parquet as pq

table = pq.read_table(next((work / "variants").rglob("*.parquet"))).to_pylist()
for row in table[:2]:
    print(row["problem"], "→", row["answer"])
    for variant in row["variants"]:
        print("   ", variant)

# %% [markdown]
# ## 3. A reward of your own
#
# A Python file with a function of TRL's signature: lists in, one number per completion out, `None` where it does not apply.
# This one likes short answers.

# %%
(work / "rewards.py").write_text(
    '''
def brevity(completions, **kwargs):
    """1 for an empty completion, falling to 0 at 80 characters."""
    return [max(0.0, 1.0 - len(completion) / 80) for completion in completions]
'''
)

# %% [markdown]
# ## 4. The recipe, and a look before the start

# %%
recipe = work / "recipe.yaml"
recipe.write_text(
    f"""
name: own-data
output_dir: {work}/runs
model: {{path: builtin:digits-vl, dtype: float32, lora: {{rank: 16, alpha: 32}}}}
data:
  train: {work}/variants
  eval: {work}/test.jsonl
  prompt_template: "{{problem}} Think, then box the answer."
  max_prompt_length: 96
  columns: {{problem: question, images: picture, answer: solution}}
share: {{num_variants: 2, num_responses: 4, transforms: {{probability: 0.5}}}}
rollout: {{max_completion_length: 32, batch_size: 192}}
reward:
  functions: [{{path: rewards.py:brevity, weight: 0.1}}]
train: {{rollouts: 5, problems_per_rollout: 24, problems_per_update: 12, learning_rate: 2.0e-3, token_budget: 1024}}
eval: {{problems: 48, samples: 2}}
"""
)
sharevl("train", recipe, "--dry-run", last=18)

# %%
sharevl("train", recipe)

# %% [markdown]
# ## 5. Evaluate
#
# Several samples a question, figures with intervals, by topic and by kind of variant, and how often a problem is answered
# alike however it is asked.

# %%
sharevl("eval", work / "runs" / "own-data", "--data", work / "test.jsonl", "--samples", 4, "--by", "topic")

# %% [markdown]
# What next: `sharevl-lite view own-data-run/runs/own-data` shows every answer, and `quickstart.ipynb` exports a model.
