"""A run's recipe is used from any folder: what it names of this machine is written down with its whole path."""

from sharevl_lite.recipes import load_recipe, with_local_paths


def test_what_is_here_becomes_absolute_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "test.jsonl").touch()
    words = {"data.train": "rows", "data.eval": "test.jsonl", "model.path": "model", "model.lora.start_from": "rows"}
    recipe = with_local_paths(load_recipe(None, words))
    assert (recipe.data.train, recipe.data.eval) == (str(tmp_path / "rows"), str(tmp_path / "test.jsonl"))
    assert (recipe.model.path, recipe.model.lora.start_from) == (str(tmp_path / "model"), str(tmp_path / "rows"))
    elsewhere = load_recipe(None, {"data.train": "builtin:digits", "data.eval": "org/name", "model.path": "Qwen/Qwen"})
    assert with_local_paths(elsewhere) == elsewhere
    assert with_local_paths(recipe) == recipe
