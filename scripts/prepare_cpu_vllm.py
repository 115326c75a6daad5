"""Makes vLLM's CPU build importable beside the torchvision that the package index has (a CUDA build).

    .venv-vllm/bin/python scripts/prepare_cpu_vllm.py

That torchvision registers fake implementations of two operators that it has not got there, and fails to import. Both
registrations are put behind its own question whether it has its operators. Only for tests: `make test-vllm` calls it.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

GUARD = "if torchvision.extension._has_ops() else lambda function: function)"


def main() -> None:
    """Edits torchvision in the environment of this interpreter; a second time changes nothing."""
    path = Path(sysconfig.get_paths()["purelib"]) / "torchvision" / "_meta_registrations.py"
    text = path.read_text()
    for name in ("nms", "qnms"):
        plain = f'@torch.library.register_fake("torchvision::{name}")\n'
        text = text.replace(plain, f"@({plain[1:-1]} {GUARD}\n")
    path.write_text(text)
    print(f"{path}: {text.count(GUARD)} registrations guarded")


if __name__ == "__main__":
    main()
