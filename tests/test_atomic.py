"""Atomic files and folders: killed at each system call that matters, and failing there."""

import os
import signal
import time

import pytest

from sharevl_lite import atomic
from sharevl_lite.atomic import (
    publish_directory,
    remove_stale_temporaries,
    staged,
    temporary_beside,
    write_atomically,
)

OLD, NEW = b"old" * 1000, b"new" * 100_000


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def killed_at(call, occurrence, action):
    """Run `action` in a child that is SIGKILLed before the given call; whether the kill happened."""
    child = os.fork()
    if child == 0:
        try:
            real, seen = getattr(os, call), 0

            def fatal(*args, **kwargs):
                nonlocal seen
                seen += 1
                if seen == occurrence:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, call, fatal)
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def write_in_two_halves(file):
    file.write(NEW[: len(NEW) // 2])
    file.flush()
    os.write(file.fileno(), NEW[len(NEW) // 2 :])


@pytest.mark.parametrize(("call", "occurrence"), [("write", 1), ("fsync", 1), ("replace", 1), ("fsync", 2)])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_file(tmp_path, call, occurrence):
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    assert killed_at(call, occurrence, lambda: write_atomically(path, write_in_two_halves))
    after_rename = (call, occurrence) == ("fsync", 2)
    assert path.read_bytes() == (NEW if after_rename else OLD)
    assert visible(tmp_path) == ["file.bin"]
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, call):
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, NEW)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_writer_that_raises_leaves_nothing(tmp_path):
    def broken(file):
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "file.bin", broken)
    assert os.listdir(tmp_path) == []


def test_file_permissions_follow_the_umask(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert write_atomically(tmp_path / "atomic", b"").stat().st_mode == (tmp_path / "plain").stat().st_mode


def fill(folder):
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(NEW)
    (folder / "inner" / "state").write_bytes(OLD)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


WHOLE = {"weights": NEW, "inner/state": OLD}


def test_a_published_folder_is_whole(tmp_path):
    final = publish_directory(fill(temporary_beside(tmp_path / "checkpoint-1")), tmp_path / "checkpoint-1")
    assert contents(final) == WHOLE
    assert os.listdir(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("occurrence", [1, 2, 3, 4, 5])
def test_a_kill_while_publishing_shows_all_or_nothing(tmp_path, occurrence):
    final = tmp_path / "checkpoint-1"

    assert killed_at("fsync", occurrence, lambda: publish_directory(fill(temporary_beside(final)), final))
    # Two files, two folders; the fifth fsync is the parent's, after the rename.
    assert visible(tmp_path) == (["checkpoint-1"] if occurrence == 5 else [])
    if occurrence == 5:
        assert contents(final) == WHOLE


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    final = tmp_path / "checkpoint-1"
    final.mkdir()
    (final / "old").write_bytes(OLD)
    fresh = fill(temporary_beside(final))
    with pytest.raises(FileExistsError, match="replace=True"):
        publish_directory(fresh, final)
    assert contents(final) == {"old": OLD}
    publish_directory(fresh, final, replace=True)
    assert contents(final) == WHOLE
    assert os.listdir(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_kill_while_replacing_shows_old_or_nothing_but_never_a_mix(tmp_path, occurrence):
    final = tmp_path / "checkpoint-1"
    final.mkdir()
    (final / "old").write_bytes(OLD)
    fresh = fill(temporary_beside(final))
    assert killed_at("rename", occurrence, lambda: publish_directory(fresh, final, replace=True))
    if occurrence == 1:
        assert contents(final) == {"old": OLD}
    else:
        assert visible(tmp_path) == []
    assert contents(fresh) == WHOLE


def test_folders_apart_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="must lie in the folder of"):
        publish_directory(fill(tmp_path / "a" / "tmp"), tmp_path / "checkpoint-1")


def test_only_old_temporaries_are_removed(tmp_path):
    old_file, young_file = temporary_beside(tmp_path / "a"), temporary_beside(tmp_path / "a")
    old_folder = fill(temporary_beside(tmp_path / "b"))
    for path in (old_file, young_file, tmp_path / "kept", tmp_path / ".hidden"):
        path.write_bytes(b"")
    long_ago = time.time() - 7200
    for path in (old_file, old_folder, tmp_path / "kept", tmp_path / ".hidden"):
        os.utime(path, (long_ago, long_ago))
    assert sorted(remove_stale_temporaries(tmp_path)) == sorted([old_file, old_folder])
    assert sorted(os.listdir(tmp_path)) == sorted([".hidden", "kept", young_file.name])
    assert remove_stale_temporaries(tmp_path, 0) == [young_file]
    assert remove_stale_temporaries(tmp_path / "missing") == []


def test_what_a_killed_writer_was_filling_goes_and_what_a_living_one_fills_stays(tmp_path):
    def fill_until_killed():
        with staged(tmp_path / "a") as folder:
            os.rmdir(folder)

    assert killed_at("rmdir", 1, fill_until_killed)
    with staged(tmp_path / "x-a") as other, staged(tmp_path / "a") as first:
        assert sorted(tmp_path.glob(".tmp-*")) == sorted([first, other])
        os.utime(first, (0, 0))
        with staged(tmp_path / "a") as second:
            assert first.is_dir()
            (second / "weights").write_bytes(NEW)
            publish_directory(second, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
