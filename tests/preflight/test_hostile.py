"""A model folder from a stranger: nothing in it is run, and what cannot be used is one line."""

import json
import pickle
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import BridgegardenError, ModelError
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.preflight.models import load_tokenizer
from bridgegarden.run.models import load_model
from bridgegarden.terminal import one_line
from tests.tiny import save_tiny, tiny_model

PLANT = "import os; os.mkdir('planted')\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A good model; the working directory is where ``planted`` would be."""
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "model", tiny_model("llama", 264))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reference(folder) -> ModelReference:
    return ModelReference(role="student", model=str(folder))


def refusal(work: Callable[[], object]) -> str:
    """The one line with which `work` is refused; empty if it is not."""
    try:
        work()
    except BridgegardenError as error:
        return one_line(str(error))
    return ""


class Planted:
    def __reduce__(self):
        import os

        return os.mkdir, ("planted",)


def test_code_beside_a_model_is_never_run(folder, tmp_path):
    """In the model's, the configuration's, the tokenizer's and generation's own files, and in pickles beside them."""
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "custom_generate/generate"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(PLANT)
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},
    )
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Planted()))
    said = refusal(lambda: load_model(load_facts(reference(folder))))
    assert said == "" or "needs Python code from its own repository, which is never run here" in said
    assert not (tmp_path / "planted").exists()


def test_a_tokenizer_of_a_class_of_its_own_is_refused(folder, tmp_path):
    (folder / "tokenization_evil.py").write_text(PLANT)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    )
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError):
        load_tokenizer(reference(folder))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_kernel_from_the_hub_is_not_fetched(folder, key):
    edit(folder / "config.json", **{key: "somebody/kernel"})
    loaded = []
    said = refusal(lambda: loaded.append(load_model(load_facts(reference(folder)))))
    assert "never run here" in said or "/" not in loaded[0].config._attn_implementation


def test_weights_that_are_pickles_alone_are_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ModelError, match="its weights are pickle files"):
        load_facts(reference(folder))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('planted') }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ messages",
    ],
)
def test_a_template_that_reaches_beyond_its_messages_is_one_line(folder, tmp_path, template):
    (folder / "chat_template.jinja").write_text(template)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"teacher: {{model: {folder}}}\nstudent: {{model: {folder}}}\ndata: {{train: rows.jsonl}}\noutput: out\n"
    )
    result = CliRunner().invoke(cli, ["train", "recipe.yaml", "--audit"])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "planted").exists()


VALUES = (None, "", "evil", -1, 0, 1.5, 2**40, 10**30, [], {}, ["x"], {"a": 1}, True, "\x1b[2J", "../..")


@pytest.mark.parametrize(
    "key", ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "dtype", "architectures", "auto_map"]
)
def test_any_value_in_a_configuration_is_read_or_one_line(folder, key):
    config = (folder / "config.json").read_text()
    for value in VALUES:
        (folder / "config.json").write_text(config)
        edit(folder / "config.json", **{key: value})
        assert len(refusal(lambda: load_facts(reference(folder)))) < 1000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"a": ' * 5000])
def test_damaged_files_are_read_or_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    assert len(refusal(lambda: load_facts(reference(folder)))) < 1000
