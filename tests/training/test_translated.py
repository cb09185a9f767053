"""A teacher with another tokenizer in training: loss and gradient against a reference from the definition."""

import math

import pytest
import torch

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.spec import CacheSpec, Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.translated import SHARES, TranslatedCache, TranslatedModel, as_read
from bridgegarden.teacher.translation.byte_view import LETTERS
from bridgegarden.training.batches import evened
from bridgegarden.training.on_policy import OnPolicy
from tests.teacher.test_translated import pair_of, read
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import ROWS, ones, threes
from tests.training.test_teacher_prompt import loss_and_gradient

SOFT = HybridObjective.preset("soft")
END = b"\xff"


def teacher():
    """Of as many tokens as its tokenizer, so that nothing of it is unknown, and sure enough to be learnt from."""
    model = tiny_model("llama", len(threes()), hidden_size=48, seed=1)
    model.get_output_embeddings().weight.data *= 40
    return model


def student(size=VOCABULARY):
    return tiny_model("qwen2", size, seed=2)


def bytes_of(tokenizer):
    """What each id writes: its letters as bytes, the end as one symbol, other special tokens nothing."""
    written = [b""] * len(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index == tokenizer.eos_token_id:
            written[index] = END
        elif index not in tokenizer.added_tokens_decoder:
            found = bytes(LETTERS[letter] for letter in token)
            written[index] = b"" if END in found else found  # a byte that no text has
    return written


def rendered(tokenizer, question):
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def texts():
    """Of each row what the teacher is asked and what it answers, then the student's, in each one's tokens."""
    found = []
    byte = {written: index for index, written in enumerate(bytes_of(tiny_tokenizer())) if written}
    for row in ROWS:
        theirs = [*threes()(row["answer"], add_special_tokens=False)["input_ids"], threes().eos_token_id]
        ours = [byte[bytes([value])] for value in row["answer"].encode()] + [byte[END]]
        found.append((rendered(threes(), row["question"]), theirs, rendered(tiny_tokenizer(), row["question"]), ours))
    return found


def by_definition(pupil, other, texts):
    """Mean over all bytes of all answers, the end among them, of the forward KL from the teacher's next byte; float64.

    The teacher's next byte, inside the token that it writes, is that of its tokens that begin with what is written of
    it, renormalised. Its special tokens are in the tail. What the student writes that is no byte is not learnt.
    """
    told, total, count = bytes_of(threes()), torch.zeros((), dtype=torch.float64), 0
    written = bytes_of(tiny_tokenizer())
    byte = {one: index for index, one in enumerate(written) if one}
    for asked, theirs, prompt, ours in texts:
        said = other(torch.tensor([asked + theirs])).logits[0].detach().softmax(-1)
        assert b"".join(told[i] for i in theirs) == b"".join(written[i] for i in ours)
        logq = pupil(torch.tensor([prompt + ours])).logits[0].log_softmax(-1)
        begins = [len(b"".join(told[i] for i in theirs[:n])) for n in range(len(theirs))]
        text = b"".join(told[i] for i in theirs)
        for place in range(len(ours)):
            count += 1
            at = len(b"".join(written[i] for i in ours[:place]))
            if not written[ours[place]]:
                continue
            number = max(n for n, begin in enumerate(begins) if begin <= at)
            inside = text[begins[number] : at]
            p = said[len(asked) - 1 + number]
            mass = {}
            for i, w in enumerate(told):
                if w.startswith(inside) and len(w) > len(inside):
                    following = byte[w[len(inside) : len(inside) + 1]]
                    mass[following] = mass.get(following, 0.0) + float(p[i])
            whole = sum(mass.values()) if inside else 1.0
            cells = list(mass)
            known = torch.tensor([mass[i] / whole for i in cells], dtype=torch.float64)
            q = logq[len(prompt) - 1 + place]
            rest = 1.0 - float(known.sum())
            total = total + (known * (known.log() - q[cells])).sum()
            if rest > 1e-9:
                total = total + rest * (math.log(rest) - torch.log1p(-q[cells].exp().sum()))
    return total / count


def built(folder, pair, *, k, **changes):
    """A cache of what the teacher says, in its own tokens."""
    spec = CacheSpec(
        teacher="tiny",
        revision=None,
        weights=None,
        dtype="float32",
        tokenizer=tokenizer_fingerprint(threes()),
        chat_template=chat_template_fingerprint(threes()),
        max_length=256,
        vocab_size=len(threes()),
        teacher_width=len(threes()),
        support=Support(k=k, **changes),
        exponents=(),
        bits=16,
    )
    rows = as_read(read(pair, tiny_tokenizer()), "train")
    build_cache(folder, OneTeacher(teacher, spec, batch_tokens=200), [rows], spec)
    return TeacherCache(folder)


@pytest.mark.parametrize("source", ["live", "padding-free", "cached"])
def test_loss_and_gradient_are_those_of_the_definition(make_trainer, tmp_path, source):
    pair = pair_of(threes(), tiny_tokenizer(), threshold=0.0)
    if source == "cached":
        given = TranslatedCache(built(tmp_path / "cache", pair, k=len(threes())), pair)
    else:
        given = TranslatedModel(LiveTeacher(teacher()), pair)
    trainer = make_trainer(
        SOFT,
        student=student(),
        teacher=given,
        train=read(pair, tiny_tokenizer()),
        max_length=256,
        shuffle_dataset=False,
        padding_free=source == "padding-free",
    )
    loss, gradient = loss_and_gradient(trainer)
    exact = student().double()
    want = by_definition(exact, teacher().double(), texts())
    want.backward()
    # A cached log-probability has 16 bits.
    tolerance = {"rtol": 2e-3, "atol": 1e-5} if source == "cached" else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(loss.double(), want.detach(), **tolerance)
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(gradient[name].double(), parameter.grad, **tolerance)


def test_where_too_little_is_known_the_token_of_the_text_is_learnt_alone(make_trainer):
    pair = pair_of(threes(), tiny_tokenizer(), threshold=1.0, tolerance=0.0)
    rows = read(pair, tiny_tokenizer())
    given = TranslatedModel(LiveTeacher(teacher(), top_k=2), pair)
    losses = {}
    for name, objective in (("soft", SOFT), ("hard", HybridObjective.preset("hard", hard_target="data"))):
        trainer = make_trainer(objective, student=student(), teacher=given, train=rows, max_length=256)
        losses[name] = loss_and_gradient(trainer)
        terms = trainer._log.means("train")
        assert terms["hard_only_share"] == 1.0
        assert terms["soft_weight"] == 0.0
    torch.testing.assert_close(losses["soft"], losses["hard"])


def test_training_logs_what_is_known_and_text_is_read_as_tokenised_rows_are(make_trainer):
    pair = pair_of(threes(), tiny_tokenizer())
    logs = []
    for rows in (read(pair, tiny_tokenizer()), _as_text()):
        given = TranslatedModel(LiveTeacher(teacher(), top_k=8), pair)
        trainer = make_trainer(
            HybridObjective.preset("confidence"),
            student=student(),
            teacher=given,
            train=rows,
            evaluate=rows,
            max_length=256,
        )
        trainer.train()
        logs.append((trainer.state.log_history[0], trainer.evaluate()))
    (log, evaluation), other = logs
    assert {name: log[name] for name in SHARES} == {name: other[0][name] for name in SHARES}
    assert log["loss"] == other[0]["loss"]
    assert sum(log[name] for name in SHARES[:3]) == pytest.approx(1)
    assert sum(log[name] for name in SHARES[3:]) == pytest.approx(1)
    assert 0 < log["hard_only_share"] < 1
    assert evaluation["eval_exact_mass"] == pytest.approx(other[1]["eval_exact_mass"])
    assert trainer.cost.teacher_tokens == 2 * sum(map(len, read(pair, tiny_tokenizer())["teacher_ids"]))


def _as_text():
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in ROWS
        ]
    )


def test_one_cache_serves_students_of_two_families_and_is_refused_to_others(make_trainer, tmp_path):
    pair = pair_of(threes(), tiny_tokenizer())
    cache = built(tmp_path / "cache", pair, k=8)
    losses = []
    for tokenizer in (tiny_tokenizer(), ones()):
        own = pair_of(threes(), tokenizer)
        trainer = make_trainer(
            SOFT,
            student=student(264 if tokenizer is not ones() else 400),
            teacher=TranslatedCache(cache, own),
            train=read(own, tokenizer),
            tokenizer=tokenizer,
            max_length=256,
        )
        losses.append(float(loss_and_gradient(trainer)[0]))
    assert all(map(math.isfinite, losses))
    refused = {"train": read(pair, tiny_tokenizer()), "teacher": TranslatedCache(cache, pair)}
    with pytest.raises(ConfigError, match=r"built with training.max_length 256, but it is now 64"):
        make_trainer(SOFT, student=student(), max_length=64, **refused)
    with pytest.raises(ModelError, match="student: its tokenizer has 259 tokens, of which the model knows only 200"):
        TranslatedCache(cache, pair).check_student(200, 256)
    rows = read(pair, tiny_tokenizer(), [{"question": "new", "answer": "rows"}])
    with pytest.raises(DataError, match=r"train data: 1 of 1 rows are not in it"):
        make_trainer(SOFT, student=student(), max_length=256, **(refused | {"train": rows}))
    other = TranslatedCache(cache, pair_of(ones(), tiny_tokenizer()))
    rows = read(other.pair, tiny_tokenizer())
    with pytest.raises(ModelError, match="built with tokenizer"):
        make_trainer(SOFT, student=student(), max_length=256, train=rows, teacher=other)


def test_what_cannot_be_done_with_two_tokenizers_is_refused(make_trainer, tmp_path):
    pair = pair_of(threes(), tiny_tokenizer())
    rows, live = read(pair, tiny_tokenizer()), TranslatedModel(LiveTeacher(teacher(), top_k=8), pair)
    with pytest.raises(ConfigError, match=r"^training.packing: rows with 'teacher_ids'"):
        make_trainer(SOFT, teacher=live, train=rows, packing=True, max_length=256)
    with pytest.raises(ConfigError, match=r"^objective: the teacher has another tokenizer"):
        make_trainer(HybridObjective(temperature=2.0), teacher=live, train=rows, max_length=256)
    drawn = TranslatedCache(built(tmp_path / "drawn", pair, k=8, kind="sampled"), pair)
    with pytest.raises(ConfigError, match="holds draws, which cannot be translated"):
        make_trainer(SOFT, teacher=drawn, train=rows, max_length=256)


def own_texts(trainer):
    """A batch that the student has answered, and each of its texts as :func:`texts` gives them."""
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    (batch,) = trainer._writer.answer([trainer.data_collator(rows)], 0, trainer._log.costs)
    found = []
    for index in range(len(rows)):
        parts = []
        for side in (batch["teacher_inputs"], batch):
            length = int(side["attention_mask"][index].sum())
            ids, labels = (side[name][index, :length].tolist() for name in ("input_ids", "labels"))
            first = next(at for at, label in enumerate(labels) if label != -100)
            assert labels[first:] == ids[first:]
            parts += [ids[:first], ids[first:]]
        found.append(tuple(parts))
    return batch, found


def test_what_the_student_writes_is_read_by_the_teacher_in_its_own_tokens_and_learnt_as_defined(make_trainer):
    pair = pair_of(threes(), tiny_tokenizer(), threshold=0.0)
    trainer = make_trainer(
        SOFT,
        student=student(),
        teacher=TranslatedModel(LiveTeacher(teacher()), pair),
        train=read(pair, tiny_tokenizer()),
        on_policy=OnPolicy(lmbda=1.0, max_new_tokens=24),
        max_length=256,
        shuffle_dataset=False,
    )
    batch, found = own_texts(trainer)
    assert [(asked, prompt) for asked, _, prompt, _ in found] == [(a, p) for a, _, p, _ in texts()]
    assert [ours for *_, ours in found] != [ours for *_, ours in texts()]
    # Not only bytes: special tokens and the byte that no text has are written, too, and teach nothing.
    written = bytes_of(tiny_tokenizer())
    assert any(written[i] == b"" for *_, ours in found for i in ours)
    loss = trainer.compute_loss(trainer.model, batch)
    exact = student().double()
    want = by_definition(exact, teacher().double(), found)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-4, atol=1e-6)
    trainer.model.zero_grad()
    loss.backward()
    want.backward()
    for name, parameter in trainer.model.named_parameters():
        exact_gradient = exact.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad.double(), exact_gradient, rtol=1e-4, atol=1e-6)


def test_of_its_own_text_the_student_learns_nothing_where_too_little_is_known(make_trainer):
    pair = pair_of(threes(), tiny_tokenizer(), threshold=1.0, tolerance=0.0)
    trainer = make_trainer(
        HybridObjective(risk_alpha=0.1),
        student=student(),
        teacher=TranslatedModel(LiveTeacher(teacher(), top_k=2), pair),
        train=read(pair, tiny_tokenizer()),
        on_policy=OnPolicy(lmbda=1.0, max_new_tokens=24),
        max_length=256,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["hard_only_share"] == 1.0
    assert first["loss"] == 0.0
    assert first["generated_tokens"] > 0


def test_rows_that_even_processes_out_and_a_streams_rows_are_read_too(make_trainer, tmp_path):
    pair = pair_of(threes(), tiny_tokenizer())
    cache = TranslatedCache(built(tmp_path / "cache", pair, k=8), pair)
    rows = read(pair, tiny_tokenizer())
    blank = evened(rows.select(range(3)), 5)
    parts = cache.collate([blank[4]])
    assert {len(part) for part in parts.values()} == {0}
    whole = cache.collate([blank[index] for index in range(5)])
    torch.testing.assert_close(whole, cache.collate([rows[index] for index in range(3)]), equal_nan=True)
    losses = []
    for data in (rows, _as_text().to_iterable_dataset()):
        live = TranslatedModel(LiveTeacher(teacher(), top_k=8), pair)
        trainer = make_trainer(SOFT, student=student(), teacher=live, train=data, max_length=256, max_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0])
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["aligned_share"] == losses[1]["aligned_share"]


def test_workers_of_the_data_loader_translate_and_a_resumed_run_goes_on_with_what_is_known(make_trainer, tmp_path):
    pair = pair_of(threes(), tiny_tokenizer())
    cache = TranslatedCache(built(tmp_path / "cache", pair, k=8), pair)
    rows = read(pair, tiny_tokenizer())
    settings = {"max_length": 256, "max_steps": 4, "logging_steps": 4, "per_device_train_batch_size": 2}
    history = []
    for workers in (0, 1):
        trainer = make_trainer(
            SOFT,
            student=student(),
            teacher=cache,
            train=rows,
            dataloader_num_workers=workers,
            output_dir=str(tmp_path / f"workers-{workers}"),
            save_strategy="steps",
            save_steps=3,
            **settings,
        )
        trainer.train()
        history.append(trainer.state.log_history[0])
    names = ("loss", *SHARES)
    assert [history[1][name] for name in names] == [history[0][name] for name in names]
    resumed = make_trainer(
        SOFT, student=student(), teacher=cache, train=rows, output_dir=str(tmp_path / "resumed"), **settings
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "workers-0" / "checkpoint-3"))
    again = resumed.state.log_history[0]
    assert [again[name] for name in names] == pytest.approx([history[0][name] for name in names], rel=1e-6)
