"""The real Hub client uploads the adapter, and nothing else of a run, to a server on this machine."""

import json
import logging
import shutil

import pytest
from hub_upload_server import TOKEN, serve_uploads
from safetensors.torch import load_file

from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.hub import AdapterUploads, HubError

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
PUSHED = {"train.push_to_hub": "true", "train.hub_model_id": "someone/digits", "train.rollouts": 2}


@pytest.fixture
def hub(environment, tmp_path):
    """The server; runs started by `finish` know its address and the token, and no other."""
    with serve_uploads() as (endpoint, hub):
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_ENABLE_HF_TRANSFER"):
            environment.pop(name, None)
        environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        hub.endpoint = endpoint
        yield hub


@pytest.fixture
def hub_here(hub, monkeypatch, tmp_path):
    """The same server, known to this process."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def uploads(hub_here):
    """Uploads of this process to that server."""
    return AdapterUploads("someone/digits")


@pytest.fixture
def adapter(tmp_path):
    """`adapter(name)`: a folder as a checkpoint is, with contents of that name."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        for file in (*ADAPTER, "optimizer.pt", "README.md"):
            (folder / file).write_text(f"{file} of {name}")
        return folder

    return make


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ADAPTER}


@pytest.mark.slow
def test_each_checkpoint_and_at_last_the_best_one(command, finish, hub, tmp_path):
    """A learning rate that destroys the policy: the run ends with its first checkpoint, and so does the repository."""
    worse = {"train.learning_rate": 0.03, "train.warmup_updates": 5, "train.lr_scheduler_type": "constant_with_warmup"}
    best = {"train.load_best_model_at_end": "true", "eval.every_rollouts": 1, "eval.problems": 6, "eval.samples": 2}
    finish(command(**PUSHED, **worse, **best))
    run = tmp_path / "small"
    first, last = list_checkpoints(run / "checkpoints")
    commits = hub.commits["someone/digits"]
    assert [commit["message"] for commit in commits] == ["step 1", "step 2", "the run's adapter"]
    assert commits[0]["files"] == contents(first)
    for commit in commits:
        assert commit["files"].keys() <= ADAPTER, "a file is sent again only where it changed"
    assert commits[1]["files"]["adapter_model.safetensors"] == contents(last)["adapter_model.safetensors"]
    assert hub.files("someone/digits") == contents(run / "adapter") == contents(first)
    assert load_file(str(run / "adapter" / "adapter_model.safetensors"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_a_checkpoint_at_the_end_only(command, finish_here, hub_here, tmp_path):
    """It holds the adapter that the run ends with, which is not sent again."""
    finish_here(command(**PUSHED, **{"train.save_rollouts": "null", "data.eval": "null"}))
    assert [commit["message"] for commit in hub_here.commits["someone/digits"]] == ["step 2"]
    sent = hub_here.files("someone/digits")
    assert sent == contents(tmp_path / "small" / "adapter")
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "digits-vl", (
        "no folder of this machine"
    )
    card = tmp_path / "small" / "adapter" / "README.md"
    assert not card.exists(), "PEFT's empty form, with the folder in it"


def test_without_a_token_nothing_starts(command, finish_here, hub_here, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    told = finish_here(command(**PUSHED), code=2).err
    assert "train.push_to_hub: there is no Hub token; run `hf auth login` or set HF_TOKEN" in told
    assert hub_here.commits == {}
    assert not (tmp_path / "small").exists()


@pytest.mark.usefixtures("hub_here")
def test_a_repository_that_is_not_ours(command, finish_here, tmp_path):
    told = finish_here(command(**{**PUSHED, "train.hub_model_id": "nobody/digits"}), code=2).err
    assert "sharevl-lite: train.push_to_hub: cannot use the repository nobody/digits (" in told
    assert "403" in told
    assert not (tmp_path / "small").exists()


def test_a_wrong_token(uploads, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(HubError, match=r"cannot use the repository someone/digits \(.*401"):
        AdapterUploads("someone/digits")


@pytest.mark.parametrize("name", ["three/part/name", "owner/na me"])
def test_a_name_that_no_repository_can_have(uploads, name):
    with pytest.raises(HubError, match=f"cannot use the repository {name}"):
        AdapterUploads(name)


def test_a_failed_upload_is_said_and_made_up_for(uploads, hub, adapter, caplog):
    hub.failing = 1
    with caplog.at_level(logging.WARNING):
        uploads.start(adapter("first"), "step 1")
        uploads.start(adapter("second"), "step 2")
        uploads.finish()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "sharevl_lite.hub"]
    assert warning.startswith("the upload of step 1 to someone/digits failed (")
    assert "the disk is full" in warning
    assert [commit["message"] for commit in hub.commits["someone/digits"]] == ["step 2"]
    assert hub.files("someone/digits").keys() == ADAPTER


def test_the_same_adapter_is_not_sent_twice(uploads, hub, adapter):
    folder = adapter("checkpoint")
    uploads.start(folder, "step 1")
    uploads.send(folder, "the run's adapter")
    assert [commit["message"] for commit in hub.commits["someone/digits"]] == ["step 1"]


def test_an_upload_that_fails_at_the_end_says_how_to_repeat_it(uploads, hub, adapter):
    folder = adapter("adapter")
    hub.failing = 10
    uploads.start(folder, "step 1")
    with pytest.raises(HubError, match=f"the disk is full.*hf upload someone/digits {folder}"):
        uploads.send(folder, "the run's adapter")


def test_a_checkpoint_that_went_away_is_a_failed_upload(uploads, hub, adapter, caplog):
    folder = adapter("gone")
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        uploads.start(folder, "step 1")
        uploads.finish()
    assert "the upload of step 1 to someone/digits failed" in caplog.text
    assert hub.commits["someone/digits"] == []
