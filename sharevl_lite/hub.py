"""Uploads of the adapter to the Hugging Face Hub: in the background with each checkpoint, and at the end of a run.

PEFT's two files go up, and nothing else of a run. The Trainer's own upload sends whatever lies beside the checkpoints,
skips a checkpoint while the one before is on its way, and never says that an upload failed; hence this one.
"""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

logger = logging.getLogger(__name__)


class HubError(ValueError):
    """The Hub refused a repository or a file, or cannot be reached; the message says what to do."""


class AdapterUploads:
    """Sends folders that hold an adapter to the repository `repo_id`, one after the other.

    Creates the repository where there is none. Raises HubError if that fails.
    """

    def __init__(self, repo_id: str) -> None:
        self._api = HfApi()
        self._under_way: tuple[Future[Any], str] | None = None
        self._sent = ""
        try:
            self.repo_id: str = self._api.create_repo(repo_id, exist_ok=True).repo_id
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise HubError(
                f"train.push_to_hub: cannot use the repository {repo_id} ({_in_one_line(error)}); check "
                "train.hub_model_id and the rights of the token"
            ) from error

    def start(self, folder: Path, message: str) -> None:
        """Begins to send a folder, which must stay as it is until :meth:`finish`."""
        self.finish()
        self._under_way = self._api.run_as_future(self._upload, folder, message), message

    def finish(self) -> None:
        """Waits for the upload under way. One that failed is logged: what comes after it replaces it anyway."""
        if self._under_way is None:
            return
        (upload, message), self._under_way = self._under_way, None
        error = upload.exception()
        if error is not None:
            logger.warning(
                "the upload of %s to %s failed (%s); training goes on, and the next upload is tried",
                message,
                self.repo_id,
                _in_one_line(error),
            )

    def send(self, folder: Path, message: str) -> None:
        """Sends a folder and waits, unless its adapter is the one sent last. Raises HubError if it fails."""
        self.finish()
        try:
            self._upload(folder, message)
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise HubError(
                f"the upload of {folder} to {self.repo_id} failed ({_in_one_line(error)}); it is whole on the disk, "
                f"send it with: hf upload {self.repo_id} {folder}"
            ) from error

    def _upload(self, folder: Path, message: str) -> None:
        digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ADAPTER_FILES)).hexdigest()
        if digest == self._sent:
            return
        self._api.upload_folder(
            repo_id=self.repo_id, folder_path=folder, allow_patterns=list(ADAPTER_FILES), commit_message=message
        )
        self._sent = digest


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
