"""From what stands behind `--with` and `--check-with` to a model. Equal descriptions share one model."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sharevl_lite.rewrite.chat import ChatModel
from sharevl_lite.rewrite.errors import VariantsError

KINDS = "openai, hf:MODEL and vllm:MODEL"
USUAL_CONCURRENCY = {"openai": 8, "hf": 8, "vllm": 64}


@dataclass(frozen=True)
class ModelSource:
    """A model as the command line describes it.

    `option` names it in messages: `--with` or `--check-with`. `base_url` and `model` are for endpoints.
    """

    option: str
    spec: str
    base_url: str | None = None
    model: str | None = None

    @property
    def kind(self) -> str:
        """`openai`, `hf` or `vllm`."""
        return self.spec.partition(":")[0]

    def check(self) -> None:
        """Raises VariantsError where the description is none."""
        path = self.spec.partition(":")[2]
        prefix = self.option.removesuffix("with") if self.option != "--with" else "--"
        if self.kind == "openai" and not path:
            if not self.base_url or not self.model:
                raise VariantsError(
                    f"{self.option} openai needs {prefix}base-url (such as http://localhost:8000/v1) and {prefix}model"
                )
            if not _is_address(self.base_url):
                raise VariantsError(f"{prefix}base-url must be an address such as http://localhost:8000/v1")
            return
        if self.kind not in {"hf", "vllm"}:
            also = "rules, " if self.option == "--with" else ""
            raise VariantsError(f"{self.option} {self.spec}: there are {also}{KINDS}")
        if not path:
            raise VariantsError(
                f"{self.option} {self.spec}: name the model behind a colon, such as "
                f"{self.kind}:Qwen/Qwen2.5-VL-7B-Instruct"
            )
        if self.base_url or self.model:
            raise VariantsError(f"{self.option} {self.spec}: {prefix}base-url and {prefix}model are for openai")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is none
        return False


class ModelRoom:
    """Opens models and closes them all; one that is asked for twice is opened once."""

    def __init__(self, *, concurrency: int | None, timeout: float, max_tokens: int) -> None:
        self.concurrency, self.timeout, self.max_tokens = concurrency, timeout, max_tokens
        self._open: dict[tuple[str, str | None, str | None], ChatModel] = {}

    def open(self, source: ModelSource) -> ChatModel:
        """The model of a description. Raises VariantsError where it cannot be used."""
        key = (source.spec, source.base_url, source.model)
        if key not in self._open:
            self._open[key] = self._new(source)
        return self._open[key]

    def slots(self, source: ModelSource) -> int:
        """Requests to this model at a time."""
        return self.concurrency or USUAL_CONCURRENCY[source.kind]

    def _new(self, source: ModelSource) -> ChatModel:
        source.check()
        slots, path = self.slots(source), source.spec.partition(":")[2]
        if source.kind == "hf":
            from sharevl_lite.rewrite.hf import TransformersModel

            return TransformersModel(path, batch_size=slots)
        if source.kind == "vllm":
            from sharevl_lite.rewrite.vllm import VLLMModel

            return VLLMModel(path, batch_size=slots, max_tokens=self.max_tokens)
        from sharevl_lite.rewrite.endpoint import EndpointModel

        assert source.base_url is not None
        assert source.model is not None
        return EndpointModel(source.base_url, source.model, concurrency=slots, timeout=self.timeout)

    async def close(self) -> None:
        """Ends every model."""
        for model in self._open.values():
            await model.close()
