"""The recipe's section on sampling: which engine, how, and what becomes of problems without a signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sharevl_lite.config_base import Count, Positive, Section


def _url_fault(url: str) -> str | None:
    """What is wrong with a server's base URL; a fault that may show a password does not repeat the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"{url!r} is not a URL ({error})"
    if parts.username is not None or parts.password is not None:
        return "leave user and password out of the URL; a server's key is read from VLLM_API_KEY"
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.query or parts.fragment:
        return f"{url!r} is not the URL of a server; write it like http://localhost:8000/v1"
    return None


class RolloutSection(Section):
    """How responses are sampled."""

    engine: Literal["hf", "vllm", "unsloth", "server"] = "hf"
    """`hf`: transformers' generate, on any device. `vllm`: vLLM in the same process (the extra [gpu]). `unsloth`: the
    same vLLM sharing the weights of `model.loader: unsloth`. `server`: vLLM servers on other GPUs or machines;
    `--dry-run` prints the command that starts one."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probs are of the same tempered distribution (paper: 1.0)."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; below 1 the sampled distribution is no longer the one that is trained."""
    max_completion_length: Count = 2048
    """Longest response in tokens (paper: 2048); a longer one is cut and flagged as truncated."""
    batch_size: Count = 64
    """Responses sampled at a time: with `hf` and `vllm` one that has ended makes room for the next, with `server` they
    are the requests of one process under way."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.35
    """Share of the GPU's memory for vLLM's weights and cache while it samples; it gives it back for the update. (On a
    CPU: a share of the machine's memory, which it keeps.)"""
    vllm_enforce_eager: bool = False
    """Run vLLM without CUDA graphs: a quicker start, slower sampling, less memory."""
    server_urls: list[str] = []
    """Base URLs of vLLM servers, such as http://localhost:8000/v1; requests are spread over them. Their key, if they
    ask for one, is read from the environment variable VLLM_API_KEY."""
    server_model: str | None = None
    """Name under which the servers offer the base model. None: as in model.path."""
    server_adapter_dir: Path | None = None
    """Folder through which the servers read the adapters; for another machine one of a shared file system, under the
    same path there. None: `served` in the run's folder."""
    server_timeout_seconds: Positive = 600.0
    """Longest wait for one request's responses, until the last of them is whole; after that it is sent again."""
    server_retries: Annotated[int, Field(ge=0)] = 20
    """How often a request is sent again when a server cannot be reached, is busy or fails, with growing pauses: 20
    bridge a restart of three minutes."""
    overlap: bool = False
    """Sample the next rollout while this one is trained: the samples are one step older than the weights they train,
    which `objective.sampler_cap` corrects. Needs `engine: server`, on another GPU."""
    dynamic_sampling: bool = False
    """Replace problems whose responses all earned the same reward, which train nothing, by further problems of the data
    (DAPO, arXiv 2503.14476). Every process replaces its own."""
    max_extra_rounds: Count = 2
    """Budget of `dynamic_sampling`: how often one place may be given another problem in a step, so that a step asks at
    most this many times `train.problems_per_rollout` problems more. Places still without a signal then stay."""
    max_sampler_gap: Positive | None = 0.5
    """Stop when sampler and trainer disagree by more: mean |difference of log-probs| of a rollout's sampled tokens, in
    nats (vLLM in bfloat16: about 0.02). Not checked with top_p below 1, which changes the sampler's. None: off."""

    @property
    def uses_vllm(self) -> bool:
        """Whether vLLM samples in this process."""
        return self.engine in ("vllm", "unsloth")

    @model_validator(mode="after")
    def _servers(self) -> RolloutSection:
        if self.engine == "server" and not self.server_urls:
            raise ValueError("engine: server needs server_urls, such as [http://localhost:8000/v1]")
        for url in self.server_urls:
            if fault := _url_fault(url):
                raise ValueError(f"server_urls: {fault}")
        if len({url.rstrip("/").removesuffix("/v1") for url in self.server_urls}) < len(self.server_urls):
            raise ValueError("server_urls names a server twice")
        return self
