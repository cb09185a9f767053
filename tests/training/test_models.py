"""Student and teacher before the first step: what they share, and what a cache must hold."""

import copy
from functools import partial

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import SequentialSampler

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import EntropyWeight
from bridgegarden.teacher.cache.reader import SIGNAL, TeacherCache
from bridgegarden.teacher.cache.spec import Support
from bridgegarden.teacher.live import LiveTeacher
from tests.objective.presets import MECHANISMS
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows

peft = pytest.importorskip("peft")


def lora(**options):
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)


def pair():
    return tiny_model("llama", 264, seed=2), tiny_model("llama", 264, seed=1)


def one_embedding(student, teacher):
    teacher.model.embed_tokens.weight = student.model.embed_tokens.weight


def one_storage(student, teacher):
    """Another Parameter, over the same numbers."""
    teacher.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.data[:200], requires_grad=False)
    teacher.config.vocab_size = 200


def half_a_storage(student, teacher):
    """Another Parameter, over numbers that begin elsewhere."""
    teacher.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.data[64:])


def one_layer(student, teacher):
    student.model.layers[0] = teacher.model.layers[0]


SHARING = {
    one_embedding: r"share weights \(model\.embed_tokens\.weight\)",
    one_storage: r"share weights \(lm_head\.weight\)",
    half_a_storage: r"share weights \(lm_head\.weight\)",
    one_layer: r"share layers \(model\.layers\.0 and \d+ more\)",
}


@pytest.mark.parametrize("share", SHARING)
def test_a_student_that_shares_with_its_teacher_is_refused_and_left_as_it_was(make_trainer, share):
    student, teacher = pair()
    share(student, teacher)
    with pytest.raises(ModelError, match=SHARING[share]):
        make_trainer(student=student, teacher=teacher)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("share", SHARING)
def test_a_teacher_that_was_frozen_before_is_refused_too(make_trainer, share):
    student, teacher = pair()
    share(student, teacher)
    with pytest.raises(ModelError, match=SHARING[share]):
        make_trainer(student=student, teacher=LiveTeacher(teacher))


@pytest.mark.parametrize("wrap", ["no adapters", "peft_config", "PeftModel", "PeftModel as both"])
def test_one_object_as_teacher_and_student_is_refused(make_trainer, wrap):
    model = tiny_model("llama", 264)
    options = {"peft_config": lora()} if wrap == "peft_config" else {}
    student = peft.get_peft_model(model, lora()) if wrap.startswith("PeftModel") else model
    teacher = student if wrap == "PeftModel as both" else model
    with pytest.raises(ModelError, match=r"teacher and student are one model.*Load the teacher a second time"):
        make_trainer(student=student, teacher=teacher, **options)


def test_adapters_may_stand_on_the_weights_that_the_teacher_reads(make_trainer):
    """Half the memory, and what a model learns is measured against what it was."""
    teacher = tiny_model("llama", 264)
    student = copy.deepcopy(teacher)
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        ours.data = theirs.data
    before = [parameter.clone() for parameter in teacher.parameters()]
    trainer = make_trainer(student=student, teacher=teacher, peft_config=lora(), max_steps=4, learning_rate=0.1)
    trainer.train()
    soft = [entry["soft_loss"] for entry in trainer.state.log_history if "soft_loss" in entry]
    assert soft[0] == pytest.approx(0, abs=1e-6)
    assert soft[-1] > 1e-4
    for now, then in zip(teacher.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_shared_weights_that_adapters_train_are_refused(make_trainer):
    student, teacher = pair()
    one_storage(student, teacher)
    teacher.lm_head.weight.data = student.lm_head.weight.data
    student = peft.get_peft_model(student, lora())
    student.get_output_embeddings().weight.requires_grad_()
    with pytest.raises(ModelError, match=r"share weights \(.*lm_head\.weight\)"):
        make_trainer(student=student, teacher=teacher)


def test_two_models_of_one_folder_do_not_share(make_trainer, tmp_path):
    tiny_model("llama", 264).save_pretrained(tmp_path / "model")
    trainer = make_trainer(student=str(tmp_path / "model"), teacher=str(tmp_path / "model"), train=token_rows(4))
    trainer.train()
    assert trainer.state.log_history[0]["soft_loss"] == pytest.approx(0, abs=1e-6)


K = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Caches of the same rows: the likeliest tokens, the whole vocabulary, draws; coarse and fine."""
    root = tmp_path_factory.mktemp("caches")
    supports = {"top": Support(k=K), "whole": Support(k=400), "draws": Support(kind="sampled", k=K)}
    return {
        (name, bits): build(root / f"{name}-{bits}", cache_spec(support, bits=bits))
        for name, support in supports.items()
        for bits in (8, 16)
    }


@pytest.fixture
def both(make_trainer, folders):
    """A trainer from a cache and one with the live teacher, alike in everything else."""

    def make(objective=None, *, kind="top", bits=16, **arguments):
        arguments = {"train": cache_rows(), "evaluate": cache_rows()} | arguments
        live = LiveTeacher(teacher(), top_k=None if kind == "whole" else K)
        cached = make_trainer(objective, teacher=TeacherCache(folders[kind, bits]), **arguments)
        return cached, make_trainer(objective, teacher=live, **arguments)

    return make


def gradients(trainer):
    """Loss and gradient of one batch."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.state.global_step, trainer.state.max_steps = 1, 10
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def live_gradients():
    """By objective and what is kept of the teacher: the same, however finely a cache is written."""
    return {}


@pytest.fixture
def assert_alike(make_trainer, folders, live_gradients):
    """Hold loss and gradient from a cache against those with the live teacher."""

    def check(name, objective, tolerance, *, bits, kind="top"):
        if (name, kind) not in live_gradients:
            live = LiveTeacher(teacher(), top_k=None if kind == "whole" else K)
            live_gradients[name, kind] = gradients(make_trainer(objective, teacher=live, train=cache_rows()))
        theirs, their_gradient = live_gradients[name, kind]
        ours, our_gradient = gradients(
            make_trainer(objective, teacher=TeacherCache(folders[kind, bits]), train=cache_rows())
        )
        assert ours == pytest.approx(theirs, rel=tolerance)
        assert (our_gradient - their_gradient).norm() <= tolerance * their_gradient.norm()

    return check


def test_a_cache_about_fewer_ids_than_the_tokenizer_has_is_refused(make_trainer, tmp_path):
    """Such as one that was built by counting the tokens of a tokenizer whose ids have a hole."""
    narrow = TeacherCache(build(tmp_path / "cache", cache_spec(vocab_size=VOCABULARY - 1)))
    with pytest.raises(ModelError, match=r"about the ids below 258 alone, and those of the tokenizer go up to 258"):
        make_trainer(teacher=narrow, train=cache_rows())


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 2e-2), (16, 2e-4)])
@pytest.mark.parametrize("kind", ["top", "whole"])
@pytest.mark.parametrize("preset", MECHANISMS)
def test_every_preset_is_what_it_is_with_the_live_teacher(assert_alike, preset, kind, bits, tolerance):
    assert_alike(preset, HybridObjective.preset(preset), tolerance, kind=kind, bits=bits)


OBJECTIVES = {
    **{name: HybridObjective(divergence=function) for name, function in DIVERGENCES.items() if name != "alpha_beta"},
    "alpha_beta": HybridObjective(divergence=partial(alpha_beta, alpha=0.7, beta=0.4)),
    "temperature": HybridObjective(temperature=2.0),
    "power entropy": HybridObjective(soft_weight=EntropyWeight(kind="power", gamma=0.1)),
    "data labels": HybridObjective.preset("risk_guided", hard_target="data"),
}


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 2e-2), (16, 5e-4)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_divergence_temperature_and_rule_is_what_it_is_with_the_live_teacher(assert_alike, name, bits, tolerance):
    assert_alike(name, OBJECTIVES[name], tolerance, bits=bits)


def positions_apart(cached, live, batch):
    """Positions of a batch, after making sure that the cache says there what the teacher says."""
    positions = SupervisedPositions.from_labels(batch["labels"])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "row", SIGNAL)}
    settings = {"vocab_size": VOCABULARY, "exponents": (0.5,)}
    ours = cached.teacher.at(positions, batch, **settings)
    theirs = live.at(positions, inputs, **settings)[0 : len(positions)]
    order = theirs.ids.argsort(1)
    assert (ours.ids == theirs.ids.gather(1, order)).all()
    torch.testing.assert_close(ours.logp, theirs.logp.gather(1, order), atol=1e-3, rtol=0)
    for name in ("entropy", "max_logp", "log_tail"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.tail_powers[0.5], theirs.tail_powers[0.5], atol=1e-4, rtol=1e-4)
    assert (ours.argmax == theirs.argmax).all()
    return len(positions)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_keeps_its_own_signal_through_permutations_packing_and_epochs(make_trainer, folders, packing, seed):
    cached = make_trainer(
        teacher=TeacherCache(folders["top", 16]),
        train=cache_rows().shuffle(seed=seed),
        packing=packing,
        max_length=64,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        seed=seed,
    )
    assert (len(cached.train_dataset) < 24) == packing
    live, orders = LiveTeacher(teacher(), top_k=K), []
    loader = cached.get_train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert sum(positions_apart(cached, live, batch) for batch in batches) > 24
        orders.append(torch.cat([batch["row"].flatten() for batch in batches]).tolist())
    assert orders[0] != orders[1]


def test_processes_of_a_distributed_run_get_the_signals_of_their_own_rows(make_trainer, folders):
    cached, live = (
        make_trainer(teacher=TeacherCache(folders["top", 16]), train=cache_rows()),
        LiveTeacher(teacher(), top_k=K),
    )
    rows = []
    for process in range(2):
        loader = torch.utils.data.DataLoader(
            cached.train_dataset.select_columns(["input_ids", "labels", "row"]),
            batch_size=3,
            shuffle=True,
            collate_fn=cached.data_collator,
            generator=torch.Generator().manual_seed(0),
        )
        own = prepare_data_loader(
            loader, device=torch.device("cpu"), num_processes=2, process_index=process, put_on_device=False
        )
        batches = list(own)
        assert sum(positions_apart(cached, live, batch) for batch in batches) > 0
        rows.append({int(row) for batch in batches for row in batch["row"].unique() if row >= 0})
    assert rows[0] | rows[1] == set(range(100, 124))


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("packing", [False, True])
def test_a_whole_training_with_evaluation_is_the_live_one(both, packing):
    settings = {"packing": packing, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_steps": 6}
    cached, live = both(HybridObjective.preset("risk_guided", hard_target="data"), bits=16, **settings)
    for trainer in (cached, live):
        trainer._get_train_sampler = lambda dataset=None, rows=trainer.train_dataset: SequentialSampler(rows)
        trainer.train()
    for name in ("loss", "soft_loss", "hard_loss", "risk_loss", "teacher_entropy", "captured_mass", "grad_norm"):
        assert history(cached, name) == pytest.approx(history(live, name), rel=1e-3), name
    ours, theirs = cached.evaluate(), live.evaluate()
    for name in ("eval_loss", "eval_soft_loss", "eval_teacher_entropy"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_workers_of_the_data_loader_read_the_cache(make_trainer, folders):
    plain, workers = (
        make_trainer(
            teacher=TeacherCache(folders["top", 8]),
            train=cache_rows(),
            dataloader_num_workers=count,
            dataloader_pin_memory=False,
        )
        for count in (0, 1)
    )
    for trainer in (plain, workers):
        trainer.train()
    assert history(workers, "loss") == history(plain, "loss")


def test_draws_train_towards_the_teacher(make_trainer, folders):
    cache = TeacherCache(folders["draws", 8])
    trainer = make_trainer(
        HybridObjective.preset("soft"), teacher=cache, train=cache_rows(), max_steps=30, learning_rate=5e-3
    )
    trainer.train()
    losses = history(trainer, "loss")
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"max_length": 32}, ConfigError, r"training.max_length 64, but it is now 32.*cache build RECIPE"),
        ({"objective": HybridObjective(temperature=3.0)}, ConfigError, r"the tail's sum of p\^0.333333"),
        ({"train": cache_rows(4, seed=9)}, DataError, r"train data: 4 of 4 rows are not in it \(row 100"),
        ({"evaluate": cache_rows(4, seed=9)}, DataError, r"eval data: 4 of 4 rows are not in it"),
        ({"student": tiny_model("llama", 200)}, DataError, "holds token id 247, but the student"),
        ({"train": cache_rows().to_iterable_dataset()}, ConfigError, "streamed data set cannot be paired with a cache"),
    ],
)
def test_what_the_cache_cannot_serve_is_refused_before_the_first_step(make_trainer, folders, change, error, match):
    settings = {"teacher": TeacherCache(folders["top", 8]), "train": cache_rows()} | change
    with pytest.raises(error, match=match):
        make_trainer(settings.pop("objective", None), **settings)
