"""The finished model on the hub; nothing is sent anywhere here."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.train import train


class Hub:
    """Stands for the hub: remembers what it was asked."""

    def __init__(self, *, user: str = "ada", failures: int = 0) -> None:
        self.user, self.failures = user, failures
        self.calls: list[tuple[str, dict]] = []
        self.files: dict[str, str] = {}

    def __call__(self, *args, **kwargs):
        return self

    def whoami(self):
        return {"name": self.user}

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", {"repo": repo, **options}))

    def create_branch(self, repo, **options):
        self.calls.append(("create_branch", {"repo": repo, **options}))

    def upload_folder(self, *, repo_id, folder_path, **options):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host\nsome more")
        self.calls.append(("upload_folder", {"repo": repo_id, **options}))
        self.files = {path.name: path.read_text(errors="replace") for path in Path(folder_path).iterdir()}
        return f"https://huggingface.co/{repo_id}/commit/0"


@pytest.fixture
def hub(monkeypatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def test_the_finished_model_is_published_under_the_outputs_name_with_our_card(write_recipe, tmp_path, hub):
    recipe = write_recipe(training={"push_to_hub": True, "max_steps": 2})
    train(load_recipe(recipe))
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    assert all(options["repo"] == "ada/out" for _, options in hub.calls)
    assert hub.files["README.md"] == (tmp_path / "out" / "model" / "README.md").read_text()
    assert "# Distilled model" in hub.files["README.md"]
    assert 'from_pretrained("ada/out")' in hub.files["README.md"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
    assert "training_args.bin" not in hub.files
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["published"] == "https://huggingface.co/ada/out/commit/0"
    train(load_recipe(recipe))
    assert len(hub.calls) == 2


def test_the_recipe_says_name_branch_and_who_sees_it(write_recipe, hub):
    settings = {"hub_model_id": "lab/small", "hub_private_repo": True, "hub_revision": "first"}
    train(load_recipe(write_recipe(training={"push_to_hub": True, "max_steps": 1, **settings})))
    assert hub.calls[0] == ("create_repo", {"repo": "lab/small", "private": True, "exist_ok": True})
    assert hub.calls[1] == ("create_branch", {"repo": "lab/small", "branch": "first", "exist_ok": True})
    assert hub.calls[2][1]["revision"] == "first"


def test_a_hub_that_fails_in_the_end_keeps_the_model_and_is_asked_again(write_recipe, tmp_path, hub):
    hub.failures = 1
    recipe = load_recipe(write_recipe(training={"push_to_hub": True, "max_steps": 1}))
    with pytest.raises(ConfigError, match=r"is finished, but could not be published as ada/out \(no route to host\)"):
        train(recipe)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    train(recipe)
    assert hub.files


def test_nobody_logged_in_is_said_before_anything_is_loaded(write_recipe, tmp_path, hub, monkeypatch):
    def nobody():
        raise LocalTokenNotFoundError("Token is required, but no token found.")

    monkeypatch.setattr(hub, "whoami", nobody)
    recipe = load_recipe(write_recipe(training={"push_to_hub": True, "max_steps": 1}))
    with pytest.raises(ConfigError, match=r"could not be published in the end \(Token is required.*hf auth login"):
        train(recipe)
    assert not (tmp_path / "out").exists()


def test_without_being_asked_nobody_is(write_recipe, hub, monkeypatch):
    monkeypatch.setattr(hub, "whoami", pytest.fail)
    train(load_recipe(write_recipe(training={"max_steps": 1})))
    assert not hub.calls
