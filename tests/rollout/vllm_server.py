"""The real vLLM server on loopback, started by the command that the project offers to users."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from sharevl_lite.rollout.serve_command import serve_command

# A prompt read in pieces winds its request's random numbers back, which vLLM 0.31 cannot do on a CPU.
ON_A_CPU = ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
START_SECONDS = 400


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class VLLMServer:
    """A server for a recipe; its recipe's `server_urls` names it. Its output goes to `log`."""

    def __init__(self, recipe, log):
        words = shlex.split(serve_command(recipe, max_images=1))
        place = words.index("vllm")
        own = dict(word.split("=", 1) for word in words[:place])
        self.environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        self.environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        self.command = [
            sys.executable,
            str(Path(__file__).with_name("vllm_command.py")),
            *words[place + 1 :],
            *ON_A_CPU,
        ]
        self.url = recipe.rollout.server_urls[0]
        self.log = log
        self.process = None

    def launch(self):
        """Starts the process and returns at once."""
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self):
        """Returns when the server is up."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if httpx.get(self.url.removesuffix("/v1") + "/health", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-4000:])

    def kill(self):
        """As a crash would: all its processes, without a word."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
