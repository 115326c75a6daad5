"""What decides the output of `sharevl-lite variants`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sharevl_lite.rewrite.check import TEMPLATE
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.fingerprint import fingerprint, model_identity
from sharevl_lite.rewrite.models import ModelSource


@dataclass(frozen=True)
class Settings:
    """Two runs with equal settings write the same folder, up to what models answer.

    `check` describes the solver as `rewriter` does the rewriting model; None: no check.
    """

    data: str
    rewriter: str = "rules"
    model: str | None = None
    base_url: str | None = field(default=None, repr=False)
    num: int = 4
    seed: int = 0
    split: str = "train"
    limit: int | None = None
    on_bad_row: str = "stop"
    columns: dict[str, str] = field(default_factory=dict)
    max_tokens: int = 2048
    check: str | None = None
    check_model: str | None = None
    check_base_url: str | None = field(default=None, repr=False)
    check_samples: int = 4
    check_template: str = TEMPLATE

    @property
    def rewriting(self) -> ModelSource | None:
        """The rewriting model; None for rules."""
        if self.rewriter == "rules":
            return None
        return ModelSource("--with", self.rewriter, self.base_url, self.model)

    @property
    def checking(self) -> ModelSource | None:
        """The solver; an endpoint's address and model are the rewriter's where they are not named."""
        if self.check is None:
            return None
        if self.check != "openai":
            return ModelSource("--check-with", self.check, self.check_base_url, self.check_model)
        return ModelSource(
            "--check-with", self.check, self.check_base_url or self.base_url, self.check_model or self.model
        )

    def validate(self) -> None:
        """Raises VariantsError where the settings cannot be meant."""
        for source in (self.rewriting, self.checking):
            if source is not None:
                source.check()
        if "openai" not in (self.rewriter, self.check) and (self.base_url or self.model):
            raise VariantsError("--base-url and --model need --with openai, or --check-with openai")
        if self.check is None and (self.check_base_url or self.check_model):
            raise VariantsError("--check-base-url and --check-model need --check-with openai")
        if "{problem}" not in self.check_template:
            raise VariantsError("--check-template: write {problem} where the question belongs")

    def recorded(self) -> dict[str, Any]:
        """As the manifest keeps them: addresses without credentials, local data and models with a fingerprint."""
        from sharevl_lite.rewrite.endpoint import without_credentials

        settings = asdict(self)
        for name in ("base_url", "check_base_url"):
            if settings[name] is not None:
                settings[name] = without_credentials(settings[name])
        settings["source_state"] = fingerprint(self.data)
        for name, source in (("rewriter", self.rewriting), ("check", self.checking)):
            if source is not None and source.kind != "openai":
                settings[name] = model_identity(source.kind, source.spec.partition(":")[2])
        return settings
