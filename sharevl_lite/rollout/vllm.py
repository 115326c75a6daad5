"""Rollouts with vLLM in this process, on the GPU (or CPU) that trains.

The engine holds the base model; the adapter reaches it after every update as a LoRA of a new id (vLLM keeps an old one
under a known id), and what it cached under the old adapter is dropped. It gets unexpanded prompts, one placeholder an
image, and the pictures as the policy's own processor resized them; the prompt ids that come back must be the policy's,
or log-probs of other tokens would be trained. While the policy trains, the engine sleeps: its weights go to the host
and its cache is freed (on a GPU; vLLM has no sleep on a CPU).

Under torchrun every process has its own engine on its own device and samples the problems that it trains.

Responses are seeded by name, as with the other engine, but vLLM's batches change their rounding: a resumed run samples
alike, not bit for bit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sharevl_lite.device_memory import MEMORY
from sharevl_lite.errors import INSTALL_GPU
from sharevl_lite.policy.hf import resolve_model_path, save_adapter
from sharevl_lite.policy.prompts import pixel_settings
from sharevl_lite.rollout.engine import Response, Sampling, SamplingRequest, end_ids
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.limits import (
    check_frozen_vision,
    check_recipe,
    engine_dtype,
    is_quantised,
    num_drawn,
    sampling_parameters,
    vllm_rank,
)
from sharevl_lite.vllm_start import set_environment, starting_vllm, threads_of_vllm, whole_prompts

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe
    from sharevl_lite.policy.packed import PackedPolicy

PATIENCE = timedelta(minutes=30)
"""Of processes that wait for one that samples or rewards for longer; as transformers' trainer has it."""


class VLLMRolloutEngine:
    """vLLM with the policy's base model and its current adapter; prompts have up to `max_images` images.

    Raises RolloutError where vLLM is not installed, the recipe asks for something it does not do, or it fails to start.
    """

    may_sleep = True

    def __init__(self, policy: PackedPolicy, recipe: Recipe, *, max_images: int = 1) -> None:
        _check(policy, recipe)
        self.policy = policy
        self.end_ids = end_ids(policy)
        self._can_sleep = self.may_sleep and policy.device.type == "cuda"
        self._asleep = False
        self._synced = 0
        self._stale = False
        before = torch.cuda.memory_allocated() if self._can_sleep else 0
        self._llm = self._start(recipe, max_images)
        self._counted = torch.cuda.memory_allocated() - before if self._can_sleep else 0
        self._folder = Path(tempfile.mkdtemp(prefix="sharevl-adapter-"))
        self.sleep()

    def _start(self, recipe: Recipe, max_images: int) -> Any:
        from vllm import LLM

        section = recipe.rollout
        try:
            with starting_vllm():
                return LLM(
                    model=resolve_model_path(recipe.model.path),
                    dtype=engine_dtype(self.policy),
                    max_model_len=recipe.max_sequence_length,
                    max_num_seqs=section.batch_size,
                    enable_lora=True,
                    max_lora_rank=vllm_rank(recipe.model.lora.rank),
                    max_loras=1,
                    logprobs_mode="processed_logprobs",
                    limit_mm_per_prompt={"image": max_images, "video": 0},
                    mm_processor_kwargs=pixel_settings(self.policy.processor),
                    enforce_eager=section.vllm_enforce_eager,
                    quantization="bitsandbytes" if recipe.model.load_in_4bit else None,
                    seed=recipe.seed,
                    **self._device_settings(recipe),
                    **_launch_settings(self.policy.device.type),
                )
        except ImportError as error:
            raise RolloutError(
                f"rollout.engine: vLLM did not start ({error}); install what it lacks, or versions that go "
                f"together: {INSTALL_GPU}; or choose rollout.engine: hf"
            ) from error
        except (RuntimeError, ValueError, AssertionError) as error:
            raise RolloutError(
                f"rollout.engine: vLLM did not start ({str(error) or repr(error)}); lower "
                "rollout.vllm_gpu_memory_utilization or data.max_prompt_length if memory is short, or choose "
                "rollout.engine: hf"
            ) from error

    def _device_settings(self, recipe: Recipe) -> dict[str, Any]:
        section = recipe.rollout
        share = {"gpu_memory_utilization": section.vllm_gpu_memory_utilization}  # on a CPU, of the machine's memory
        if self._can_sleep:
            captured = {} if section.vllm_enforce_eager else {"compilation_config": graphs(section.batch_size)}
            return {**share, "enable_sleep_mode": True, **captured}
        return {**share, **whole_prompts(recipe.max_sequence_length)}

    def sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        """`count` responses to each request, in order.

        Raises RolloutError where vLLM read another prompt than the policy did, or drew a vision token.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        if not requests:
            return []
        if self._synced == 0:
            self.sync()
        self.wake()
        self._forget()
        adapter = LoRARequest(f"sync-{self._synced}", self._synced, str(self._adapter))
        try:
            with threads_of_vllm():
                outputs = self._llm.generate(
                    [self._prompt(request) for request in requests],
                    [SamplingParams(**sampling_parameters(request, sampling, self.policy)) for request in requests],
                    lora_request=adapter,
                    use_tqdm=False,
                )
        finally:
            self.sleep()
        return [self._responses(request, sampling, output) for request, output in zip(requests, outputs, strict=True)]

    def sync(self) -> None:
        """Hands the current adapter over: a new id, and nothing cached of the old one at the next rollout."""
        self._synced += 1
        save_adapter(self.policy, self._adapter)
        previous = self._folder / str(self._synced - 1)
        shutil.rmtree(previous, ignore_errors=True)
        self._stale = True  # waking takes a second or two of a large model: not for this alone

    def close(self) -> None:
        """Ends the engine and removes the adapters handed over."""
        self._llm = None
        if self._asleep:
            MEMORY.give_back(0)
            self._asleep = False
        shutil.rmtree(self._folder, ignore_errors=True)

    def wake(self) -> None:
        """Takes the weights and the cache's memory back, out of what torch keeps of the update."""
        if self._asleep:
            torch.cuda.empty_cache()  # vLLM maps its memory anew and asks nobody for it
            MEMORY.give_back(0)
            self._llm.wake_up()
            self._asleep = False

    def sleep(self) -> None:
        """Gives the weights' and the cache's memory up, until the next rollout."""
        if self._can_sleep and not self._asleep:
            free, _ = torch.cuda.mem_get_info()
            self._llm.sleep(level=1)
            freed = torch.cuda.mem_get_info()[0] - free
            MEMORY.give_back(max(0, min(freed, self._counted)))  # torch may not count all of it, or none
            self._asleep = True

    def _forget(self) -> None:
        """Drops what was cached under an earlier adapter."""
        if self._stale:
            self._llm.reset_prefix_cache()
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()
            self._stale = False

    @property
    def _adapter(self) -> Path:
        return self._folder / str(self._synced)

    def _prompt(self, request: SamplingRequest) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": request.prompt.text}
        if request.prompt.pictures:
            # Said with each prompt, because an engine that Unsloth has made was not told.
            bounds = pixel_settings(self.policy.processor)
            prompt |= {"multi_modal_data": {"image": list(request.prompt.pictures)}, "mm_processor_kwargs": bounds}
        return prompt

    def _responses(self, request: SamplingRequest, sampling: Sampling, output: Any) -> list[Response]:
        expected = request.prompt.prefix.ids_P.tolist()
        if list(output.prompt_token_ids) != expected:
            raise RolloutError(
                f"{request.key}: vLLM read {len(output.prompt_token_ids)} prompt tokens where the policy reads "
                f"{len(expected)}, and they differ; their processors or chat templates do not agree. Use versions of "
                "transformers and vLLM that resolve together, or rollout.engine: hf"
            )
        drawn = [self._response(request.key, completion) for completion in output.outputs]
        asked = num_drawn(request, sampling)
        if len(drawn) != asked:
            raise RolloutError(f"{request.key}: vLLM gave {len(drawn)} responses, {asked} were asked for")
        return drawn * (request.count // asked)

    def _response(self, key: str, completion: Any) -> Response:
        ids = tuple(completion.token_ids)
        banned = set(ids) & set(self.policy.vision_token_ids)
        if banned:
            raise RolloutError(f"{key}: vLLM drew the vision tokens {sorted(banned)} although they are banned")
        logprobs = tuple(place[token].logprob for place, token in zip(completion.logprobs, ids, strict=True))
        text = self.policy.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Response(ids, logprobs, text, truncated=not ids or ids[-1] not in self.end_ids)


def _check(policy: PackedPolicy, recipe: Recipe) -> None:
    """Raises RolloutError for what vLLM, or vLLM in this process, does not do."""
    set_environment()
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise RolloutError(
            f"rollout.engine: vLLM is not installed ({error}); {INSTALL_GPU}, or choose rollout.engine: hf"
        ) from error
    check_frozen_vision(policy)
    check_recipe(recipe)
    if is_quantised(policy):
        check_four_bits()


def check_four_bits() -> None:
    """Raises RolloutError where this vLLM reads no bitsandbytes weights: from 0.28 on a plug-in does."""
    from vllm import __version__
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if "bitsandbytes" not in QUANTIZATION_METHODS:
        raise RolloutError(
            f"rollout.engine: vLLM {__version__} reads no weights in 4 bits without its plug-in; pip install "
            "vllm-bnb-plugin, or choose rollout.engine: hf"
        )


def _launch_settings(device: str) -> dict[str, Any]:
    """Under torchrun each process has an engine of its own, beside the group of processes that trains."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    from accelerate import PartialState

    # The trainer's group, made before vLLM would make another; so with the patience that the trainer would give it.
    PartialState(cpu=device == "cpu", timeout=PATIENCE)
    return {"distributed_executor_backend": "external_launcher"}


def graphs(batch: int) -> dict[str, Any]:
    """The CUDA graphs worth their part of the start, for batches of at most `batch` responses.

    Decoding alone: prompts come in pieces that are longer than any graph. Sizes a quarter apart at most, an eighth from
    64 on, where padding begins to cost something beside the weights that a step reads.
    """
    sizes = [1]
    while sizes[-1] < batch:
        size = sizes[-1]
        step = 2 ** (size.bit_length() - 1) // (4 if size < 64 else 8)
        sizes.append(min(size + max(step, 1), batch))
    # Every rollout has its adapter: graphs without one are of no use, and not all versions leave them out for that.
    return {
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": sizes,
        "cudagraph_specialize_lora": False,
    }
