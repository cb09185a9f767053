import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.data import Source
from bridgegarden.errors import ConfigError
from bridgegarden.recipe import (
    DataSection,
    LoraSection,
    ObjectiveSection,
    Recipe,
    StudentSection,
    TeacherSection,
    TrainingSection,
)
from bridgegarden.recipe.training import EarlyStoppingSection
from bridgegarden.recipe.values import read_yaml
from bridgegarden.training.on_policy import OnPolicy

TOLD = {"model": "t", "prompt": {"system": "S"}}
MIXED = {"mix": {"a": 0.7, "b": 0.3}, "of": {"a": {"model": "t"}, "b": {"model": "u", "dtype": "float32"}}}
BY_ROW = {"by": "source", "of": {"a": {"model": "t", "cache": "c"}, "b": {"model": "u", "cache": "d"}}}
SMALLEST = {"teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "rows.jsonl"}, "output": "runs/x"}

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
words = texts.filter(str.strip)
counts = st.none() | st.integers(1, 10**9)
shares = st.floats(0, 1)
dtypes = st.sampled_from(["auto", "bfloat16", "float16", "float32"])
teachers = st.builds(
    TeacherSection,
    model=words,
    revision=st.none() | texts,
    dtype=dtypes,
    device=st.none() | words,
    top_k=counts,
    cache=st.none() | words,
)
loras = st.builds(
    LoraSection,
    r=st.integers(1, 512),
    lora_alpha=st.floats(1e-3, 1e6),
    lora_dropout=st.floats(0, 0.99),
    target_modules=words | st.lists(words, min_size=1, max_size=3).map(tuple),
)
students = st.builds(StudentSection, model=words, dtype=dtypes, lora=st.none() | loras)
columns = st.sampled_from([{}, {"messages": "chat"}, {"prompt": "question", "completion": "no"}])
data = st.builds(lambda named, **rest: DataSection(**named, **rest), columns, train=words, limit=counts, eval=words)
soft_weights = st.one_of(
    st.none(),
    shares,
    st.sampled_from(["static", "confidence", "entropy", "curriculum"]),
    st.builds(lambda gamma: {"rule": "entropy", "kind": "power", "gamma": gamma}, st.floats(0.01, 0.99)),
    st.builds(lambda maximum: {"rule": "curriculum", "maximum": maximum}, shares),
)
objectives = st.builds(
    ObjectiveSection,
    preset=st.none() | st.sampled_from(["hard", "soft", "risk_guided"]),
    divergence=st.just("jensen_shannon"),
    divergence_options=st.none() | st.builds(lambda beta: {"beta": beta}, shares),
    soft_weight=soft_weights,
    hard_target=st.none() | st.sampled_from(["data", "teacher_argmax"]),
    temperature=st.none() | st.floats(1e-3, 1e3),
    risk_alpha=st.none() | st.floats(0, 1e3),
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 1),
        "max_steps": st.just(-1) | st.integers(1, 10**6),
        "report_to": st.sampled_from(["none", ["tensorboard", "wandb"]]),
        "run_name": texts,
        "lr_scheduler_type": st.sampled_from(["linear", "cosine"]),
        "lr_scheduler_kwargs": st.dictionaries(texts, st.floats(-1, 1) | texts | st.booleans(), max_size=3),
        "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
        "include_num_input_tokens_seen": st.sampled_from(["no", "all", True, False]),
    },
)
on_policies = st.builds(
    OnPolicy, lmbda=shares, temperature=st.just(0.0) | st.floats(1e-3, 1e3), max_new_tokens=st.integers(1, 10**5)
)
on_the_data = st.builds(
    Recipe,
    teacher=teachers,
    student=students,
    data=data,
    objective=objectives,
    training=st.builds(TrainingSection, arguments=arguments),
    output=words.map(Path),
)
by_the_student = st.builds(
    Recipe,
    teacher=st.builds(TeacherSection, model=words),
    student=students,
    data=data,
    on_policy=on_policies,
    output=words.map(Path),
)
recipes = on_the_data | by_the_student


@given(recipes)
def test_a_recipe_goes_through_its_tree_and_its_text_unchanged(recipe):
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(read_yaml(recipe.to_yaml(), "test")) == recipe
    assert Recipe.from_dict(recipe.to_dict()).to_yaml() == recipe.to_yaml()


def test_several_sources_keep_their_weights_and_splits_through_a_file():
    given = [{"path": "a.jsonl", "weight": 2}, {"path": "hub/set", "weight": 0.5, "split": "dev"}]
    recipe = Recipe.from_dict({**SMALLEST, "data": {"train": given, "split": "train[:9]"}})
    assert recipe.data.sources == (
        Source(path="a.jsonl", weight=2.0, split="train[:9]"),
        Source(path="hub/set", weight=0.5, split="dev"),
    )
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["data"]["train"] == given
    plain = Recipe.from_dict({**SMALLEST, "data": {"train": ["a.jsonl", "b.jsonl"]}})
    assert [source.path for source in plain.data.sources] == ["a.jsonl", "b.jsonl"]
    assert yaml.safe_load(plain.to_yaml())["data"]["train"] == ["a.jsonl", "b.jsonl"]


def test_a_recipe_is_readable_by_any_yaml_reader_and_picklable():
    recipe = Recipe.from_dict({**SMALLEST, "training": {"learning_rate": 1e-5, "run_name": "no"}})
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_dict()
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_early_stopping_stands_among_the_arguments_and_goes_through_its_tree():
    tree = {**SMALLEST, "data": {"train": "rows.jsonl", "eval": "held.jsonl"}}
    recipe = Recipe.from_dict({**tree, "training": {"early_stopping": {"patience": 2}, "max_steps": 5}})
    assert recipe.training.early_stopping == EarlyStoppingSection(patience=2)
    assert recipe.to_dict()["training"]["early_stopping"] == {"patience": 2, "threshold": 0.0}
    assert recipe.to_dict()["training"]["max_steps"] == 5
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict({**tree, "training": {"early_stopping": {}}}).training.early_stopping is not None
    assert Recipe.from_dict({**tree, "training": {"early_stopping": None}}).training.early_stopping is None


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"early_stopping": {"patience": 0}}, r"training\.early_stopping\.patience must be >= 1, got 0"),
        ({"early_stopping": {"threshold": -0.1}}, r"training\.early_stopping\.threshold must be >= 0, got -0\.1"),
        ({"early_stopping": {"patients": 2}}, r"training\.early_stopping: unknown key 'patients'.*'patience'"),
        ({"early_stopping": 3}, r"training\.early_stopping: expected a mapping"),
        (
            {"early_stopping": {}, "eval_strategy": "no"},
            r"it looks at evaluations, and training\.eval_strategy is 'no'",
        ),
        ({"metric_for_best_model": "eval_los"}, r"training\.metric_for_best_model: unknown name.*Known: .*loss"),
        ({"metric_for_best_model": "free_running_loss"}, r"metric_for_best_model: unknown name 'free_running_loss'"),
    ],
)
def test_what_early_stopping_cannot_look_at_is_refused(training, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**SMALLEST, "data": {"train": "rows.jsonl", "eval": "held.jsonl"}, "training": training})


def test_early_stopping_needs_rows_to_evaluate_on():
    with pytest.raises(ConfigError, match=r"training\.early_stopping: it looks at evaluations; set data\.eval"):
        Recipe.from_dict({**SMALLEST, "training": {"early_stopping": {}}})


def test_the_loss_kernel_stands_among_the_arguments_and_goes_through_its_tree():
    recipe = Recipe.from_dict({**SMALLEST, "training": {"loss_kernel": "triton", "max_steps": 5}})
    assert recipe.training.loss_kernel == "triton"
    assert "loss_kernel" not in recipe.training.arguments
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(SMALLEST).to_dict()["training"]["loss_kernel"] == "auto"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loss_kernel": "trition"}, r"training\.loss_kernel: unknown value 'trition'\. Did you mean 'triton'\?"),
        ({"loss_kernel": True}, r"training\.loss_kernel: "),
        ({"loss_kernels": "triton"}, r"training: unknown key 'loss_kernels'\. Did you mean 'loss_kernel'\?"),
    ],
)
def test_another_loss_kernel_is_refused(training, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**SMALLEST, "training": training})


def test_the_student_answers_only_where_the_recipe_says_so():
    assert "on_policy" not in Recipe.from_dict({**SMALLEST, "on_policy": None}).to_dict()
    recipe = Recipe.from_dict({**SMALLEST, "on_policy": {"lmbda": 1}})
    assert recipe.to_dict()["on_policy"] == {"lmbda": 1.0, "temperature": 1.0, "max_new_tokens": 128}


def test_only_teacher_student_data_and_output_are_needed():
    recipe = Recipe.from_dict(SMALLEST)
    assert recipe.objective == ObjectiveSection()
    assert recipe.training == TrainingSection()


def test_a_section_whose_lines_are_all_commented_out_is_left_out():
    assert Recipe.from_dict({**SMALLEST, "training": None, "objective": None}) == Recipe.from_dict(SMALLEST)


def test_what_a_tree_held_can_change_without_changing_the_recipe():
    kwargs = {"a": 1.0}
    recipe = Recipe.from_dict({**SMALLEST, "training": {"lr_scheduler_kwargs": kwargs}})
    kwargs["a"] = 2.0
    assert recipe.training.arguments["lr_scheduler_kwargs"] == {"a": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teecher": {}}, r"^recipe: unknown key 'teecher'. Did you mean 'teacher'\?"),
        ({"teacher": None}, r"^teacher: expected a mapping \(key: value\), got nothing"),
        ({"teacher": {}}, r"^teacher: key 'model' is missing"),
        ({"teacher": {"model": " "}}, r"^teacher.model is empty"),
        ({"teacher": {"model": "t", "cache": ""}}, r"^teacher.cache is empty"),
        ({"teacher": {"model": "t", "top_k": 0}}, r"^teacher.top_k must be >= 1, got 0"),
        ({"teacher": {"model": "t", "dtype": "bf16"}}, r"^teacher.dtype: unknown value 'bf16'. .*bfloat16"),
        ({"teacher": {"model": "t", "revision": 1234567}}, r'^teacher.revision: expected text .*in quotes: "1234567"'),
        ({"student": {"model": "s", "lora": {"rank": 8}}}, r"^student.lora: unknown key 'rank'"),
        ({"student": {"model": "s", "lora": {"r": 0}}}, r"^student.lora.r must be >= 1"),
        ({"student": {"model": "s", "lora": {"lora_alpha": 0}}}, r"^student.lora.lora_alpha must be > 0"),
        ({"student": {"model": "s", "lora": {"lora_dropout": 1}}}, r"^student.lora.lora_dropout must be in \[0, 1\)"),
        ({"student": {"model": "s", "lora": {"target_modules": []}}}, r"^student.lora.target_modules is empty"),
        ({"data": {"train": "x", "prompt": "q"}}, r"^data: 'prompt' names a column but 'completion' does not"),
        ({"data": {"train": "x", "completion": "a"}}, r"^data: 'completion' names a column but 'prompt' does not"),
        (
            {"data": {"train": "x", "messages": "m", "prompt": "q", "completion": "a"}},
            r"^data: of 'messages', 'prompt' and 'text' more than one",
        ),
        ({"data": {"train": "x", "limit": 0}}, r"^data.limit must be >= 1, got 0"),
        ({"data": {"train": "x", "eval": ""}}, r"^data.eval is empty"),
        ({"data": {"train": []}}, r"^data.train is an empty list"),
        ({"data": {"train": 3}}, r"^data.train: expected text or a list, got 3"),
        ({"data": {"train": {"path": "a"}}}, r"^data.train: expected text or a list, got {'path': 'a'}"),
        ({"data": {"train": ["a", ""]}}, r"^data.train\[1\]"),
        ({"data": {"train": ["a", 3]}}, r"^data.train\[1\]: expected text, got 3"),
        ({"data": {"train": [{"path": "a", "wieght": 1}]}}, r"^data.train\[0\]: unknown key 'wieght'. Did you mean"),
        ({"data": {"train": [{"weight": 1}]}}, r"^data.train\[0\]: key 'path' is missing"),
        ({"data": {"train": [{"path": "a", "weight": 0}]}}, r"^data.train\[0\].weight must be > 0, got 0.0"),
        ({"data": {"train": [{"path": "a", "weight": 1}, "b"]}}, r"^data.train\[1\].weight is missing"),
        ({"data": {"train": ["a", "b"], "seed": 1}}, r"^data.seed: draws rows of sources that have weights"),
        ({"data": {"train": "a", "seed": 1}}, r"^data.seed: draws rows of sources that have weights"),
        ({"data": {"train": [{"path": "a", "weight": 1}], "seed": -1}}, r"^data.seed: must be >= 0, got -1"),
        ({"objective": {"temprature": 1}}, r"^objective: unknown key 'temprature'. Did you mean 'temperature'\?"),
        ({"objective": "risk_guided"}, r"^objective: expected a mapping \(key: value\), got 'risk_guided'"),
        ({"on_policy": {}}, r"^on_policy: key 'lmbda' is missing"),
        ({"on_policy": {"lmbda": 1, "lambda": 1}}, r"^on_policy: unknown key 'lambda'. Did you mean 'lmbda'\?"),
        ({"on_policy": {"lmbda": 2}}, r"^on_policy.lmbda must be in \[0, 1\], got 2.0"),
        (
            {"on_policy": {"lmbda": 1}, "teacher": {"model": "t", "cache": "c"}},
            r"^on_policy: .*leave out teacher.cache",
        ),
        ({"on_policy": {"lmbda": 1}, "objective": {"hard_target": "data"}}, r"^on_policy: .*Use 'teacher_argmax'"),
        ({"on_policy": {"lmbda": 1}, "training": {"packing": True}}, r"^on_policy: .*Set training.packing and"),
        ({"teacher": {"mix": {"a": 1}}}, r"^teacher.mix: goes with teacher.of, which is missing"),
        ({"teacher": {**MIXED, "model": "t"}}, r"^teacher.model: does not go with teacher.mix"),
        ({"teacher": {**MIXED, "server": "http://x"}}, r"^teacher.server: does not go with teacher.mix"),
        ({"teacher": {**MIXED, "dtype": "float32"}}, r"^teacher.dtype: .* each of teacher.of has its own"),
        ({"teacher": {**MIXED, "mix": {"a": 0.7, "b": 0.2}}}, r"^teacher.mix: .* got a: 0.7, b: 0.2, .* sum to 0.9"),
        ({"teacher": {**MIXED, "mix": {"a": 1.5, "b": -0.5}}}, r"^teacher.mix: weights must be positive"),
        ({"teacher": {**MIXED, "mix": {"a": 0.5, "c": 0.5}}}, r"^teacher.mix: unknown name 'c'"),
        ({"teacher": {"mix": {"a": 1}, "of": MIXED["of"]}}, r"^teacher.of.b: has no weight in teacher.mix"),
        ({"teacher": {"mix": {"a": 1}, "of": {"a": {"model": "t"}}}}, r"^teacher.mix: a mixture is of two teachers"),
        ({"teacher": {**MIXED, "of": {"a": {}, "b": {}}}}, r"^teacher.of.a: key 'model' is missing"),
        ({"teacher": {**MIXED, "of": BY_ROW["of"]}}, r"^teacher.of.a.cache: a mixture has one cache; .* teacher.cache"),
        ({"teacher": {**MIXED, "by": "source"}}, r"^teacher.by: gives every row one teacher, and teacher.mix has all"),
        ({"teacher": {"by": "source"}}, r"^teacher.by: goes with teacher.of, which is missing"),
        ({"teacher": {"of": BY_ROW["of"]}}, r"^teacher.of: goes with teacher.mix or teacher.by, which is missing"),
        ({"teacher": {"by": "source", "of": {}}}, r"^teacher.of: names no teacher"),
        ({"teacher": {**BY_ROW, "by": " "}}, r"^teacher.by is empty"),
        *(
            ({"teacher": {**BY_ROW, name: value}}, rf"^teacher.{name}: does not go with teacher.by")
            for name, value in (
                ("model", "t"),
                ("revision", "main"),
                ("device_map", "auto"),
                ("gguf_file", "a.gguf"),
                ("server", "http://x"),
                ("only_cache", True),
                ("dtype", "float32"),
            )
        ),
        ({"teacher": {**BY_ROW, "cache": "c"}}, r"^teacher.cache: with teacher.by each teacher has its own"),
        ({"teacher": {**BY_ROW, "together": True}}, r"^teacher.of.a.cache: with teacher.together nothing is kept"),
        ({"teacher": {**MIXED, "together": True}}, r"^teacher.together: goes with teacher.by, which is missing"),
        (
            {"teacher": {**BY_ROW, "of": {**BY_ROW["of"], "b": {"model": "u", "cache": "c"}}}},
            r"^teacher.of.b.cache: is the folder of teacher.of.a, too",
        ),
        (
            {"teacher": BY_ROW, "data": {"train": "x", "eval": "y"}, "free_running": {}},
            r"^free_running: .*teacher.by: each of several teachers judges rows of its own",
        ),
        ({"teacher": BY_ROW, "on_policy": {"lmbda": 1}}, r"^on_policy: .* Set teacher.together to true"),
        ({"teacher": {**MIXED, "of": {"a": {"modle": "x"}}}}, r"^teacher.of.a: unknown key 'modle'"),
        (
            {"teacher": MIXED, "data": {"train": "x", "eval": "y"}, "free_running": {}},
            r"^free_running: .*teacher.mix: a mixture is asked about the rows' answers alone",
        ),
        (
            {"teacher": {**MIXED, "cache": "c"}, "on_policy": {"lmbda": 1}},
            r"^on_policy: .*leave out teacher.cache",
        ),
        ({"teacher": {**TOLD, "prompt": {}}}, r"^teacher.prompt: changes nothing"),
        (
            {"teacher": {**TOLD, "prompt": {"sufix": "x"}}},
            r"^teacher.prompt: unknown key 'sufix'. Did you mean 'suffix'",
        ),
        ({"teacher": TOLD, "training": {"packing": True}}, r"^teacher.prompt: .* Set training.packing to false"),
        ({"teacher": TOLD, "on_policy": {"lmbda": 1}}, r"^on_policy: with teacher.prompt .* leave one of the two out"),
        (
            {"teacher": TOLD, "data": {"train": "x", "eval": "y"}, "free_running": {}},
            r"^free_running: .* leave one of the two out",
        ),
        ({"teacher": TOLD, "data": {"train": "x", "text": "t"}}, r"^teacher.prompt: data.text is text with no prompt"),
        ({"training": [1]}, r"^training: expected a mapping \(key: value\), got \[1\]"),
        ({"training": {"arguments": {"max_steps": 1}}}, r"^training: unknown key 'arguments'"),
        ({"training": {"eval_strategy": "epoch"}}, r"^training.eval_strategy is 'epoch' but .* set data.eval"),
        ({"output": 3}, r"^output: expected a path, got 3"),
        ({"output": ""}, r"^output: expected a path, got ''"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(change, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**SMALLEST, **change})


def test_a_mixture_goes_through_its_tree_and_its_text_unchanged():
    recipe = Recipe.from_dict({**SMALLEST, "teacher": MIXED})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(read_yaml(recipe.to_yaml(), "it")) == recipe
    assert (recipe.teacher.kind, recipe.teacher.name) == ("mixed", "0.7 x t + 0.3 x u")
    assert Recipe.from_dict({**SMALLEST, "on_policy": {"lmbda": 1}, "teacher": MIXED}).on_policy is not None


def test_teachers_with_rows_of_their_own_go_through_the_tree_and_the_text_unchanged_and_each_is_one_teacher():
    recipe = Recipe.from_dict({**SMALLEST, "teacher": {**BY_ROW, "top_k": 8, "prompt": {"suffix": "S"}}})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(read_yaml(recipe.to_yaml(), "it")) == recipe
    assert (recipe.teacher.kind, recipe.teacher.name) == ("by_row_cached", "t (a), u (b)")
    one = Recipe.from_dict({**SMALLEST, "teacher": {**BY_ROW["of"]["b"], "top_k": 8, "prompt": {"suffix": "S"}}})
    assert recipe.teacher.member("b") == one.teacher


def test_a_recipe_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match=r"^recipe: expected a mapping \(key: value\), got \['x'\]"):
        Recipe.from_dict(["x"])


def test_a_teacher_on_a_server_is_a_recipe_too():
    teacher = {"server": "http://localhost:8000/v1", "model": "big"}
    recipe = Recipe.from_dict(SMALLEST | {"teacher": teacher})
    assert recipe.teacher.server == "http://localhost:8000/v1"
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 4),
        ("revision", "main"),
        ("device", "cpu"),
        ("device_map", "auto"),
        ("gguf_file", "a.gguf"),
        ("prompt", {"system": "S"}),
    ],
)
def test_what_does_not_go_with_a_server_is_refused(name, value):
    teacher = {"server": "http://localhost:8000/v1", "model": "big", name: value}
    with pytest.raises(ConfigError, match=rf"^teacher\.{name}: does not go with teacher.server"):
        Recipe.from_dict(SMALLEST | {"teacher": teacher})


@pytest.mark.parametrize("name", ["model.bin", "folder/model.gguf", "../model.gguf", " "])
def test_a_gguf_file_is_a_name_in_the_models_folder(name):
    with pytest.raises(ConfigError, match=r"^teacher\.gguf_file"):
        TeacherSection(model="big", gguf_file=name)


def test_a_teacher_is_on_one_device_or_spread_over_all():
    with pytest.raises(ConfigError, match=r"^teacher\.device: teacher\.device_map spreads"):
        TeacherSection(model="big", device="cuda:1", device_map="auto")
    with pytest.raises(ConfigError, match=r"teacher\.device_map"):
        Recipe.from_dict(SMALLEST | {"teacher": {"model": "big", "device_map": "everywhere"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": None}, r"teacher\.only_cache: there is no teacher.cache"),
        ({"server": "http://host:8000/v1"}, r"teacher\.server: does not go with teacher.only_cache"),
        ({"revision": "main"}, r"teacher\.revision: does not go with teacher.only_cache"),
        ({"top_k": 8}, r"teacher\.top_k: does not go with teacher.only_cache"),
    ],
)
def test_what_does_not_go_with_a_cache_alone_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(SMALLEST | {"teacher": {"model": "t", "cache": "c", "only_cache": True} | changes})


def test_rows_of_a_cache_alone_may_be_skipped_and_its_teacher_is_not_asked_about_other_texts():
    tree = SMALLEST | {"teacher": {"model": "t", "cache": "c", "only_cache": True}}
    recipe = Recipe.from_dict(tree | {"data": {"train": "rows", "skip_bad_rows": True}})
    assert (recipe.teacher.kind, recipe.teacher.is_cached, recipe.teacher.judges_any_text) == ("recorded", True, False)
    with pytest.raises(ConfigError, match="only_cache: a cache holds what a teacher said about its rows"):
        Recipe.from_dict(tree | {"data": {"train": "rows", "eval": "rows"}, "free_running": {}})
