"""Opening pages of the explorer, and starting it as a user does."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

from sharevl_lite.store import read


def opened(page, address, query="", ready=".content section"):
    page.goto(address + query)
    page.wait_for_selector(f"#sharevl {ready}")


def first_problem(run, step=1):
    return read(run, steps=[step])["problem_id"][0].as_py()


@contextmanager
def started(*words, **environment):
    """The command in a process of its own; gives its address and a function that ends it and returns its output."""
    command = [sys.executable, "-u", "-m", "sharevl_lite", "view", *map(str, words)]
    changed = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=changed) as process:
        said, ready = [], threading.Event()

        def listen():
            for line in process.stdout:
                said.append(line)
                if "Running on local URL" in line or "error" in line.lower():
                    ready.set()
            ready.set()

        listener = threading.Thread(target=listen)
        listener.start()

        def finish():
            process.terminate()
            listener.join(30)
            return "".join(said)

        try:
            assert ready.wait(60)
            found = re.search(r"Running on local URL:\s+http://[^:]+:(\d+)", "".join(said))
            assert found, "".join(said)
            yield f"http://127.0.0.1:{found[1]}/", finish
        finally:
            process.kill()
