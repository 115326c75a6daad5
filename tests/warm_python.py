"""Python processes that begin with torch, transformers and this package imported: forks of one that waits for orders.

A fresh interpreter takes ten seconds of a core for these imports. A fork is a process of its own all the same: it is
killed, interrupted and told an environment alike. What libraries read from the environment while they are imported (the
Hub's address, the number of threads) is that of the test process: tests of those start a fresh interpreter.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "sharevl_lite.cli",
        "sharevl_lite.run",
        "sharevl_lite.trainer",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    ]
)


class WarmPython:
    """`python -m MODULE WORDS` as `subprocess.Popen` would run it, with both outputs as text in files."""

    def __init__(self, module, words, environment):
        self._outputs = Path(tempfile.mkdtemp())
        order = [module, *words], environment, str(self._outputs)
        self._process = _FORKS.Process(target=_obey, args=order)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a warm Python", timeout)
        return self.poll()

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.read("out"), self.read("err")

    def read(self, name):
        """What it has written so far, to `out` or `err`."""
        path = self._outputs / name
        return path.read_text() if path.exists() else ""

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(self.pid, number)

    def close(self):
        """Ends it if it runs; forgets what it wrote."""
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._outputs)


def _obey(words, environment, outputs):
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        written = os.open(os.path.join(outputs, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(written, number)
        os.close(written)
    sys.argv = words
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()  # a fork of multiprocessing leaves without
    sys.exit(code)
