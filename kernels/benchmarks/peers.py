"""What `grouped_logprob` is measured against: other public ways to log p(target) = z_y - logsumexp(hidden · weightᵀ).

Every peer is brought to one call: target t belongs to hidden row t, temperature 1, natural logarithms in float32,
differentiable in the hidden states, and a frozen head. All packages here read `weight.requires_grad`, so a weight that
does not require a gradient is how they are told to skip its gradient; none of them shifts the targets as it is called
here. A loss cannot be turned into log-probs, so a peer that only has one is marked `kind="loss"`.

Nothing but torch has to be installed: `Peer.load` imports the packages. Settings that are not named here are their own
defaults. Versions read: TRL 1.15.0 and 1.16.0, Unsloth zoo 2026.10.9, Liger 0.8.5, cut-cross-entropy 25.1.1 and its
repository.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Rows of the chunked torch peers."""
TRL_VOCABULARY_CHUNK = 32768
"""What TRL's own trainers pass."""

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden_TH, weight_VH, targets_T) -> log-probs [T] in nats, float32."""
GrpoLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden_TH, weight_VH, targets_T, advantages_T, old_logprobs_T) -> scalar: the mean over tokens of
-min(r·A, clip(r, 0.8, 1.2)·A), r = exp(log p - old log p); no KL term."""


@dataclass(frozen=True)
class Peer:
    """`package` is the distribution whose version is reported; '' is torch itself. `load` imports the package, and
    raises ImportError where it is not installed or lacks the function; it is called once per shape (`_load_compiled`).
    """

    name: str
    package: str
    load: Callable[[], LogProbs | GrpoLoss]
    kind: Literal["logprobs", "loss"] = "logprobs"


def version_of(peer: Peer) -> str:
    """Installed version of the peer's package, 'torch 2.x' for torch itself, or 'not installed'."""
    if not peer.package:
        return f"torch {torch.__version__}"
    try:
        return metadata.version(peer.package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}") from error


def _naive(
    hidden_TH: Float[Tensor, "T H"], weight_VH: Float[Tensor, "V H"], targets_T: Int[Tensor, "T"]
) -> Float[Tensor, "T"]:
    logits_TV = (hidden_TH @ weight_VH.T).float()
    return logits_TV.log_softmax(-1).gather(1, targets_T[:, None]).squeeze(1)


def _chunked(scores: LogProbs) -> LogProbs:
    def logprobs(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
        # Nothing here draws random numbers; saving their state for the recomputation would only cost the peer time.
        chunks = [
            checkpoint(scores, hidden_CH, weight_VH, targets_C, use_reentrant=False, preserve_rng_state=False)
            for hidden_CH, targets_C in zip(hidden_TH.split(CHUNK), targets_T.split(CHUNK), strict=True)
        ]
        return torch.cat(chunks)

    return logprobs


def _load_naive() -> LogProbs:
    return _naive


def _load_chunked() -> LogProbs:
    return _chunked(_naive)


def _load_compiled() -> LogProbs:
    # A shorter last chunk must not turn the program of the full chunks into one for any size. Programs of earlier loads
    # count towards the recompilation limit, behind which torch would run eagerly: they are dropped, and with
    # `fullgraph` reaching the limit is an error instead.
    torch.compiler.reset()
    return _chunked(torch.compile(_naive, dynamic=False, fullgraph=True))


def _load_trl() -> LogProbs:
    function = _attribute("trl.kernels", "ChunkedLogProbFunction")
    import_module("trl.trainer.utils")  # its backward pass imports this: an incomplete install is noticed here

    def logprobs(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
        bias, temperature, softcap, scale, extras = None, 1.0, None, 1.0, ()
        arguments = (bias, targets_T, temperature, TRL_VOCABULARY_CHUNK, softcap, scale, extras)
        return function.apply(hidden_TH, weight_VH, *arguments)[0]

    return logprobs


def _load_unsloth_zoo() -> LogProbs:
    """The file is loaded by its path: importing the package needs a GPU and `unsloth`, patches transformers and sets
    the CUDA allocator's options, which would change what every other peer is measured with."""
    package = find_spec("unsloth_zoo")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise ImportError("unsloth_zoo is not installed")
    path = Path(folders[0]) / "fused_losses" / "fused_linear.py"
    spec = spec_from_file_location("unsloth_zoo_fused_linear", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ImportError("unsloth_zoo has no fused_losses/fused_linear.py")
    module = sys.modules.get(spec.name)
    if module is None:
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # Triton looks the module of a kernel up by its name
        spec.loader.exec_module(module)
    return _attribute(spec.name, "fused_linear_logprobs")


def _load_liger() -> GrpoLoss:
    loss = _attribute("liger_kernel.chunked_loss", "LigerFusedLinearGRPOLoss")(
        beta=0.0, use_ref_model=False, loss_type="bnpo", chunk_size=sys.maxsize
    )

    def grpo_loss(
        hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, advantages_T: Tensor, old_logprobs_T: Tensor
    ) -> Tensor:
        # An advantage belongs to a sequence there, so every token is a sequence of its own, all of them one chunk.
        mask_T1 = torch.ones_like(old_logprobs_T)[:, None]
        value, _ = loss(
            hidden_TH[:, None],
            weight_VH,
            targets_T[:, None],
            mask_T1,
            advantages_T,
            old_per_token_logps=old_logprobs_T[:, None],
        )
        return value

    return grpo_loss


def _load_cce(impl: str, **options: Any) -> LogProbs:
    function = _attribute("cut_cross_entropy", "linear_cross_entropy")
    implementations = _attribute("cut_cross_entropy", "LinearCrossEntropyImpl")
    if impl.upper() not in implementations.__members__:
        raise ImportError(f"this cut_cross_entropy has no {impl!r}; only its repository has, not the package index")

    def logprobs(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
        return -function(hidden_TH, weight_VH, targets_T, reduction="none", shift=False, impl=impl, **options)

    return logprobs


# `CCE unfiltered` keeps the small gradients that CCE drops, but still adds them up in the hidden states' dtype;
# `CCE exact` adds them up in float32 as well.
PEERS: tuple[Peer, ...] = (
    Peer("torch", "", _load_naive),
    Peer("torch chunked", "", _load_chunked),
    Peer("torch chunked, compiled", "", _load_compiled),
    Peer("Unsloth zoo", "unsloth_zoo", _load_unsloth_zoo),
    Peer("TRL", "trl", _load_trl),
    Peer("Liger GRPO loss", "liger-kernel", _load_liger, kind="loss"),
    Peer("CCE", "cut-cross-entropy", partial(_load_cce, "cce")),
    Peer("CCE unfiltered", "cut-cross-entropy", partial(_load_cce, "cce", filter_eps=None)),
    Peer("CCE exact", "cut-cross-entropy", partial(_load_cce, "cce_exact")),
)
