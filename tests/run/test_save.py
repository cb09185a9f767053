import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from bridgegarden.run.save import ModelCard, Origin, code

CARD = ModelCard(
    student=Origin(name="Qwen/Qwen2.5-3B", is_local=False, revision="abc123"),
    teachers=((None, Origin(name="Qwen/Qwen2.5-7B-Instruct", is_local=False)),),
    data=(Origin(name="openai/gsm8k", is_local=False),),
    rows=7473,
    fingerprint="f00d",
    objective={"preset": "entropy", "fields": "divergence=forward_kl, temperature=1.0"},
    training={"max_steps": 100, "learning_rate": 1e-5},
    metrics={"loss": 1.25, "eval_loss": 1.5},
    versions={"torch": "2.13.0"},
    end_of_turn="<|im_end|>",
    has_chat_template=True,
)


def front_matter(card: ModelCard) -> dict:
    _, front, _ = card.render().split("---\n", 2)
    return yaml.safe_load(front)


def test_the_front_matter_is_what_the_hub_expects():
    data = HubCard(CARD.render()).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen2.5-3B"
    assert data["datasets"] == ["openai/gsm8k"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "distillation" in data["tags"]


def test_the_card_names_where_the_model_comes_from_how_it_was_made_and_how_it_scores():
    models = ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B", "abc123")
    data = ("openai/gsm8k", "7,473", "f00d")
    training = ("entropy", "temperature=1.0", "1e-05", "2.13.0")
    rest = ("1.25", "1.5", "<|im_end|>", "AutoModelForCausalLM.from_pretrained")
    for named in (*models, *data, *training, *rest):
        assert named in CARD.render()


def test_every_source_of_the_rows_is_named():
    origins = (*CARD.data, Origin(name="/home/somebody/rows.jsonl", is_local=True), Origin(name="a/b", is_local=False))
    card = dataclasses.replace(CARD, data=origins)
    assert front_matter(card)["datasets"] == ["openai/gsm8k", "a/b"]
    assert "`openai/gsm8k`, `rows.jsonl` (local), `a/b`" in card.render()


def test_a_local_folder_is_no_base_model_and_its_path_is_not_told():
    local = Origin(name="/home/somebody/secret/my-model", is_local=True)
    card = dataclasses.replace(CARD, student=local, teachers=((None, local),), data=(local,))
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)
    assert "somebody" not in card.render()
    assert "`my-model` (local)" in card.render()


def test_a_hostile_name_breaks_neither_yaml_nor_markdown():
    hostile = Origin(name="x`\n---\nlicense: mit\n| <script>alert(1)</script>", is_local=False)
    card = dataclasses.replace(CARD, student=hostile, data=(hostile,), training={"optim": "1 | 2\n3"})
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    lines = card.render().splitlines()
    assert lines.count("---") == 2
    assert "license: mit" not in lines
    assert "| optim | `1 \\| 2\\n3` |" in lines


def test_a_model_without_chat_template_is_used_without_one():
    assert "apply_chat_template" in CARD.render()
    assert "apply_chat_template" not in dataclasses.replace(CARD, has_chat_template=False).render()


def test_merged_adapters_are_mentioned():
    assert "merged" not in CARD.render()
    assert "merged" in dataclasses.replace(CARD, adapter=True).render()


@pytest.mark.parametrize(
    ("value", "text"), [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("\x1b[1m", "`\\x1b[1m`"), ("", "` `")]
)
def test_code_holds_any_text_on_one_line(value, text):
    assert code(value) == text
