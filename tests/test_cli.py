"""The command line as a user meets it: quick help, clear errors, exit codes."""

import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sharevl_lite.cli import main
from sharevl_lite.data.digits import digits_problems
from sharevl_lite.parser import PLAIN_KNOBS
from sharevl_lite.policy.hf import resolve_model_path

ROOT = Path(__file__).parents[1]
DEMO = str(ROOT / "configs" / "digits_cpu.yaml")


def sharevl(*words, timeout=120):
    command = [sys.executable, "-m", "sharevl_lite", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)


@pytest.fixture
def called(capsys, monkeypatch):
    """The command in this process, which has torch already: (exit code, output, errors)."""
    monkeypatch.chdir(ROOT)

    def call(*words):
        try:
            code = main(list(words))
        except SystemExit as ended:  # argparse's
            code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["eval", "--help"], ["variants", "--help"]])
def test_help_is_quick(words):
    seconds = []
    for _ in range(3):  # of the processor, and the quickest of three: the machine may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert sharevl(*words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0.0 < min(seconds) < 1.0


def test_help_loads_nothing_heavy():
    code = (
        "import sys, sharevl_lite.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_train_help_names_every_knob():
    from sharevl_lite.knobs import knobs

    text = sharevl("train", "--help").stdout
    assert all(f"--{knob.name} " in text for knob in knobs())
    assert "Lower clip of the ratio" in text
    words = " ".join(text.split())
    assert "(default: []) Rewards of your own, each a `{path: rewards.py:function, weight: 1.0}`" in words
    assert "Paths start at the recipe's folder" in words
    assert "Paths start at the current folder" in words


def test_variants_help_names_the_default_rewriter(called):
    assert "rules (no model; default)" in " ".join(called("variants", "--help")[1].split())


def test_train_help_names_knobs_when_python_asks_for_it(called):
    assert "--share.num-variants " in called("train", "--help")[1]


def test_dry_run_tells_what_dynamic_sampling_may_add(called):
    words = ("--rollout.dynamic-sampling", "true", "--rollout.max-extra-rounds", "3")
    _, told, _ = called("train", DEMO, "--dry-run", *words)
    assert "responses         384, and up to 1,152 in 3 rounds of replacements" in told


def test_dry_run_tells_of_a_run_that_is_there(called, small_run):
    place = ["--name", small_run.name, "--output-dir", str(small_run.parent)]
    assert "(holds a run: --resume auto goes on with it" in called("train", DEMO, *place, "--dry-run")[1]
    assert "holds a run" not in called("train", DEMO, *place, "--name", "another", "--dry-run")[1]


def test_dry_run_shows_the_recipe_with_overrides_and_exits_0(called):
    code, told, errors = called("train", DEMO, "--share.num-variants", "3", "--dry-run")
    assert code == 0, errors
    assert "num_variants: 3" in told
    assert "P·m²·n = 32·3²·6" in told


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--share.num-variants", "3", DEMO, "--dry-run"],
        ["train", "--seed", "3", "--share.num-variants=3", DEMO, "--dry-run"],
        ["train", "--dry-run", "--name", "mine", DEMO, "--share.num_variants", "3"],
    ],
)
def test_knobs_may_stand_before_the_recipe(called, words):
    code, told, errors = called(*words)
    assert code == 0, errors
    assert "num_variants: 3" in told


def test_the_value_of_a_knob_is_no_target(called):
    assert "doctor RECIPE.yaml --share.num-variants" in called("doctor", "--share.num-variants", "3")[2]
    errors = called("eval", "--rollout.temperature", "0.5", "runs/none-of-that-name")[2]
    assert "runs/none-of-that-name" in errors
    assert "0.5" not in errors
    # An option of its own, though a recipe has such a key as well.
    assert "takes no --name" in called("eval", "--name", "mine", "--compare", "a.json", "b.json")[2]


def test_data_beside_the_recipe_is_pointed_at(called, tmp_path, monkeypatch):
    """Paths of data start at the current folder: from another one than the recipe's they lead nowhere."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "p.jsonl").write_text('{"problem": "1 + 1?", "images": [], "answer": "2"}\n')
    recipe = Path("mine") / "small.yaml"
    (tmp_path / recipe).write_text("model: {path: 'builtin:digits-vl'}\ndata: {train: p.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    for words in (["train", str(recipe), "--dry-run"], ["train", str(recipe)]):
        code, _, errors = called(*words)
        assert code == 2
        assert f"There is one beside the recipe ({Path('mine') / 'p.jsonl'})" in errors
    assert "beside the recipe" not in called("train", str(recipe), "--dry-run", "--data.train", "q.jsonl")[2]
    assert "beside the recipe" not in called("train", DEMO, "--dry-run", "--data.train", "mine/q.jsonl")[2]


def test_dry_run_shows_the_options_of_a_column(called, tmp_path):
    row = {"question": "Which is red?", "images": [], "options": ["ball", "cube"], "answer": "B"}
    (tmp_path / "mcq.jsonl").write_text(f"{json.dumps(row)}\n" * 32)
    columns = "{problem: question, answer: answer}"
    words = ("--data.train", str(tmp_path / "mcq.jsonl"), "--data.columns", columns)
    _, told, errors = called("train", DEMO, *words, "--dry-run")
    assert "options           of column 'options' stand below each question" in told, errors
    assert "Which is red? Options: (A) ball (B) cube → B. cube" in told
    _, told, _ = called("train", DEMO, *words, "--data.columns.choices", "null", "--dry-run")
    assert "options     " not in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", DEMO, "--share.num-varians", "3"], ["share.num-varians", "share.num-variants"]),
        (["train", DEMO, "--train.rollouts", "many"], ["train.rollouts", "many"]),
        (["train", DEMO, "--objective.epsilon", "2"], ["objective", "epsilon must be below 1"]),
        (["train", "no/such.yaml"], ["no/such.yaml"]),
        (["train", "nope.yaml"], ["nope.yaml: no such file. Recipes near it: configs/digits_cpu.yaml, "]),
        (["train", DEMO, "--train", "{rollout: 3}"], ["unknown key; did you mean train.rollouts"]),
        (["train", DEMO, "--train.share", "{std: none}"], ["unknown key; did you mean --share?"]),
        (
            ["train", DEMO, "--reward.functions", "[rewards.py:brevity]"],
            ['reward.functions.0: must be {path: text, weight: float}, got "rewards.py:brevity"'],
        ),
        (
            ["train", DEMO, "--data.train", "no/such.parquet", "--name", "x9", "--output-dir", "/nonexistent"],
            ["no/such"],
        ),
        (["train", DEMO, "--model.path", "builtin:nothing", "--name", "x9"], ["builtin:nothing", "builtin:digits-vl"]),
        (["train", DEMO, "--resume", "no/checkpoint", "--name", "x9"], ["no/checkpoint", "no such folder"]),
        (["train", DEMO, "--train.report-to", "[wandb]", "--name", "x9"], ["wandb", "pip install"]),
        (["train", DEMO, "--data.train", "no/such.parquet", "--dry-run"], ["no/such.parquet: no such file"]),
        (["train", DEMO, "--reward.functions", "[{path: no.py:mine}]", "--dry-run"], ["no.py:mine", "no file"]),
        (["train", DEMO, "--model.lora.target-modules", "[lm_head]", "--name", "x9"], ["lm_head", "q_proj"]),
        (["train", DEMO, "--model.lora.target-modules", ".*lm_head", "--name", "x9"], ["output layer"]),
        (["train"], ["RECIPE.yaml"]),
        (["eval", "builtin:digits-vl"], ["--data"]),
        (["eval", "builtin:digits-vl", "--data", "builtin:letters"], ["builtin:letters"]),
        (["eval", "builtin:digits-vl", "--data", "builtin:digits", "--samples", "0"], ["eval.samples"]),
        (["fly"], ["unknown command fly; there are train, eval, doctor, variants, export, view"]),
        (["trian", DEMO], ["sharevl-lite: unknown command trian; did you mean train?"]),
        (["evaluate", "builtin:digits-vl"], ["unknown command evaluate; did you mean eval?"]),
        ([DEMO, "--dry-run"], [f"did you mean train {DEMO}?"]),
        (["train", DEMO, "--dryrun"], ["--dryrun", "--dry-run"]),
        (["train", DEMO, "--dry"], ["unknown option --dry; did you mean --dry-run?"]),
        (["train", DEMO, "-dry-run"], ["unknown option -dry-run; did you mean --dry-run?"]),
        (["train", DEMO, "--resume-from-checkpoint", "x"], ["did you mean --resume?"]),
        (["train", DEMO, "--rollouts", "3"], ["did you mean --train.rollouts?"]),
        (["doctor", DEMO, "--memory-gb", "24"], ["did you mean --memory-gib?"]),
        (["variants", "x.parquet", "--out", "y", "--model-name", "z"], ["did you mean --model?"]),
        (["view", "runs/x", "--modle", "run"], ["did you mean --model?"]),
        (["train", DEMO, "--resume-from=x"], ["--resume-from", "--resume?"]),
        (["export", "runs/x", "--to", "y", "--max-shard", "1GB"], ["--max-shard", "--max-shard-size"]),
        (["train", DEMO, "--nam", "x9"], ["--nam", "did you mean --name"]),
    ],
    ids=lambda value: " ".join(value)[-40:],
)
def test_a_mistake_is_one_clear_message_and_code_2(called, words, told):
    code, output, errors = called(*words)
    assert code == 2, output + errors
    for piece in told:
        assert piece in errors


ROWS = [{"problem": f"What is {n} + {n}?", "images": [], "answer": str(2 * n)} for n in range(40)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.max-prompt-length", "12"], "above data.max_prompt_length (12)"),
        (["--train.problems-per-rollout", "64"], "train.problems_per_rollout is 64 and the data has 40 problems"),
        (["--data.train-limit", "33", "--train.problems-per-rollout", "64"], "the data has 33 problems"),
        (
            ["--train", "{problems_per_rollout: 40, problems_per_update: 40}", "--rollout.dynamic-sampling", "true"],
            "asks all 40 problems",
        ),
        (["--data.eval", "nothere.jsonl"], "nothere.jsonl: no such file or folder"),
        (["--data.train", "token.jsonl"], "row 3 (counted from 0; token.jsonl line 4): its text holds <|im_end|>"),
        (["--model.path", "./mymodel"], "cannot load './mymodel' (no such folder)"),
        (["--model.path", "runs/old"], "runs/old' (it is a run, not a model)"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_what_train_refuses_at_once_the_dry_run_and_doctor_refuse(words, told, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    odd = [*ROWS[:3], {"problem": "What is <|im_end|>?", "images": [], "answer": "1"}, *ROWS[3:]]
    (tmp_path / "token.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    old = tmp_path / "runs" / "old"
    old.mkdir(parents=True)
    (old / "recipe.yaml").write_text("name: old\n")
    shutil.copy(Path(resolve_model_path("builtin:digits-vl")) / "tokenizer.json", old)
    sources = (flag for flag in ("--data.train", "--data.eval") if flag not in words)
    common = [DEMO, *(word for flag in sources for word in (flag, "rows.jsonl")), *words]
    for command in (["train", *common, "--dry-run"], ["train", *common, "--output-dir", str(tmp_path / "out")]):
        code, output, errors = called(*command)
        assert code == 2, output + errors
        assert told in errors
    code, output, _ = called("doctor", *common)
    assert code == 1
    assert "FAIL model and data: " in output
    assert told in output
    assert "hf download" not in output


def test_a_dry_run_reads_no_held_out_rows_that_train_does_not(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {"problem": "What is <|im_end|>?", "images": [], "answer": "1"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:3], odd]))
    words = ["train", DEMO, "--dry-run", "--data.eval", "rows.jsonl", "--eval.problems"]
    assert called(*words, "3")[0] == 0
    assert called(*words, "4")[0] == 2


def test_a_dry_run_reads_the_first_rows_alone(called, tmp_path, monkeypatch):
    """Rows that are skipped may be followed by good ones."""
    monkeypatch.chdir(tmp_path)
    odd = [{"problem": f"{n} <|im_end|>?", "images": [], "answer": "1"} for n in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*odd, *ROWS * 5]))
    code, output, errors = called("train", DEMO, "--dry-run", "--data.train", "rows.jsonl", "--data.on-bad-row", "skip")
    assert code == 0, errors
    assert "mean of the first 32 problems" in output


def test_a_dry_run_reads_all_of_few_rows_and_says_so(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {"problem": "What is <|im_end|>?", "images": [], "answer": "1"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, odd]))
    words = ["train", DEMO, "--dry-run", "--data.train", "rows.jsonl"]
    code, _, errors = called(*words)
    assert code == 2
    assert "row 40 (counted from 0; rows.jsonl line 41): its text holds <|im_end|>" in errors
    code, output, errors = called(*words, "--data.on-bad-row", "skip")
    assert code == 0, errors
    assert "data              all 40 problems looked at; bad rows skipped: 1 (rows.jsonl)" in output
    assert "passes            19.20 over the data (24 steps of 32 problems)" in output
    assert "mean of all 40 problems" in output
    _, output, _ = called("train", DEMO, "--dry-run", "--train.rollouts", "640")
    assert "data              the first 32 problems looked at, of 2,048 rows (builtin:digits)" in output
    assert "passes            10.00 over the data (640 steps of 32 problems)" in output


def test_a_dry_run_reads_a_folder_of_the_home_folder(called, tmp_path, monkeypatch):
    """It looks like owner/name, and is no dataset of the Hub."""
    (tmp_path / "geo").mkdir()
    (tmp_path / "geo" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "all 40 problems looked at" in called("train", DEMO, "--dry-run", "--data.train", "~/geo")[1]


def test_a_dry_run_shows_the_prompt_that_the_model_reads(called, tmp_path, monkeypatch):
    words = ["train", DEMO, "--dry-run"]
    _, output, _ = called(*words, "--data.system-prompt", "Be brief.")
    shown = output[output.index("# the plain prompt of the first problem (digits-train-0000)") :]
    assert shown.splitlines()[1:8] == [
        "  <|im_start|>system",
        "  Be brief.<|im_end|>",
        "  <|im_start|>user",
        "  <|vision_start|><|image_pad|> x 8<|vision_end|>What is the sum of the two digits? "
        "Think, then box the answer.<|im_end|>",
        "  <|im_start|>assistant",
        f"# its right answer: {digits_problems('train')[0].gold}",
        "",
    ]
    monkeypatch.chdir(tmp_path)
    long = [{**row, "problem": "again " * 600 + row["problem"]} for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    _, output, _ = called(*words, "--data.train", "rows.jsonl", "--data.max-prompt-length", "9999")
    assert " characters ...] " in output
    assert "again What is 0 + 0? Think" in output
    assert output.count("again") < 300


@pytest.mark.parametrize(
    ("words", "missing", "told"),
    [
        (
            ["--rollout.engine", "vllm"],
            "vllm",
            "not installed     rollout.engine: vLLM is not installed; in an environ",
        ),
        (["--rollout.engine", "unsloth", "--model.loader", "unsloth"], "vllm", "rollout.engine: vLLM is not installed"),
        (["--model.loader", "unsloth"], "unsloth", "not installed     model.loader: Unsloth is not installed; in an"),
    ],
)
def test_a_dry_run_on_a_machine_that_only_plans_says_what_is_missing(words, missing, told, called, monkeypatch):
    find, there = importlib.util.find_spec, {"vllm", "unsloth"} - {missing}
    spec = find("json")

    def find_spec(name):
        return None if name == missing else spec if name in there else find(name)

    for place in ("engines.importlib.util", "policy.unsloth"):
        monkeypatch.setattr(f"sharevl_lite.{place}.find_spec", find_spec)
    code, output, errors = called("train", DEMO, "--dry-run", *words)
    assert code == 0, errors
    assert told in output.splitlines()[-1]
    assert output.splitlines()[-1].endswith("here train would stop with this")
    if not torch.cuda.is_available():
        assert ("to sample on the CPU" in output) is (missing == "unsloth")
        assert ("memory            of vLLM not estimated without a GPU" in output) is (missing == "vllm")
    assert "not installed" not in called("train", DEMO, "--dry-run")[1]
    assert "not installed" not in called("train", DEMO, "--dry-run")[1]


def test_a_dry_run_says_that_a_tracker_is_missing(called, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    told = called("train", DEMO, "--dry-run", "--train.report-to", "wandb")[1]
    assert "not installed     train.report_to: wandb is not installed; pip install wandb, or leave it out: here" in told


@pytest.mark.parametrize(
    ("knob", "value", "told"),
    [
        (
            "--model.lora.target-modules",
            "[q_prj]",
            "no linear layer of the text model ends in 'q_prj'; there are",
        ),
        ("--rollout.max-completion-length", "2049", "2,049 tokens, and the model has 2,048 positions for prompt and r"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_and_at_the_start(called, tmp_path, knob, value, told):
    for words in (["--dry-run"], ["--output-dir", str(tmp_path)]):
        code, _, errors = called("train", DEMO, knob, value, *words)
        assert code == 2
        assert f"sharevl-lite: {knob[2:].replace('-', '_')}: {told}" in errors
    assert not list(tmp_path.iterdir())


def test_knobs_outside_of_sections_are_known_to_the_command_line():
    from sharevl_lite.knobs import knobs

    assert {knob.name for knob in knobs() if "." not in knob.name} == {name.replace("_", "-") for name in PLAIN_KNOBS}


def test_a_mistake_shows_no_trace():
    done = sharevl("train", DEMO, "--model.path", "builtin:nothing", "--name", "x9")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_eval_of_a_model_prints_and_saves_figures_that_can_be_compared(called, tmp_path):
    words = [
        "--recipe",
        DEMO,
        "--data",
        "builtin:digits",
        "--samples",
        "2",
        "--eval.problems",
        "8",
        "--resamples",
        "200",
    ]
    code, told, errors = called("eval", "builtin:digits-vl", *words, "--json", "--out", str(tmp_path), "--name", "one")
    assert code == 0, errors
    figures = json.loads(told)
    assert figures["counts"]["responses"] == 8 * 4 * 2
    assert 0.0 < figures["metrics"]["mean@2"]["value"] < 1.0
    assert figures["protocol"]["samples"] == 2
    saved = json.loads((tmp_path / "one.json").read_text())
    assert {**figures, "problems": saved["problems"]} == saved
    compared = sharevl("eval", "--compare", str(tmp_path / "one.json"), str(tmp_path / "one.json"))
    assert compared.returncode == 0, compared.stderr
    assert "1.0000" in compared.stdout
