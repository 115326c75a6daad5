"""Stores of other schema versions: older ones open in every view, alone or mixed; a newer one is named."""

import shutil

import pytest
from old_stores import as_version, as_version_1, as_version_2
from pages import first_problem, opened
from sharevl_explorer.index import Index
from sharevl_explorer.queries import step_means

VIEWS = (
    ("?view=run", ".charts"),
    ("?view=step&step={step}", ".problems"),
    ("?view=step&step={step}&q=digit&outcome=mixed", "form.filters"),
    ("?view=problem&step={step}&problem={problem}", ".matrix"),
    ("?view=response&step={step}&problem={problem}&under=1", ".tokens"),
    ("?view=compare&problem={problem}", ".card"),
    ("?view=compare&split=eval", ".movers"),
)


def copied(run, folder, change, pattern="step_*.parquet"):
    shutil.copytree(run, folder)
    for path in (folder / "rollouts").glob(f"*/{pattern}"):
        change(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", [as_version_1, as_version_2])
def test_a_store_of_an_older_version_opens_in_every_view(page, served, trained, tmp_path, version):
    old = copied(trained, tmp_path / "old", version)
    for query, there in VIEWS:
        filled = query.format(step=1, problem=first_problem(trained))
        opened(page, served(trained), filled, there)
        today = page.locator("#sharevl .content").inner_text()
        opened(page, served(old), filled, there)
        assert page.locator("details.note").count() == 0
        shown = page.locator("#sharevl .content").inner_text()
        if "view=response" in query and version is as_version_1:
            assert "an older program wrote this step and kept means alone" in shown
            assert page.locator(".token").first.get_attribute("title").endswith("nats")
        else:
            assert shown.replace("old", trained.name) == today


@pytest.mark.parametrize("version", [as_version_1, as_version_2])
@pytest.mark.parametrize("pattern", ["step_000001.parquet", "step_000002.parquet"])
def test_versions_may_be_mixed(trained, tmp_path, pattern, version):
    """As after a resume by a newer program; whichever is read first."""
    index = Index([copied(trained, tmp_path / "mixed", version, pattern)])
    assert index.unreadable == {}
    assert step_means(index, 0, "train") == step_means(Index([trained]), 0, "train")


@pytest.mark.slow
def test_a_newer_version_is_named_and_the_rest_is_shown(page, served, trained, tmp_path):
    newer = copied(trained, tmp_path / "newer", lambda path: as_version(path, b"99"), "step_000002.parquet")
    opened(page, served(newer), "?view=run", ".charts")
    assert page.locator(".bars a").count() == 1
    note = page.locator("details.note").first
    note.locator("summary").click()
    assert "train/step_000002.parquet" in note.inner_text()
    assert "schema version 99, and this program reads 1 to 3; read the run with the sharevl-lite" in note.inner_text()
    for view in ("step", "problem", "response"):
        opened(page, served(newer), f"?view={view}&step=2&problem={first_problem(trained, 2)}")
        assert page.locator(".empty").count() == 1
