"""The wheel holds what a run needs and nothing else; the source distribution holds the whole repository."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns, which

import pytest

ROOT = Path(__file__).parents[1]
OUTPUTS = ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves files in its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copytree(ROOT, folder / "source", ignore=OUTPUTS)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "-w", str(folder / "dist")], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("sharevl_lite-*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def names(wheel):
    return set(wheel.namelist())


def modules(folder, root):
    return {path.relative_to(root).as_posix() for path in folder.rglob("*.py")}


def test_every_module_is_in_it_and_no_other(names):
    """The list of packages in pyproject.toml is kept by hand."""
    expected = modules(ROOT / "sharevl_lite", ROOT) | modules(ROOT / "kernels" / "sharevl_kernels", ROOT / "kernels")
    expected |= modules(ROOT / "apps" / "explorer" / "sharevl_explorer", ROOT / "apps" / "explorer")
    assert {name for name in names if name.endswith(".py")} == expected
    assert {"sharevl_kernels/grouped_logprob/op.py", "sharevl_explorer/app.py"} <= expected
    assert {"sharevl_explorer/assets/explorer.js", "sharevl_explorer/assets/style.css"} <= names


def test_no_tests_and_no_outputs(names):
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "sharevl_lite",
        "sharevl_kernels",
        "sharevl_explorer",
    }
    assert not [name for name in names if "test" in name or "benchmark" in name or name.endswith((".pyc", ".ipynb"))]


def test_the_shipped_model_and_the_types_are_in_it(wheel, names):
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sharevl_lite" / "assets").rglob("*.*")}
    assert "sharevl_lite/assets/digits-vl/model.safetensors" in assets
    assert assets | {"sharevl_lite/py.typed"} <= names
    for name in assets:
        assert wheel.read(name) == (ROOT / name).read_bytes()


def test_it_says_what_it_is(wheel, names):
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert "sharevl-lite = sharevl_lite.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: sharevl-lite\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in names


def test_what_is_in_it_works_by_itself(wheel, tmp_path):
    """Unpacked elsewhere and imported from there, it dry-runs a recipe on the model and the data that it ships."""
    wheel.extractall(tmp_path / "site")
    (tmp_path / "recipe.yaml").write_text("model: {path: builtin:digits-vl}\ndata: {train: builtin:digits}\n")
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "import sharevl_lite, sharevl_kernels.grouped_logprob as kernel\n"
        "print(sharevl_lite.__file__, kernel.__file__)\n"
        "from sharevl_lite.cli import main\n"
        "sys.exit(main(['train', 'recipe.yaml', '--dry-run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.split() == [
        str(tmp_path / "site" / "sharevl_lite" / "__init__.py"),
        str(tmp_path / "site" / "sharevl_kernels" / "grouped_logprob" / "__init__.py"),
    ]
    assert "memory (estimate)" in done.stdout
    assert "mean of the first 32 problems" in done.stdout


@pytest.mark.skipif(which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_source_distribution_is_the_repository(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    for name in tracked:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / "clone" / name)
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "clone", capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = tmp_path.glob("sharevl_lite-*.tar.gz")
    with tarfile.open(built) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - made == tracked
