"""`sharevl-lite doctor` on this machine, as a user calls it."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sharevl_lite import doctor, memory_advice
from sharevl_lite.cli import main
from sharevl_lite.doctor import TESTED, examine
from sharevl_lite.findings import Check
from sharevl_lite.memory_plan import GIB
from sharevl_lite.model_shape import find_config, measure_shape
from sharevl_lite.next_steps import Candidate, candidates, next_steps, recipes_check
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout.serve_command import serve_command

CONFIGS = Path(__file__).parents[1] / "configs"
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def call(capsys):
    """The command in this process, which has torch already."""

    def run(*words):
        capsys.readouterr()
        code = main(["doctor", *map(str, words)])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


def found(checks):
    return {check.name: check for check in checks}


@WITHOUT_GPU
def test_a_machine_without_gpu_runs_the_demo():
    command = [sys.executable, "-m", "sharevl_lite", "doctor", str(CONFIGS / "digits_cpu.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warn gpu: none: training runs on the CPU" in done.stdout
    assert f"ok   torch: {metadata.version('torch')}" in done.stdout
    assert "ok   memory, training:" in done.stdout
    assert " on the CPU" in next(line for line in done.stdout.splitlines() if "memory, sampling" in line)
    counts, *steps = done.stdout.partition("ok   memory, sampling:")[2].splitlines()[1:]
    assert counts.startswith("0 failures, 1 warning, ")
    demo = CONFIGS / "digits_cpu.yaml"
    assert [f"train {demo} --dry-run    " in steps[0], f"train {demo}    trains it" in steps[1]] == [True, True]
    assert steps[0].startswith("next ")
    assert "\x1b" not in done.stdout


@WITHOUT_GPU
def test_a_recipe_for_a_gpu_fails_and_says_what_to_do(call):
    done = call(CONFIGS / "geometry3k_qwen2_5_vl_3b_t4.yaml")
    assert done.returncode == 1
    assert "FAIL gpu: none, and the recipe needs one (model.loader: unsloth, model.load_in_4bit)" in done.stdout
    assert "-> run it on a machine with a CUDA GPU, or set model.loader: hf" in done.stdout
    if doctor.installed_version("unsloth") is None:
        missing = (
            "FAIL unsloth: not installed, and the recipe needs it\n     -> in an environment of its own, pip install "
        )
        assert f"{missing}'sharevl-lite[unsloth]'" in done.stdout


@WITHOUT_GPU
def test_without_a_recipe_it_says_which_ones_run_here_and_what_to_type(call, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    done = call()
    assert done.returncode == 0
    recipes, reasons, counts, *steps = done.stdout.splitlines()[-5:]
    assert recipes == "ok   recipes: 2 of 10 in configs run here: digits_cpu, digits_grpo_cpu"
    assert reasons.startswith("     -> need a GPU: geometry3k_grpo_baseline, ")
    assert counts.startswith("0 failures, 1 warning, ")
    assert " train configs/digits_cpu.yaml    trains the demo's small model" in steps[0]
    assert " doctor configs/geometry3k_grpo_baseline.yaml --memory-gib 24    whether it fits" in steps[1]
    facts = {check["name"]: check["facts"] for check in json.loads(call("--json").stdout)["checks"]}["recipes"]
    assert facts["digits_cpu"] is None
    assert facts["r1_sharevl_qwen2_5_vl_7b"] == "need a GPU"


def test_recipes_of_a_folder_of_one_s_own(monkeypatch, tmp_path):
    """One that does not load is told with the reason; elsewhere than in a checkout there may be none."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("name: mine\nmodel: {path: builtin:digits-vl}\n")
    (tmp_path / "configs" / "odd.yaml").write_text("nmae: odd\n")
    monkeypatch.chdir(tmp_path)
    check = recipes_check(candidates(lambda recipe: None))
    assert (check.status, check.finding) == ("ok", "1 of 2 in configs run here: mine")
    assert check.advice.startswith("does not load (")
    assert check.advice.endswith("odd")
    (tmp_path / "configs" / "mine.yaml").write_text("services: []\n")  # another program's folder
    assert "digits_cpu" in recipes_check(candidates(lambda recipe: None)).finding
    monkeypatch.chdir(tmp_path / "configs")
    monkeypatch.setattr("sharevl_lite.__file__", str(tmp_path / "site-packages" / "sharevl_lite" / "__init__.py"))
    check = recipes_check(candidates(lambda recipe: None))
    assert check.status == "skipped"
    assert "git clone" in check.advice
    (step, _) = next_steps("c", None, [], [], gpu=False, planned=False)
    assert step[0] == "c eval builtin:digits-vl --data builtin:digits --samples 1"


DEMO = Candidate(Path("configs/demo.yaml"), None, demo=True)
LARGE = Candidate(Path("configs/large.yaml"), None)
FAILED = Check("vllm", "failure", "not installed")


@pytest.mark.parametrize(
    ("asked", "checks", "kind", "steps"),
    [
        (None, [], {"gpu": True}, ["c train configs/demo.yaml", "c doctor configs/large.yaml"]),
        (None, [FAILED], {"gpu": True}, [""]),
        ("r.yaml --seed 1", [], {"gpu": True}, ["c train r.yaml --seed 1 --dry-run", "c train r.yaml --seed 1"]),
        ("r.yaml", [], {"gpu": True, "begun": True}, ["c train r.yaml --dry-run", "c train r.yaml --resume auto"]),
        ("r.yaml", [FAILED], {"gpu": True}, [""]),
        ("r.yaml", [FAILED], {"gpu": False}, ["", "c doctor r.yaml --memory-gib 24", "c train configs/demo.yaml"]),
        ("r.yaml", [], {"gpu": False, "planned": True}, ["c train r.yaml"]),
        ("r.yaml", [FAILED], {"gpu": False, "planned": True}, [""]),
    ],
)
def test_the_next_steps_are_those_of_the_situation(asked, checks, kind, steps):
    told = next_steps("c", asked, checks, [DEMO, LARGE], **{"planned": False, **kind})
    assert [command for command, _ in told] == steps
    assert all(meaning for _, meaning in told)


def test_a_run_that_is_there_is_gone_on_with(monkeypatch, tmp_path):
    """Where the demo has run, plain `train` would be refused."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("name: mine\nmodel: {path: builtin:digits-vl}\n")
    monkeypatch.chdir(tmp_path)

    def first() -> str:
        return next_steps("c", None, [], candidates(lambda recipe: None), gpu=True, planned=False)[0][0]

    assert first() == "c train configs/mine.yaml"
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: mine\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n')
    assert first() == "c train configs/mine.yaml --resume auto"


def test_a_plan_is_lowered_where_memory_alone_fails():
    memory = Check("memory, training", "failure", "too much")
    ((_, lower),) = next_steps("c", "r.yaml", [memory], [], gpu=False, planned=True)
    ((_, mend),) = next_steps("c", "r.yaml", [memory, FAILED], [], gpu=False, planned=True)
    assert "larger GPU" in lower
    assert mend == "mend what FAILed: memory, training, vllm"


def test_on_a_gpu_a_recipe_runs_where_its_packages_and_memory_are(monkeypatch):
    card = SimpleNamespace(name="A card", major=9, minor=0, total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    recipe = load_recipe(CONFIGS / "geometry3k_qwen2_5_vl_3b.yaml")
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "vllm" else "1.0")
    assert doctor.hindrance(recipe) == "need vllm"
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.0")
    assert doctor.hindrance(recipe) == "need more GPU memory"
    card.total_memory = 24 * 2**30
    assert doctor.hindrance(recipe) is None


def test_what_another_machine_needs_is_no_failure_of_this_one(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package in doctor.OPTIONAL else "1.0")
    recipe = load_recipe(CONFIGS / "geometry3k_qwen2_5_vl_3b.yaml", {"model.loader": "unsloth"})
    here, elsewhere = (found(doctor._packages(recipe, other)) for other in (False, True))
    for package in ("vllm", "unsloth"):
        assert here[package].status == "failure"
        assert elsewhere[package].status == "warning"
        assert elsewhere[package].finding == "not installed here, and the recipe needs it"
    assert found(doctor.examine(recipe, memory_gib=24))["vllm"].status == "warning"


@WITHOUT_GPU
def test_it_is_said_which_device_a_plan_is_for():
    recipe = load_recipe(CONFIGS / "geometry3k_two_gpus.yaml")
    here, elsewhere = found(examine(recipe)), found(examine(recipe, memory_gib=24))
    assert here["gpu"].advice.endswith("run it on a machine with a CUDA GPU, and plan for that with --memory-gib N")
    assert here["memory, training"].finding.endswith(" on the CPU")
    assert elsewhere["gpu"].finding == "none here; the plan is for one of 24 GiB"
    assert elsewhere["memory, training"].finding.endswith(" of a GPU's 24.0 GiB")


@WITHOUT_GPU
def test_a_gpu_that_torch_cannot_use_is_not_none(tmp_path, monkeypatch):
    """A driver older than torch's CUDA; and an nvidia-smi that finds no GPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 535.104.05\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (check,) = doctor._gpus(None, None)
    assert check.status == "warning"
    told = f"none that torch can use (driver 535.104.05; torch {torch.__version__} is built "
    assert check.finding.startswith(told)
    assert check.advice.startswith("update the driver, or install a torch built for an older CUDA")
    (check,) = doctor._gpus(load_recipe(CONFIGS / "geometry3k_qwen2_5_vl_3b_t4.yaml"), None)
    assert check.status == "failure"
    assert "and the recipe needs one (model.loader: unsloth" in check.finding
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    (check,) = doctor._gpus(None, None)
    assert check.finding == "none: training runs on the CPU"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(doctor, "DRIVER_SECONDS", 0.5)
    (check,) = doctor._gpus(None, None)
    assert check.finding.startswith("none that torch can use (driver that does not answer; ")


def test_a_t4_is_told_and_planned_without_bfloat16(monkeypatch):
    """torch says that it supports bfloat16, which it emulates."""
    card = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (14 * 2**30, 15 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    small = {"model.path": "Qwen/Qwen2.5-VL-3B-Instruct", "model.dtype": "auto"}
    checks = found(examine(load_recipe(CONFIGS / "digits_cpu.yaml", small)))
    assert checks["gpu 0"].finding.startswith("Tesla T4, sm 7.5, float16 only (no bfloat16)")
    parts = checks["memory, training"].facts["parts"]
    assert parts["weights"] == 4 * 3_754_622_976
    assert parts["head"] > 2**30
    server = load_recipe(CONFIGS / "digits_cpu.yaml", {"model.dtype": "auto"})
    assert "--dtype float32 " in serve_command(server)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),  # for 8.0 and later ones of its generation
        ((6, 0), ["sm_75", "sm_80", "compute_120"], False),
        ((7, 0), ["sm_75"], False),
        ((10, 0), ["sm_90"], False),
        ((10, 0), ["sm_90", "compute_90"], True),
        ((10, 0), ["sm_100a"], True),
        ((6, 0), [], True),
    ],
)
def test_a_card_needs_a_torch_that_was_built_for_it(capability, built, runs):
    assert doctor.runs_on(capability, built) is runs


def test_a_card_that_this_torch_was_not_built_for_is_a_failure(monkeypatch):
    card = SimpleNamespace(name="Tesla P100", major=6, minor=0, total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (15 * 2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    *_, check = doctor._gpus(None, None)
    assert check.status == "failure"
    assert "sm 6.0; torch" in check.finding
    assert check.finding.endswith("is built for sm_75, sm_80 alone")


def test_json_is_one_object_with_everything(call):
    done = call(CONFIGS / "digits_cpu.yaml", "--memory-gib", 16, "--json")
    answer = json.loads(done.stdout)
    checks = {check["name"]: check for check in answer["checks"]}
    assert answer["failures"] == sum(check["status"] == "failure" for check in checks.values())
    assert checks["torch"]["facts"]["version"] == metadata.version("torch")
    assert checks["memory, training"]["facts"]["card"] == 16 * 2**30
    assert sum(checks["memory, training"]["facts"]["parts"].values()) > 0
    assert done.returncode == int(answer["failures"] > 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        ([CONFIGS / "digits_cpu.yaml", "--train.rollout", "3"], "train.rollout"),
        (["--train.rollouts=3"], "knobs need a recipe"),
        ([CONFIGS / "digits_cpu.yaml", "--memory-gib", "-1"], "--memory-gib -1.0"),
    ],
)
def test_mistakes_are_exit_code_2(call, words, message):
    done = call(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hub_token_is_seen_and_never_shown(call, monkeypatch):
    secret = "hf_" + "s3cret" * 5
    monkeypatch.setenv("HF_TOKEN", secret)
    done = call("--json")
    assert "a token is set" in done.stdout
    assert secret not in done.stdout + done.stderr


def test_uploads_need_a_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    recipe = load_recipe(CONFIGS / "digits_cpu.yaml", {"train.push_to_hub": True, "train.hub_model_id": "a/b"})
    assert found(examine(recipe))["hub"].status == "failure"
    assert found(examine(None))["hub"].status == "ok"


def test_versions_that_were_not_tested_are_named(monkeypatch):
    honest = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: "9.9.9" if name == "peft" else honest(name))
    check = found(examine(None))["peft"]
    assert (check.status, check.finding) == ("warning", "9.9.9")
    assert check.advice.startswith(f"tested with {TESTED['peft'][0]}")


def test_unsloth_is_asked_in_a_process_of_its_own(monkeypatch, tmp_path):
    """One that lacks a function, one that does not start, and one that has all."""
    package = tmp_path / "unsloth"
    package.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(doctor, "installed_version", lambda name: "2026.10.9")
    recipe = load_recipe(CONFIGS / "digits_cpu.yaml", {"model.loader": "unsloth"})
    whole = "class FastVisionModel:\n" + "".join(f"    def {name}(): ...\n" for name in doctor.UNSLOTH_SURFACE)
    for source, status, told in (
        (whole, "ok", "for_training"),
        (whole.replace("for_training", "train_it"), "failure", "missing: for_training"),
        (
            "raise NotImplementedError('You need a GPU.')\n",
            "failure",
            "it does not start here (NotImplementedError: You",
        ),
    ):
        (package / "__init__.py").write_text(source)
        check = doctor._unsloth(recipe)
        assert check.status == status, check
        assert told in check.finding
    assert "unsloth" not in sys.modules
    # Shared weights: which versions of both were seen to compute the same.
    (package / "__init__.py").write_text(whole)
    recipe = load_recipe(CONFIGS / "digits_cpu.yaml", {"model.loader": "unsloth", "rollout.engine": "unsloth"})
    for vllm, status in (("0.31.0", "ok"), ("0.25.1", "warning")):
        versions = {"unsloth": "2026.10.9", "vllm": vllm}
        monkeypatch.setattr(doctor, "installed_version", versions.get)
        assert doctor._unsloth(recipe).status == status
    assert "watch sampler_gap in the first step" in doctor._unsloth(recipe).advice


def test_a_folder_that_cannot_hold_a_run(monkeypatch, tmp_path):
    recipe = load_recipe(CONFIGS / "digits_cpu.yaml", {"output_dir": str(tmp_path / "new" / "runs")})
    assert found(examine(recipe))["disk"].status == "ok"
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**60)
    assert found(examine(recipe))["disk"].status == "failure"


@pytest.mark.parametrize(
    ("gib", "knob"), [(18, "rollout.vllm_gpu_memory_utilization"), (30, "model.gradient_checkpointing")]
)
def test_memory_that_does_not_suffice_comes_with_advice(gib, knob):
    changes = {"model.path": "Qwen/Qwen2.5-VL-3B-Instruct", "model.dtype": "bfloat16", "rollout.engine": "vllm"}
    recipe = load_recipe(CONFIGS / "digits_cpu.yaml", changes | {"train.token_budget": 16384})
    checks = found(examine(recipe, memory_gib=gib))
    assert checks["memory, training"].status == "failure"
    assert any(knob in check.advice for check in checks.values()), checks


@pytest.mark.parametrize(("gib", "status"), [(22, "warning"), (32, "ok")])
def test_how_many_responses_vllm_samples_at_once(gib, status):
    check = found(examine(load_recipe(CONFIGS / "geometry3k_qwen3_vl_4b.yaml"), memory_gib=gib))["memory, vLLM"]
    assert check.status == status
    # 144 KiB a token: 0.55 of the card, without 8.27 GiB of weights and 1 to work in, over 432 MiB a sequence.
    count = int((0.55 * gib - 8.27 - 1.0) * 1024 / 432)
    assert check.finding == f"room for at most {count} of 96 responses of full length (3,072 tokens) at once"
    assert ("sampling will be slow" in check.advice) is (status == "warning")


@pytest.mark.parametrize(
    ("recipe", "gib", "share", "advice"),
    [
        ("r1_sharevl_qwen2_5_vl_7b", 8, 0.5, "no share of this GPU is enough"),  # 2.10 of it
        ("geometry3k_qwen2_5_vl_3b", 16, 0.45, "no share of this GPU is enough"),  # 0.51, and 8.9 GiB beside it
        ("geometry3k_qwen2_5_vl_3b", 24, 0.3, "set rollout.vllm_gpu_memory_utilization to 0.34 or more"),
    ],
)
def test_vllm_is_given_no_share_that_does_not_fit(recipe, gib, share, advice):
    changes = {"rollout.vllm_gpu_memory_utilization": share}
    check = found(examine(load_recipe(CONFIGS / f"{recipe}.yaml", changes), memory_gib=gib))["memory, vLLM"]
    assert check.status == "failure"
    assert check.advice.startswith(advice)


def test_a_machine_without_the_memory_for_a_sleeping_vllm_and_a_rollouts_pictures_is_told(monkeypatch):
    """Linux ends such a run without a word."""
    recipe = load_recipe(CONFIGS / "r1_sharevl_qwen2_5_vl_7b.yaml")
    planned = found(examine(recipe, memory_gib=80))["memory of the machine"]
    assert planned.status == "ok"
    # 512 problems in 2 variants, each with a prompt of image tokens: 4 patches of 3 x 2 x 14 x 14 numbers in bfloat16.
    pictures = 1024 * recipe.data.max_prompt_length * 4 * 1176 * 2
    assert planned.facts["parts"]["pictures of a rollout"] == pictures
    assert planned.facts["parts"]["vLLM's weights, asleep"] == pytest.approx(15.4 * GIB, rel=0.01)
    config, _ = find_config(recipe.model.path)
    needed = sum(planned.facts["parts"].values())
    for memory, status in ((needed, "warning"), (2 * needed, "ok")):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.get)
        check = memory_advice._host_check(recipe, config, measure_shape(config), half=True, here=True)
        assert check.status == status
        assert ("lower train.problems_per_rollout" in check.advice) is (status == "warning")


def test_room_for_activations_is_pointed_out():
    checks = found(examine(load_recipe(CONFIGS / "geometry3k_qwen2_5_vl_3b.yaml"), memory_gib=24))
    assert checks["memory, room"].status == "ok"
    assert checks["memory, room"].advice == "set model.checkpointing_layers: 32"
    assert "memory, room" not in found(examine(load_recipe(CONFIGS / "digits_cpu.yaml"), memory_gib=24))


@pytest.mark.parametrize(("vllm", "status"), [("0.27.1", "skipped"), ("0.31.0", "failure")])
def test_newer_vllm_needs_a_plug_in_for_four_bits(monkeypatch, vllm, status):
    recipe = load_recipe(CONFIGS / "geometry3k_qwen2_5_vl_3b_t4.yaml", {"rollout.engine": "vllm"})
    monkeypatch.setattr(doctor, "installed_version", {"vllm": vllm}.get)
    found = {check.name: check.status for check in doctor._packages(recipe, False)}
    assert found["vllm-bnb-plugin"] == status
