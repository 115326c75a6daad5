"""vLLM in this process: batches of requests by its chat method, with the model's own template.

A text model is asked without the images. What is longer than its context has no reply; the rest of a batch does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from sharevl_lite.errors import INSTALL_GPU, first_line
from sharevl_lite.rewrite.batches import BatchedModel
from sharevl_lite.rewrite.cache import Reply
from sharevl_lite.rewrite.chat import ChatRequest, NoReplyError, openai_message
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.fingerprint import model_identity
from sharevl_lite.vllm_start import set_environment, starting_vllm, threads_of_vllm, whole_prompts

LONGEST_PROMPT = 16384
"""Tokens of a question with its images; a longer context of the model would only cost memory."""


class VLLMModel(BatchedModel):
    """The model at `path`: a local folder, a Hub id or a built-in one. It loads with the first request.

    Raises VariantsError where vLLM is not installed, or does not start.
    """

    def __init__(self, path: str, *, batch_size: int, max_tokens: int) -> None:
        if find_spec("vllm") is None:
            raise VariantsError(
                f"vllm:{path}: vLLM is not installed; {INSTALL_GPU}, or choose hf:{path}, or an endpoint with openai"
            )
        super().__init__(batch_size)
        self.path = path
        self.max_tokens = max_tokens
        self.identity = model_identity("vllm", path)

    @cached_property
    def _llm(self) -> Any:
        set_environment()
        import torch
        from transformers import AutoConfig
        from vllm import LLM

        from sharevl_lite.policy.hf import resolve_model_path

        folder = resolve_model_path(self.path)
        try:
            limit = AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
            longest = min(limit, LONGEST_PROMPT + self.max_tokens)
            with starting_vllm():
                return LLM(
                    model=folder,
                    max_model_len=longest,
                    max_num_seqs=self.batch_size,
                    generation_config="vllm",  # the parameters are ours: no repetition penalty of the checkpoint's
                    **({} if torch.cuda.is_available() else _on_a_cpu(longest)),
                )
        except (ImportError, OSError, KeyError, RuntimeError, ValueError, AssertionError) as error:
            raise VariantsError(
                f"vllm:{self.path}: vLLM did not start ({first_line(error)}); give a local folder or a Hub id you can "
                "reach, and free the GPU's memory for it"
            ) from error

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply | NoReplyError]:
        """One call of vLLM for the batch; one for each request where it refuses one of them."""
        from vllm import SamplingParams

        started = time.monotonic()
        parameters = [
            SamplingParams(temperature=request.temperature, max_tokens=request.max_tokens, seed=request.seed)
            for request in requests
        ]
        try:
            with threads_of_vllm():
                outputs = self._llm.chat([self._turns(request) for request in requests], parameters, use_tqdm=False)
        except VariantsError:
            raise
        except ValueError as error:
            if len(requests) == 1:
                return [NoReplyError(f"vLLM refuses the request ({error})")]
            return [reply for request in requests for reply in self.generate([request])]
        seconds = (time.monotonic() - started) / len(requests)
        return [
            Reply(out.outputs[0].text, len(out.prompt_token_ids), len(out.outputs[0].token_ids), seconds)
            for out in outputs
        ]

    def _turns(self, request: ChatRequest) -> list[dict[str, Any]]:
        if self._llm.model_config.is_multimodal_model:
            return [openai_message(request)]
        return [{"role": "user", "content": request.text_alone(self.identity)}]

    async def close(self) -> None:
        """Ends the engine."""
        await super().close()
        self.__dict__.pop("_llm", None)


def _on_a_cpu(longest: int) -> dict[str, Any]:
    """A GiB for keys and values, and prompts read whole."""
    memory = {"kv_cache_memory_bytes": 2**30, "gpu_memory_utilization": 0.3}
    return {**memory, "enforce_eager": True, **whole_prompts(longest)}
