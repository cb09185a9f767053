import json
import re

import pytest

from bridgegarden.errors import ModelError
from bridgegarden.preflight import ModelReference, trial
from bridgegarden.preflight.models import load_tokenizer
from bridgegarden.preflight.trial import fault_of_template, fault_of_tokenizer
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

NESTED = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='x' * 4096) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ 'x' * 10**11 }}", "its chat template takes more than 1 GiB of memory for a few words."),
        ("{{ 'x'.center(10**11) }}", "its chat template takes more than 1 GiB of memory for a few words."),
        (NESTED, "its chat template takes more than 1 seconds for a few words."),
        ("{% break %}", None),
        ("{{ raise_exception('never') }}", None),
    ],
)
def test_a_template_that_knows_no_bounds_ends_a_copy_and_not_this_process(template, fault, monkeypatch):
    monkeypatch.setattr(trial, "CPU_SECONDS", 1)
    assert fault_of_template(with_template(template)) == fault


def test_a_text_that_doubles_and_doubles_ends_by_one_limit_or_the_other(monkeypatch):
    monkeypatch.setattr(trial, "CPU_SECONDS", 1)
    assert str(fault_of_template(with_template(DOUBLING))).startswith("its chat template takes more than 1 ")


def test_a_good_tokenizer_is_found_good():
    assert fault_of_tokenizer(tiny_tokenizer()) is None
    assert fault_of_template(tiny_tokenizer()) is None


def test_the_same_file_with_another_template_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "_harmless", set())
    file = tmp_path / "tokenizer.json"
    file.write_text(tiny_tokenizer().backend_tokenizer.to_str())
    assert fault_of_tokenizer(tiny_tokenizer(), file) is None
    fault = "its chat template takes more than 1 GiB of memory for a few words."
    assert fault_of_tokenizer(with_template("{{ 'x' * 10**11 }}"), file) == fault


def test_a_tokenizer_that_multiplies_text_is_refused_in_one_line(tmp_path, capfd):
    folder = save_tiny(tmp_path / "model", tiny_model("llama", 264))
    capfd.readouterr()
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    many = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 4000}
    state["normalizer"] = {"type": "Sequence", "normalizers": [many] * 3}
    path.write_text(json.dumps(state))
    line = f"student.model '{folder}': its tokenizer "
    with pytest.raises(ModelError, match=f"^{re.escape(line)}(takes|fails) .*a few words") as error:
        load_tokenizer(ModelReference(role="student", model=str(folder)))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("template", ["{% break %}", "{% continue %}", "{{ messages"])
def test_a_template_that_is_no_program_is_one_line(template):
    from bridgegarden.data import end_of_turn_ids

    with pytest.raises(ModelError, match=r"^tokenizer .*: its chat template refuses a question and an answer") as error:
        end_of_turn_ids(with_template(template))
    assert "\n" not in str(error.value)
