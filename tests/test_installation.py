"""What is pinned fits what is promised."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sharevl_lite.doctor import TESTED

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_pinned_versions_install_on_the_oldest_python():
    """Of those that are installed here; the others cannot be asked without an index."""
    oldest = Version(PROJECT["requires-python"].removeprefix(">=") + ".0")
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    here = {(found.metadata["Name"].lower(), found.version): found for found in metadata.distributions()}
    asked = [found for name, version in pins if (found := here.get((name.lower(), version)))]
    assert len(asked) > 100
    wants = {found.metadata["Name"]: found.metadata["Requires-Python"] or "" for found in asked}
    assert [name for name, python in wants.items() if oldest not in SpecifierSet(python)] == []


def test_what_was_tested_may_be_installed():
    ranges = {found.name: found.specifier for found in map(Requirement, PROJECT["dependencies"])}
    tested = [(name, version) for name, versions in TESTED.items() if name in ranges for version in versions]
    assert {"torch", "transformers", "trl"} <= {name for name, _ in tested}
    assert [f"{name} {version}" for name, version in tested if version not in ranges[name]] == []


def test_doctor_does_not_warn_of_what_is_pinned():
    extras = [Requirement(line) for extra in ("unsloth", "gpu") for line in PROJECT["optional-dependencies"][extra]]
    pins = {f"{found.name}{found.specifier}" for found in extras if str(found.specifier).startswith("==")}
    assert len(pins) > 8
    pins |= set((ROOT / "constraints.txt").read_text().splitlines())
    names = {pin.split("==")[0] for pin in pins} & TESTED.keys()
    assert {"torch", "trl", "vllm", "unsloth"} <= names
    known = {f"{name}=={version}" for name in names for version in TESTED[name]}
    assert {pin for pin in pins if pin.split("==")[0] in names and TESTED[pin.split("==")[0]]} <= known
