"""`eval --suite` against a loopback server: the adapter is served while the harness runs, and both rows are printed.

In the place of lmms-eval stands a program that notes how it was called and leaves the recorded files; the harness
itself was run for these, see tests/evaluation/test_lmms_tasks.py.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sharevl_lite.cli import main
from sharevl_lite.policy.hf import save_adapter
from sharevl_lite.recipes import dump_recipe, load_recipe

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
RECORDED = Path(__file__).parents[1] / "evaluation" / "recorded"
STAND_IN = """#!{python}
import json, os, shutil, sys, urllib.request
words = sys.argv[1:]
if words == ["version"]:
    print("lmms-eval 0.7.3")
    raise SystemExit
given = dict(zip(words[::2], words[1::2]))
args = dict(pair.split("=", 1) for pair in given["--model_args"].split(","))
models = json.load(urllib.request.urlopen(args["base_url"] + "/models"))["data"]
said = {{"args": args, "models": [card["id"] for card in models], "key": os.environ["OPENAI_API_KEY"],
        "judge": os.environ["USE_LLM_JUDGE"], "prompt": json.load(open(os.environ["SHAREVL_PROMPT"]))}}
json.dump(said, open({note!r}, "w"))
if {fails}:
    print("it failed, and says 0")
    raise SystemExit
shutil.copytree({recorded!r}, given["--output_path"])
"""


@pytest.fixture
def run_dir(policy, tmp_path):
    run = tmp_path / "mine"
    save_adapter(policy, run / "adapter")
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(DEMO, {"name": "mine", "output_dir": str(tmp_path)})))
    return run


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """`harness(fails=False)`: puts the stand-in on the PATH; returns the file of its note."""

    def make(*, fails=False):
        note, program = tmp_path / "note.json", tmp_path / "bin" / "lmms-eval"
        program.parent.mkdir()
        text = STAND_IN.format(python=sys.executable, note=str(note), recorded=str(RECORDED), fails=fails)
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        return note

    return make


def test_both_rows_with_protocol_and_sources(app, url, run_dir, harness, capsys, monkeypatch):
    note = harness()
    assert main(["eval", str(run_dir), "--suite", "mathvista,ai2d", "--server-url", url, "--resamples", "200"]) == 0
    said = json.loads(note.read_text())
    (adapter,) = [name for name in said["models"] if name.startswith("adapter-")]
    assert said["args"]["model"] == adapter, "the adapter was there while the harness ran"
    assert app.adapters == {}, "and is taken back"
    assert (said["key"], said["judge"]) == ("EMPTY", "False")
    assert said["prompt"] == {"template": "{problem} Think, then box the answer.", "system": None}

    place = run_dir / "eval" / "adapter-suite"
    written = json.loads(place.with_suffix(".json").read_text())
    assert written["metrics"]["mathvista"]["value"] == pytest.approx(2 / 3)
    assert written["published"]["mathvista"]["percent"] == 75.4
    assert "2603.01106" in written["published"]["mathvista"]["source"]
    assert written["published"]["ai2d"]["percent"] is None
    protocol = written["protocol"]
    assert (protocol["temperature"], protocol["harness_version"], protocol["served_as"]) == (0.0, "0.7.3", adapter)
    assert protocol["requests_failed"] == 1
    for rule in ("else a number at the end of a line", "letters are picked out of prose"):
        assert rule in protocol["scoring"], "lmms-eval accepts more than tags and boxes"
    told = place.with_suffix(".md").read_text()
    assert "| mathvista | 66.7% |" in told
    assert "75.4%" in told
    assert "- R1-ShareVL-7B on mathvista: the authors' figure as quoted by" in told
    assert "1 requests failed" in told
    shown = capsys.readouterr().out
    assert "R1-ShareVL-7B" in shown
    assert "not verified" in shown

    again = shutil.copy(place.with_suffix(".json"), place.with_name("again.json"))
    assert main(["eval", "--compare", str(place.with_suffix(".json")), str(again)]) == 0
    assert "mean@1 [mathvista]" in capsys.readouterr().out


def test_a_harness_that_fails_and_says_0_is_an_error(app, url, run_dir, harness, capsys):
    harness(fails=True)
    assert main(["eval", str(run_dir), "--suite", "mathvista", "--server-url", url]) == 2
    assert "wrote no results" in capsys.readouterr().err
    assert app.adapters == {}
    assert not list((run_dir / "eval").iterdir()), "and leaves nothing that takes a name or looks like a result"


def test_a_base_models_name_that_the_harness_would_sample_is_refused_first(app, url, harness, tmp_path, capsys):
    """lmms-eval drops temperature and length for it: the figures would not be of the protocol."""
    note, app.cards[0]["id"] = harness(), "geo3k"
    words = ["eval", "builtin:digits-vl", "--recipe", str(DEMO), "--suite", "ai2d", "--server-url", url]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "'o3' is in it" in capsys.readouterr().err
    assert not note.exists()
    assert main([*words, "--rollout.server_model", "gpt-5", "--print-command"]) == 2
    assert "--served-model-name base" in capsys.readouterr().err


def test_a_base_model_is_asked_for_by_the_servers_name(app, url, harness, tmp_path):
    note = harness()
    words = ["eval", "builtin:digits-vl", "--recipe", str(DEMO), "--suite", "ai2d", "--server-url", url]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(note.read_text())["args"]["model"] == app.cards[0]["id"]
    assert (tmp_path / "out" / "base-suite.json").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--suite", "ai2d"], "--server-url URL"),
        (["--suite", "ai2d", "--engine", "hf"], "asks a vLLM server, not --engine hf"),
        (
            ["--suite", "ai2d", "--server-url", "http://127.0.0.1:9/v1", "--rollout.server-retries", "0"],
            "cannot be reached",
        ),
        (["--suite", "ai2d", "--server-url", "http://a/v1", "--server-url", "http://b/v1"], "one --server-url"),
        (["--suite", "ai2d", "--data", "builtin:digits"], "takes no --data"),
        (["--suite", "ai2d", "--limit", "0", "--server-url", "http://a/v1"], "--limit 0"),
        (["--limit", "3"], "belong to --suite"),
    ],
)
def test_mistakes_are_one_message_and_code_2(words, told, run_dir, harness, capsys):
    harness()
    assert main(["eval", str(run_dir), *words]) == 2
    assert told in capsys.readouterr().err


def test_an_address_of_something_else_is_one_message_and_code_2(app, url, run_dir, harness, capsys):
    harness()
    app.models_answers = [(404, "another program")]
    assert main(["eval", str(run_dir), "--suite", "ai2d", "--server-url", url]) == 2
    assert f"{url} answers /v1/models with 404; it is no vLLM server" in capsys.readouterr().err


def test_the_command_is_printed_without_harness_or_server(run_dir, capsys):
    words = ["--suite", "mmmu", "--server-url", "http://127.0.0.1:9/v1", "--print-command"]
    assert main(["eval", str(run_dir), *words]) == 0
    prompt, adapter, line = capsys.readouterr().out.splitlines()
    assert json.loads(prompt.removeprefix("# prompt.json holds "))["template"].startswith("{problem} Think")
    name = adapter.rpartition(" as ")[2].split()[0]
    assert name.startswith("adapter-")
    assert f"--model_args model={name}," in line
    assert "--tasks sharevl_mmmu" in line
    assert not (run_dir / "eval").exists()
