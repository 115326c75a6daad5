"""Problems with several images, and every form of an image cell, through the command and back."""

import base64
import io
import json
from pathlib import Path

import pytest
from chat_server import serve_chat
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from test_variants_command import endpoint, manifest, run

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.data.images import ImageReader, shown_images

COLOURS = ("red", "green", "blue")
QUESTION = "<image>Is the bar of <image> taller than the bar of <image>?"


def png(colour):
    file = io.BytesIO()
    Pictures.new("RGB", (30, 20), colour).save(file, "PNG")
    return file.getvalue()


def write(folder, form):
    """One problem of three images, their cells in this form."""
    cells = []
    for number, colour in enumerate(COLOURS):
        (folder / f"{number}.png").write_bytes(png(colour))
        cells.append(
            {
                "pixels": Pictures.new("RGB", (30, 20), colour),
                "path": f"{number}.png",
                "bytes": png(colour),
                "struct": {"bytes": png(colour), "path": None},
                "struct of a path": {"bytes": None, "path": f"{number}.png"},
            }[form]
        )
    if form == "path":
        row = {"problem": QUESTION, "images": cells, "answer": "no"}
        (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
        return folder / "p.jsonl"
    columns = {"problem": [QUESTION], "images": [cells], "answer": ["no"]}
    features = None
    if form == "pixels":
        features = Features({"problem": Value("string"), "images": List(Image()), "answer": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "p.parquet")
    return folder / "p.parquet"


def same_pictures(problem):
    return [picture.getpixel((0, 0)) for picture in problem.images] == [
        Pictures.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS
    ]


@pytest.mark.parametrize("form", ["pixels", "path", "bytes", "struct", "struct of a path"])
def test_every_form_of_an_image_cell_comes_back_with_its_rewrites(form, tmp_path):
    source = write(tmp_path, form)
    run(source, "--out", tmp_path / "out")
    (problem,) = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert same_pictures(problem)
    assert [picture.size for picture in problem.images] == [(30, 20)] * 3
    assert problem.text == QUESTION
    assert problem.variants
    assert all(text.count("<image>") == 3 for text in problem.variants)


def test_a_model_sees_all_images_and_its_rewrites_keep_every_placeholder(tmp_path):
    """The first placeholder leads, the others stand in the question: the model writes only the latter."""
    said = [
        "Does the bar of [image] stand taller than the bar of [image]?",
        "Is the bar of [image] a taller one than the bar?",
    ]
    with serve_chat(lambda number, body: (200, {}, json.dumps(said), 0.0)) as server:
        run(*endpoint(write(Path(tmp_path), "struct"), tmp_path / "out", server))
        parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 3 + ["text"]
    assert "Is the bar of [image] taller than the bar of [image]?" in parts[3]["text"]
    (problem,) = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert problem.variants == ("<image>Does the bar of <image> stand taller than the bar of <image>?",)
    assert manifest(tmp_path / "out")["rejected_by"] == {"placeholders": 1}


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Pictures.Exif()
    exif[0x0112] = 6
    return exif


INK = Pictures.new("RGBA", (30, 20), (0, 0, 0, 0))
GRADIENT = Pictures.linear_gradient("L").resize((30, 20)).convert("RGB")
TO_CHANGE = {
    "transparent": saved(INK),
    "transparent palette": saved(INK.convert("P")),
    "one colour is transparent": saved(GRADIENT, transparency=GRADIENT.getpixel((0, 0))),
    "turned": saved(GRADIENT, "JPEG", exif=turned()),
    "turned png": saved(GRADIENT, exif=turned()),
    "moving": saved(GRADIENT, save_all=True, append_images=[INK.convert("RGB")]),
    "print colours": saved(GRADIENT.convert("CMYK"), "JPEG"),
    "gif": saved(GRADIENT, "GIF"),
}
AS_IT_IS = {
    "png": saved(GRADIENT),
    "grey": saved(GRADIENT.convert("L")),
    "palette": saved(GRADIENT.convert("P")),
    "opaque": saved(GRADIENT.convert("RGBA")),
    "jpeg": saved(GRADIENT, "JPEG"),
}


@pytest.mark.parametrize("name", [*TO_CHANGE, *AS_IT_IS])
def test_a_model_is_shown_the_pixels_that_training_sees(name):
    """Whatever reads the file. What leaves nothing to a reader goes as it is: caches know its replies by its bytes."""
    data = {**TO_CHANGE, **AS_IT_IS}[name]
    images = ImageReader().read(data, None)
    (shown,) = shown_images(images)
    assert (shown == data) == (name in AS_IT_IS)
    with Pictures.open(io.BytesIO(shown)) as read:
        assert read.mode == "RGB" or name in AS_IT_IS
        assert read.convert("RGB").tobytes() == images[0].tobytes()
        assert read.size == images[0].size


def test_rewriter_and_solver_see_black_ink_on_white(tmp_path):
    (tmp_path / "0.png").write_bytes(TO_CHANGE["transparent"])
    row = {"problem": "What is the sum of the two digits?", "images": ["0.png"], "answer": "3"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    said = json.dumps(["Find the sum of the two digits."])
    with serve_chat(lambda number, body: (200, {}, said, 0.0)) as server:
        checked = ("--check-with", "openai", "--check-samples", 1)
        run(*endpoint(tmp_path / "p.jsonl", tmp_path / "out", server, *checked))
        sent = [part["image_url"]["url"] for body in server.bodies for part in body["messages"][0]["content"][:1]]
    assert len(sent) == 3  # to rewrite, and to solve either text
    for address in sent:
        picture = Pictures.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    (problem,) = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert problem.images.encoded == (TO_CHANGE["transparent"],)
