"""A start of the command line looks for no garbage while it imports; a process that is under way is left alone."""

import gc
import subprocess
import sys

import pytest

from sharevl_lite.heavy_imports import without_collecting

FRESH = """
import gc
from sharevl_lite.heavy_imports import without_collecting

try:
    with without_collecting():
        print(gc.isenabled())
        kept = [[] for _ in range(1000)]
        raise ImportError
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
gc.disable()
with without_collecting():
    pass
print(gc.isenabled())
"""


def test_what_is_imported_first_is_not_looked_through():
    """Whether the import succeeds or not; a collector that somebody switched off stays off."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "False"]


@pytest.mark.parametrize("module", ["torch", "gradio"])
def test_a_process_that_has_such_a_module_keeps_its_collector(module, monkeypatch):
    monkeypatch.setattr("sharevl_lite.heavy_imports._HEAVY", (module,))
    monkeypatch.setitem(sys.modules, module, sys.modules.get(module) or sys)
    frozen = gc.get_freeze_count()
    with without_collecting():
        assert gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
