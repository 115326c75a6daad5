"""Uploads to the Hugging Face Hub: of the adapter during a run, and of an exported model.

During a run PEFT's two files go up, in the background with each checkpoint and at the end, and nothing else of the run.
The Trainer's own upload sends whatever lies beside the checkpoints, skips a checkpoint while the one before is on its
way, and never says that an upload failed; hence this one.

The token is the Hub client's own affair (HF_TOKEN, or what `hf auth login` stored): it is never read here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from sharevl_lite.errors import UserError, in_one_line
from sharevl_lite.policy.folder import ADAPTER_CONFIG, ADAPTER_FILE

ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_FILE)
WEIGHTS = (".safetensors", ".bin", ".gguf")
RETRY_SECONDS = (2.0, 10.0, 60.0)
"""Pauses before an upload is taken up again after a fault of the network or the server."""

logger = logging.getLogger(__name__)


class HubError(UserError):
    """The Hub refused a repository or a file, or cannot be reached; the message says what to do."""


class AdapterUploads:
    """Sends folders that hold an adapter to the repository `repo_id`, one after the other.

    Creates the repository where there is none. Raises HubError if that fails.
    """

    def __init__(self, repo_id: str) -> None:
        self._api = HfApi()
        self._under_way: tuple[Future[Any], str] | None = None
        self._sent = ""
        self.repo_id = _use_repository(self._api, repo_id, "train.push_to_hub", "train.hub_model_id")

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
                in_one_line(error),
            )

    def send(self, folder: Path, message: str) -> None:
        """Sends a folder and waits, unless its adapter is the one sent last. Raises HubError if it fails."""
        self.finish()
        try:
            self._upload(folder, message)
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise HubError(
                f"the upload of {folder} to {self.repo_id} failed ({in_one_line(error)}); it is whole on the disk, "
                f"send it with: {shlex.join(['hf', 'upload', self.repo_id, str(folder)])}"
            ) from error

    def _upload(self, folder: Path, message: str) -> None:
        digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ADAPTER_FILES)).hexdigest()
        if digest == self._sent:
            return
        self._api.upload_folder(
            repo_id=self.repo_id, folder_path=folder, allow_patterns=list(ADAPTER_FILES), commit_message=message
        )
        self._sent = digest


@dataclass(frozen=True)
class Sent:
    """What an upload left: the repository's address, files of an older export that went, and weights at its root that
    are not of this one."""

    address: str
    gone: tuple[str, ...]
    stays: tuple[str, ...]


class ModelUpload:
    """Sends the folder of an exported model to the repository `repo_id`, created (private, if so asked) at once, so
    that a name or token that will not do is told before anything is computed. Raises HubError if it will not.
    """

    def __init__(self, repo_id: str, *, private: bool) -> None:
        self._api = HfApi()
        if get_token() is None:
            raise HubError("--push-to-hub: there is no Hub token; run `hf auth login` or set HF_TOKEN")
        self.repo_id = _use_repository(self._api, repo_id, "--push-to-hub", "the name", private=private)
        if private and not self._is_private():
            raise HubError(
                f"--push-to-hub: the repository {self.repo_id} is there already, and public; make it private there, "
                "leave out --private, or name another one"
            )

    def _is_private(self) -> bool:
        try:
            return bool(self._api.repo_info(self.repo_id).private)
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise HubError(
                f"--push-to-hub: cannot see whether {self.repo_id} is private ({in_one_line(error)}); try again later"
            ) from error

    def send(self, folder: Path, message: str, *, replaced: re.Pattern[str] | None = None) -> Sent:
        """Sends all files and waits.

        Files at the root of the repository whose whole name matches `replaced` and which are not in the folder go: of
        an older export they would be loaded beside, or in place of, this one. Nothing in a folder there does. An upload
        that breaks off is taken up again where it was. Raises HubError where that does not help.
        """
        gone: list[str] = []
        for pause in (*RETRY_SECONDS, None):
            try:
                others = self._others(folder)
                gone = [name for name in others if replaced is not None and replaced.fullmatch(name)]
                self._api.upload_folder(
                    repo_id=self.repo_id, folder_path=folder, commit_message=message, delete_patterns=gone or None
                )
                stays = [name for name in others if name not in gone and name.endswith(WEIGHTS)]
                return Sent(f"{self._api.endpoint}/{self.repo_id}", tuple(gone), tuple(stays))
            except (OSError, httpx.HTTPError, ValueError) as error:
                if pause is None or not _may_pass(error):
                    command = shlex.join(
                        ["hf", "upload", self.repo_id, str(folder), *(f"--delete={name}" for name in gone)]
                    )
                    raise HubError(
                        f"the upload of {folder} to {self.repo_id} failed ({in_one_line(error)}); it is whole on the "
                        f"disk, and goes on where it was with: {command}"
                    ) from error
                logger.warning(
                    "the upload to %s broke off (%s); again in %g s", self.repo_id, in_one_line(error), pause
                )
                time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def _others(self, folder: Path) -> list[str]:
        """Files at the root of the repository that the folder does not hold."""
        held = self._api.list_repo_files(self.repo_id)
        return sorted(name for name in held if "/" not in name and not (folder / name).exists())


def _use_repository(api: HfApi, repo_id: str, option: str, knob: str, *, private: bool | None = None) -> str:
    """Creates the repository where there is none; returns its full name."""
    try:
        name: str = api.create_repo(repo_id, exist_ok=True, private=private or None).repo_id
    except (OSError, httpx.HTTPError, ValueError) as error:
        if isinstance(error, httpx.TransportError | ConnectionError):
            raise HubError(
                f"{option}: {api.endpoint} cannot be reached ({in_one_line(error)}); check the connection and "
                "HF_ENDPOINT"
            ) from error
        raise HubError(
            f"{option}: cannot use the repository {repo_id} ({in_one_line(error)}); check {knob} and the rights of "
            "the token"
        ) from error
    return name


def _may_pass(error: BaseException) -> bool:
    """Whether a fault is one of the network or the server, which may be gone soon."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and (error.response.status_code >= 500 or error.response.status_code == 429)
    return isinstance(error, httpx.TransportError | ConnectionError | TimeoutError)
