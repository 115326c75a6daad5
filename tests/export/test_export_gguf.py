"""GGUF files through a converter, and what is found out about them afterwards."""

import shutil
from pathlib import Path

import gguf as package
import pytest

from sharevl_lite.export import gguf
from sharevl_lite.export.adapter import read_adapter
from sharevl_lite.export.base import find_base
from sharevl_lite.export.errors import ExportError

STANDIN = Path(__file__).with_name("llama_cpp_standin.py")


@pytest.fixture
def converter(tmp_path, monkeypatch):
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    shutil.copy(STANDIN, folder / gguf.CONVERTER)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(folder))


@pytest.mark.parametrize("kind", ["auto", "q8_0"])
def test_language_model_and_vision_tower(run, export, converter, tmp_path, kind):
    out = tmp_path / "digits"
    said = export(run, out, "--format", "gguf", "--gguf-type", kind)
    assert {path.name for path in out.iterdir()} == {"digits.gguf", "mmproj-digits.gguf", "README.md"}
    assert "the adapted weights of the language model are the merged ones; not run in llama.cpp" in said
    assert "llama-server -m digits.gguf --mmproj mmproj-digits.gguf" in said
    assert "llama-server -m digits.gguf --mmproj mmproj-digits.gguf" in (out / "README.md").read_text()
    assert len(package.GGUFReader(str(out / "digits.gguf")).tensors) == 51
    assert len(package.GGUFReader(str(out / "mmproj-digits.gguf")).tensors) == 42


@pytest.mark.parametrize(
    ("sabotage", "told"),
    [
        ("other", "digits.gguf's blk.2.ffn_up.weight (F16) is not the merged model.layers.2.mlp.up_proj.weight"),
        ("lacks", "digits.gguf lacks model.layers.3.self_attn.q_proj.weight"),
        ("torn", "digits.gguf is not a GGUF file"),
        ("silent", "ended well and wrote no digits.gguf"),
        ("fails", "failed with code 1:\nthe model is of no known kind"),
        ("needs", "It runs in this Python: pip install a_module_that_nobody_has"),
    ],
)
def test_a_conversion_gone_wrong(exported, small_run, converter, tmp_path, monkeypatch, sabotage, told):
    monkeypatch.setenv("SABOTAGE", sabotage)
    adapted = read_adapter(small_run / "adapter", find_base("builtin:digits-vl"))
    with pytest.raises(ExportError) as error:
        convert_and_check(exported, tmp_path, adapted)
    assert told in str(error.value)


def convert_and_check(exported, folder, adapted):
    gguf.convert(gguf.find_converter(), exported, folder, "digits", "auto")
    return gguf.check_gguf(folder, exported, adapted)


def test_without_the_package_only_the_files_are_counted(exported, converter, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    said = convert_and_check(exported, tmp_path, ())
    assert "digits.gguf 51 tensors" in said
    assert "their contents were not compared (pip install gguf compares them), nor run in llama.cpp" in said


def test_without_llama_cpp_it_is_said_where_it_comes_from(run, export, tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = export(run, tmp_path / "out", "--format", "gguf", code=2)
    assert (
        "git clone https://github.com/ggml-org/llama.cpp, pip install gguf sentencepiece, and set LLAMA_CPP_DIR" in said
    )
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    assert f"LLAMA_CPP_DIR is {tmp_path}, and there is no convert_hf_to_gguf.py in it" in export(
        run, tmp_path / "out", "--format", "gguf", code=2
    )
