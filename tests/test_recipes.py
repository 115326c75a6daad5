"""Recipes: what a user writes, what the run gets, and what the user is told when it is wrong."""

import json
import operator
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharevl_lite import config
from sharevl_lite.config import Recipe
from sharevl_lite.config_model import LoraSection, ModelSection
from sharevl_lite.knobs import OTHER_NAMES, find_knob, knobs, nearest_keys, sections
from sharevl_lite.recipe_faults import OTHER_VALUES
from sharevl_lite.recipes import RecipeError, dump_recipe, load_recipe


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return [problem.replace(f"{Path(path).parent}/", "") for problem in caught.value.problems]


# ---------------------------------------------------------------- values


def test_values_reach_the_recipe_and_the_rest_keeps_its_defaults(write):
    recipe = load_recipe(write("name: a\nshare:\n  num_variants: 3\n  transforms: {probability: 0}\n"))
    assert recipe.share.num_variants == 3
    assert recipe.share.transforms.probability == 0.0
    assert recipe.train == Recipe().train


@pytest.mark.parametrize(
    ("written", "meant"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("2", 2.0), (".5", 0.5), ("+1.e-6", 1e-6)]
)
def test_numbers_that_yaml_1_1_reads_as_text_are_numbers(write, written, meant):
    assert load_recipe(write(f"train: {{learning_rate: {written}}}")).train.learning_rate == meant


def test_text_that_yaml_1_1_converts_stays_text(write):
    recipe = load_recipe(write("name: 2026-01-01\ndata: {train_split: no, eval_split: 12:30}\n"))
    assert (recipe.name, recipe.data.train_split, recipe.data.eval_split) == ("2026-01-01", "no", "12:30")


@pytest.mark.parametrize("text", ["2024_01", "1_000.5", "0x10", "0o17", "0b11", "1__0"])
def test_text_with_digits_stays_text(write, tmp_path, text):
    recipe = load_recipe(write(f"name: {text}\n"))
    assert recipe.name == text
    path = write(dump_recipe(recipe), "dumped.yaml")
    assert load_recipe(path) == recipe
    assert f"name: '{text}'" in path.read_text(), "other readers of YAML take it for a number"


@pytest.mark.parametrize("written", ["1_000", "0x10"])
def test_a_count_is_written_in_decimal_digits(write, written):
    assert problems_of(write(f"data: {{train_limit: {written}}}")) == [
        f'recipe.yaml:1: data.train_limit: must be int >= 1 | null, got "{written}"'
    ]


def test_a_whole_number_with_exponent_is_a_count(write):
    assert load_recipe(write("data: {train_limit: 1e3}")).data.train_limit == 1000


def test_leading_zeros_are_decimal(write):
    assert load_recipe(write("seed: 010")).seed == 10


def test_a_section_with_all_keys_commented_out_keeps_its_defaults(write):
    assert load_recipe(write("name: a\nshare:\n  # num_variants: 3\nmodel:\n  lora:\n")) == Recipe(name="a")


def test_data_and_output_paths_stay_as_written(write):
    recipe = load_recipe(write("output_dir: out\ndata: {train: rows.parquet}\n"))
    assert (recipe.output_dir, recipe.data.train) == (Path("out"), "rows.parquet")


def test_reward_function_paths_are_relative_to_the_recipe(write, tmp_path, monkeypatch):
    path = write("reward:\n  functions:\n  - {path: 'fn/a.py:length', weight: 0.5}\n  - path: /abs/b.py:f\n")
    monkeypatch.chdir(tmp_path.parent)
    first, second = load_recipe(Path(tmp_path.name) / path.name).reward.functions
    assert (first.path, first.weight) == (f"{tmp_path}/fn/a.py:length", 0.5)
    assert second.path == "/abs/b.py:f"


def test_without_a_file_the_defaults_stand_and_paths_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model.path", "m", "--reward.functions", "[{path: 'a.py:f'}]"]
    assert load_recipe(None, words).reward.functions[0].path == f"{tmp_path}/a.py:f"


@pytest.mark.parametrize("words", [["--eval.samples", "3"], ["--eval={samples: 3}"]])
def test_presets_stand_above_the_file_and_below_every_spelling_of_an_override(write, words):
    path = write("eval: {temperature: 0.5, samples: 1}\n")
    section = load_recipe(path, words, presets={"eval.temperature": 0, "eval.samples": 2}).eval
    assert (section.temperature, section.samples) == (0.0, 3)


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    "overrides",
    [
        ["--share.num-variants", "3", "--train.learning-rate=1e-5", "--data.eval", "null"],
        ["--share.num_variants=3", "--train.learning_rate", "1e-5", "--data.eval=~"],
        ["--share.num_variants", 3, "--train.learning_rate", 1e-5, "--data.eval", "null"],
        {"share.num_variants": 3, "train.learning-rate": 1e-5, "data.eval": None},
        {"share.num-variants": "3", "train.learning_rate": "1e-5", "data.eval": "null"},
        {"share": {"num_variants": 3}, "train": {"learning-rate": 1e-5}, "data": {"eval": None}},
    ],
)
def test_overrides_replace_the_files_values_only(write, overrides):
    path = write("share: {num_variants: 2, num_responses: 4}\ndata: {eval: held-out.parquet, eval_split: x}\n")
    recipe = load_recipe(path, overrides)
    assert (recipe.share.num_variants, recipe.train.learning_rate, recipe.data.eval) == (3, 1e-5, None)
    assert (recipe.share.num_responses, recipe.data.eval_split) == (4, "x")


def test_list_overrides(write):
    words = ["--train.report-to", "[wandb, tensorboard]", "--share.transforms.kinds=[rotate_180]"]
    recipe = load_recipe(write("{}"), [*words, "--model.lora.target-modules", "[q_proj, v_proj]"])
    assert recipe.train.report_to == ["wandb", "tensorboard"]
    assert recipe.share.transforms.kinds == ["rotate_180"]
    assert recipe.model.lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("text", ["7", "1e-4", "true", "2026-01-01", "a.b"])
def test_text_knobs_take_the_word_as_it_stands(write, text):
    assert load_recipe(write("{}"), ["--name", text]).name == text


def test_a_template_or_pattern_that_looks_like_yaml_is_taken_as_text(write):
    words = ["--data.prompt-template", "{problem} Think.", "--model.lora.target-modules", "[qv]_proj"]
    recipe = load_recipe(write("{}"), words)
    assert recipe.data.prompt_template == "{problem} Think."
    assert recipe.model.lora.target_modules == "[qv]_proj"


def test_a_negative_number_is_a_value(write):
    assert problems_of(write("{}"), ["--seed", "-1"]) == [
        "command line: --seed: must be int >= 0 and < 4294967296, got -1"
    ]


def test_an_override_can_mend_a_file_whose_values_contradict(write):
    path = write("objective: {epsilon_high: 5.0}\n")
    assert problems_of(path) == ["recipe.yaml:1: objective: delta (3.0) must exceed 1 + epsilon_high (6.0)"]
    assert load_recipe(path, ["--objective.delta", "null"]).objective.delta is None


def test_a_mapping_of_overrides_is_not_changed(write):
    overrides = {"reward.functions": [{"path": "a.py:f"}]}
    load_recipe(write("{}"), overrides)
    assert overrides == {"reward.functions": [{"path": "a.py:f"}]}


# ---------------------------------------------------------------- problems


def test_every_problem_of_a_file_is_reported_with_its_line(write):
    path = write(
        "name: my run\n"
        "num_variants: 3\n"
        "share:\n"
        "  num_varaints: 3\n"
        "  num_responses: 0\n"
        "  transforms: {kinds: [spin]}\n"
        "train:\n"
        "  learning_rate: fast\n"
        "model:\n"
        "  lora: {target_modules: 3}\n"
        "rollout: 3\n"
    )
    assert problems_of(path, ["--sahre.std", "plain", "--train.rollouts", "none"]) == [
        'recipe.yaml:1: name: must be text matching ^[A-Za-z0-9_][A-Za-z0-9._-]*$, got "my run"',
        "recipe.yaml:2: num_variants: unknown key; did you mean share.num_variants?",
        "recipe.yaml:4: share.num_varaints: unknown key; did you mean share.num_variants?",
        "recipe.yaml:5: share.num_responses: must be int >= 1, got 0",
        "recipe.yaml:6: share.transforms.kinds.0: must be 'rotate_90_cw', 'rotate_90_ccw', 'rotate_180', 'noise_10', "
        "'noise_25', 'noise_50', 'mirror_horizontal', 'mirror_vertical', 'tilt_5_cw', 'tilt_5_ccw', 'scale_50', "
        "'brightness_70', 'brightness_130', 'contrast_70', 'contrast_130', 'jpeg_50' or 'jpeg_20', got \"spin\"",
        'recipe.yaml:8: train.learning_rate: must be float > 0, got "fast"',
        "recipe.yaml:10: model.lora.target_modules: must be text | list of text, got 3",
        "recipe.yaml:11: rollout: must be a mapping of keys, got 3",
        "command line: --sahre.std: unknown key; did you mean --share.std?",
        'command line: --train.rollouts: must be int >= 1, got "none"',
    ]


@pytest.mark.parametrize("value", ["yes", "true", "'3'", "3.5", "[3]", "{a: 3}", "null"])
def test_a_count_takes_nothing_but_a_whole_number(write, value):
    (problem,) = problems_of(write(f"share:\n  num_variants: {value}\n"))
    assert problem.startswith("recipe.yaml:2: share.num_variants: must be int >= 1, got ")


@pytest.mark.parametrize("value", ["yes", "'true'", "1"])
def test_a_switch_takes_nothing_but_true_and_false(write, value):
    (problem,) = problems_of(write(f"model: {{gradient_checkpointing: {value}}}\n"))
    assert "model.gradient_checkpointing: must be true | false, got " in problem


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("temperature", "did you mean rollout.temperature or eval.temperature?"),
        ("trian", "did you mean train?"),
        ("train.num-variants", "did you mean share.num_variants?"),
        ("objective.epsilon_hihg", "did you mean objective.epsilon_high"),
        ("eval.zzz", "eval has problems, samples, temperature, top_p, every_rollouts"),
        ("zzz", "a recipe has name, output_dir, seed, model, data, "),
    ],
)
def test_an_unknown_key_names_what_may_have_been_meant(write, key, hint):
    outer, _, inner = key.rpartition(".")
    (problem,) = problems_of(write(f"{outer}: {{{inner}: 1}}" if outer else f"{inner}: 1"))
    assert problem.startswith(f"recipe.yaml:1: {key}: unknown key; {hint}")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--train.lr", "--train.learning-rate"),
        ("--lr", "--train.learning-rate"),
        ("--num_generations", "--share.num-responses"),
        ("--rollout.n", "--share.num-responses"),
        ("--worker.rollout.n", "--share.num-responses"),
        ("--train.max-steps", "--train.rollouts"),
        ("--algorithm.kl_coef", "--objective.beta"),
        ("--beta", "--objective.beta"),
        ("--train.epsilon_high", "--objective.epsilon-high"),
        ("--per_device_train_batch_size", "--train.problems-per-update or --train.token-budget"),
        ("--num_iterations", "--train.epochs-per-rollout"),
        ("--train.vllm_gpu_memory_utilization", "--rollout.vllm-gpu-memory-utilization"),
        ("--model.lora.r", "--model.lora.rank"),
        ("--algorithm.filter_groups.enable", "--rollout.dynamic-sampling"),
    ],
)
def test_what_other_trainers_call_a_knob_is_known(write, word, meant):
    (problem,) = problems_of(write("{}"), [word, "1"])
    assert problem == f"command line: {word}: unknown key; did you mean {meant}?"


def test_a_run_that_nothing_could_teach_is_refused(write):
    words = ["--reward.accuracy_weight=0", "--reward.format_weight=0"]
    (problem,) = problems_of(write("{}"), words)
    assert problem.startswith("command line: --reward")
    assert problem.endswith("every weight is 0: all responses earn the same, and nothing is learnt; give one a weight")
    function = "[{path: rewards.py:mine, weight: -1}]"
    assert load_recipe(write("{}"), [*words, f"--reward.functions={function}"]).reward.functions[0].weight == -1.0


@pytest.mark.parametrize(
    ("word", "value", "told"),
    [
        ("--objective.aggregation", "dapo", 'got "dapo"; did you mean token?'),
        ("--model.dtype", "bf16", 'got "bf16"; did you mean bfloat16?'),
        ("--train.lr_scheduler_type", "cosin", 'got "cosin"; did you mean cosine?'),
        ("--train.report_to", "tensorbord", 'got "tensorbord"; did you mean tensorboard?'),
        ("--train.report_to", "none", 'got "none"; write [] for none'),
        ("--objective.delta", "None", 'got "None"; write null for none'),
        ("--train.save_rollouts", "false", "got false; write null for none"),
        ("--share.levels", "both", 'got "both"'),
        ("--objective.beta", "none", 'got "none"'),
        ("--rollout.top-k", "5", "not offered; what shapes the sampling is rollout.temperature and rollout.top_p"),
    ],
)
def test_a_value_of_other_trainers_or_with_a_slip_is_told_with_ours(write, word, value, told):
    (problem,) = problems_of(write("{}"), [word, value])
    assert problem.endswith(told), problem


def test_every_value_of_other_trainers_leads_to_one_of_ours():
    for key, values in OTHER_VALUES.items():
        own = find_knob(key).type.split(" | ")
        assert set(values.values()) <= set(own), key
        assert not set(values) & set(own), key


def test_every_other_name_leads_to_a_knob_and_is_none_itself():
    own = {knob.key.rpartition(".")[2] for knob in knobs()}
    for name, keys in OTHER_NAMES.items():
        assert all(find_knob(key) for key in keys), keys
        assert name not in own
        assert nearest_keys(name) == list(keys)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("rollout.server_urls", "http://localhost:9", ["http://localhost:9"]),
        ("train.report_to", "tensorboard", ["tensorboard"]),
        ("share.transforms.kinds", "noise_10", ["noise_10"]),
        ("reward.functions", "{path: a.py:f, weight: 2}", [{"path": "a.py:f", "weight": 2.0}]),
    ],
)
def test_one_value_is_a_list_of_one(write, key, value, meant):
    outer, _, inner = key.rpartition(".")
    nested = f"{inner}: {value}"
    for part in reversed(outer.split(".")):
        nested = f"{part}: {{{nested}}}"
    for recipe in (load_recipe(write("{}"), [f"--{key}", value]), load_recipe(write(nested))):
        items = operator.attrgetter(key)(recipe)
        got = [item if isinstance(item, str) else item.model_dump() for item in items]
        assert str(got).replace(f"{write('{}').parent}/", "") == str(meant)


def test_text_where_a_list_is_wanted_shows_how_to_write_one(write):
    words = ["--rollout.server-urls", "http://a:1,http://b:2", "--reward.functions", "rewards.py:brevity"]
    assert problems_of(write("train: {report_to: 'wandb, trackio'}"), words) == [
        'recipe.yaml:1: train.report_to: must be list of (tensorboard | wandb | trackio), got "wandb, trackio"; write '
        "[wandb, trackio]",
        'command line: --rollout.server-urls: must be list of text, got "http://a:1,http://b:2"; write '
        "'[http://a:1, http://b:2]'",
        "command line: --reward.functions: must be list of {path: text, weight: float}, got "
        "\"rewards.py:brevity\"; write '[{path: rewards.py:brevity, weight: 1}]'",
    ]
    (problem,) = problems_of(write("{}"), ["--reward.functions", "[rewards.py:brevity]"])
    assert problem.endswith("; write '{path: rewards.py:brevity, weight: 1}'")


def test_problems_inside_list_items(write):
    path = write("reward:\n  functions:\n  - wieght: 1\n    path: a.py:f\n  - weight: 2\n  - path: length\n")
    assert problems_of(path) == [
        "recipe.yaml:3: reward.functions.0.wieght: unknown key; did you mean reward.functions.weight?",
        "recipe.yaml:5: reward.functions.1.path: is required and not given",
        'recipe.yaml:6: reward.functions.2.path: must be "file.py:function", such as "rewards.py:length_penalty", '
        'got "length"',
    ]


def test_a_duplicate_key_is_an_error_in_file_and_command_line(write):
    path = write("seed: 1\nshare:\n  std: plain\n  std: repeated\n")
    assert problems_of(path, ["--seed=1", "--seed", "2"]) == [
        "recipe.yaml:4: share.std: duplicate key; line 3 sets it too. Keep one",
        "command line: --seed: given twice; keep one",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--seed"], "command line: --seed: needs a value: --seed VALUE"),
        (["--seed", "--name", "a"], "command line: --seed: needs a value: --seed VALUE"),
        (["seed", "--name", "a"], "command line: seed: is no option; write --key value or --key=value"),
        (["--seed.x", "1"], "command line: --seed.x: unknown key; a recipe has name, output_dir, seed, "),
    ],
)
def test_malformed_overrides(write, words, problem):
    (found,) = problems_of(write("{}"), words)
    assert found.startswith(problem)


def test_an_override_below_a_value_does_not_hide_the_files_mistake(write):
    (problem,) = problems_of(write("seed: 1\nrollout: 3\n"), ["--rollout.temperature", "0.5"])
    assert "recipe.yaml:2: rollout: must be a mapping of keys, got 3" in problem


def test_a_contradiction_between_sections_names_the_keys(write):
    (problem,) = problems_of(write("train: {push_to_hub: true}\n"))
    assert problem == "recipe.yaml: train.push_to_hub needs train.hub_model_id (owner/name)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a\nshare: {std: plain\n", "recipe.yaml:3: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("name: a\n\tseed: 1\n", "recipe.yaml:2: not valid YAML: "),
        ("name: a\nseed: \x07\n", "recipe.yaml:2: not valid YAML: special characters are not allowed"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: not valid YAML: "),
        ("", "recipe.yaml: is empty; a recipe is a mapping of keys"),
        ("# only a comment\n", "recipe.yaml: is empty"),
        ("- name\n", 'recipe.yaml: holds ["name"]; a recipe is a mapping of keys'),
        ("name: &a [*a]\n", "recipe.yaml:1: not valid YAML: nested deeper than 16 levels"),
        ("name: !!python/name:os.system ''\n", "recipe.yaml:1: name: YAML tag tag:yaml.org,2002:python/name:os.system"),
        ("seed: !!int x\n", "recipe.yaml:1: seed: 'x' does not fit its YAML tag"),
        ("? [a]\n: 1\n", "recipe.yaml:1: a key must be text"),
    ],
)
def test_files_that_hold_no_recipe(write, text, problem):
    assert problems_of(write(text))[0].startswith(problem)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\n")
    assert problems_of(path) == ["recipe.yaml: not UTF-8 text (invalid start byte at byte 6)"]


def test_a_missing_file_lists_the_recipes_near_it(write, tmp_path, monkeypatch):
    write("share: {}", "digits.yaml")
    assert problems_of(tmp_path / "digit.yaml") == ["digit.yaml: no such file. Recipes near it: digits.yaml"]
    assert "is a folder" in problems_of(tmp_path)[0]
    monkeypatch.chdir(tmp_path)
    assert problems_of(tmp_path / "no" / "r.yaml") == [
        "r.yaml: no such file, and no *.yaml near it. "
        "Recipes to start from are in configs/ of the repository (git clone)"
    ]


# ---------------------------------------------------------------- dump and knobs

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
def test_empty_text_names_nothing(write, key):
    section, name = key.split(".")
    with pytest.raises(RecipeError, match=f"{key}: is empty; name one"):
        load_recipe(write(f"{section}: {{{name}: ''}}"))


@st.composite
def recipes(draw):
    return Recipe(
        name=draw(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]*", fullmatch=True)),
        output_dir=draw(_text.filter(lambda text: "\0" not in text)),
        seed=draw(st.integers(0, 2**32 - 1)),
        data=config.DataSection(
            train=draw(_text.filter(bool)),
            eval=draw(
                st.none()
                | _text.filter(bool)
                | st.sampled_from(["null", "1e-4", "no", "~", "010", "2026-01-01", "<<", "="])
            ),
            train_limit=draw(st.none() | st.integers(1, 10**20)),
            system_prompt=draw(st.none() | _text),
        ),
        model=ModelSection(lora=LoraSection(target_modules=draw(_text | st.lists(_text, max_size=3)))),
        share=config.ShareSection(transforms=config.TransformSection(probability=draw(st.floats(0, 1)))),
        train=config.TrainSection(learning_rate=draw(st.floats(0, exclude_min=True, allow_infinity=False))),
        reward=config.RewardSection(
            functions=[
                config.RewardFunctionSection(
                    path="/a b/c:d.py:f", weight=draw(st.floats(allow_nan=False, allow_infinity=False))
                )
            ]
        ),
    )


@pytest.mark.parametrize("mark", list("\x85\u2028\u2029\x0b\x0c\x1c\ufeff\t\r\n"), ids=ascii)
@pytest.mark.parametrize("text", ["{}", "a{}b", "a {} b", "{}{}", "a\n{}", "{}: no"])
def test_every_line_break_of_a_text_survives(tmp_path, mark, text):
    prompt = text.format(mark, mark)
    recipe = config.Recipe(name="a", data=config.DataSection(train="x", system_prompt=prompt))
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(path).data.system_prompt == prompt


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipes())
def test_a_dumped_recipe_loads_to_an_equal_one(tmp_path, recipe):
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(path) == recipe


def test_a_dumped_recipe_writes_every_knob(write):
    path = write(dump_recipe(Recipe()))
    data = yaml.safe_load(path.read_text())
    for knob in knobs():
        value = data
        for part in knob.key.split("."):
            value = value[part]
        assert value == knob.default


def test_knobs_say_name_type_default_and_meaning():
    knob = find_knob("share.num_variants")
    assert (knob.name, knob.key, knob.section) == ("share.num-variants", "share.num_variants", "share")
    assert (knob.type, knob.default) == ("int >= 1", 2)
    assert knob.doc == "m, ways of asking each problem, the original included (paper: 2)."
    assert find_knob("train.save_rollouts").type == "int >= 1 | null"
    assert find_knob("reward.functions").type == "list of {path: text, weight: float}"
    assert sections()["share.transforms"].startswith("Online image transforms")


def test_every_knob_can_be_set_to_its_default_from_the_command_line(write):
    words = [
        f"--{knob.name}={knob.default if knob.takes_text and knob.default else json.dumps(knob.default)}"
        for knob in knobs()
    ]
    assert load_recipe(write("{}"), words) == Recipe()


def test_reading_recipes_imports_nothing_heavy():
    code = (
        "import sys, sharevl_lite.recipes as r, sharevl_lite.knobs as k; k.knobs();"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_a_number_must_be_finite(write, value):
    (problem,) = problems_of(write(f"train:\n  learning_rate: {value}\n"))
    assert problem.startswith("recipe.yaml:2: train.learning_rate: must be float > 0")


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", ""])
def test_a_name_stays_within_the_output_folder(write, name):
    assert "name" in problems_of(write(f"name: '{name}'\n"))[0]
