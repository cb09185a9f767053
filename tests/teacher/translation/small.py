"""Small vocabularies of bytes and merges, and teachers over texts whose every probability can be summed."""

import itertools
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.translation.byte_view import ByteView

LETTERS = "abc"


def merged(*merges: str, end: str = "<end>", cut: str | None = None) -> PreTrainedTokenizerFast:
    """Every byte, and `merges` such as ``"a b"`` in order of rank, in GPT-2's letters; `cut` is a regex of pieces."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = [(left, right) for left, right in (merge.split() for merge in merges)]
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if cut is None:
        backend.pre_tokenizer = bytes_alone
    else:
        pieces = pre_tokenizers.Split(Regex(cut), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_alone])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(end, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


def view(*merges: str, end: str = "<end>", cut: str | None = None) -> ByteView:
    """What its tokens write."""
    return ByteView(merged(*merges, end=end, cut=cut))


def strings(longest: int) -> list[bytes]:
    """Every text of LETTERS of at most so many."""
    return ["".join(s).encode() for n in range(longest + 1) for s in itertools.product(LETTERS, repeat=n)]


class Texts:
    """A teacher that draws a whole text and writes it as its tokenizer does, with the end behind it."""

    def __init__(self, teacher: ByteView, weights: dict[bytes, float]) -> None:
        total = sum(weights.values())
        self.view = teacher
        self.prob = {text: weight / total for text, weight in weights.items()}
        self.ids = {text: ids(teacher, text) for text in weights}
        self.behind: dict[tuple[int, ...], list[bytes]] = {}
        for text, tokens in self.ids.items():
            for place in range(len(tokens)):
                self.behind.setdefault(tuple(tokens[:place]), []).append(text)

    def following(self, written: Sequence[int], covers: bytes = b"") -> dict[bytes, float]:
        """What it writes behind `written` and `covers`, given that its next token writes `covers` and more."""
        found = {}
        for text in self.behind[tuple(written)]:
            goes_on = self.ids[text][len(written) :]
            next_token = self.view.tokens[goes_on[0]]
            if next_token.startswith(covers) and len(next_token) > len(covers):
                found[self.view.join(goes_on)[len(covers) :]] = self.prob[text]
        total = sum(found.values())
        return {text: prob / total for text, prob in found.items()}

    def signal(self, text: bytes, top_k: int | None = None) -> TeacherSignal:
        """What it says before each token of `text`, in float64."""
        tokens = self.ids[text]
        rows = torch.zeros(len(tokens), len(self.view), dtype=torch.float64)
        for place in range(len(tokens)):
            behind = self.behind[tuple(tokens[:place])]
            following = torch.tensor([self.ids[other][place] for other in behind])
            prob = torch.tensor([self.prob[other] for other in behind], dtype=torch.float64)
            rows[place].index_add_(0, following, prob)
        logp = (rows / rows.sum(-1, keepdim=True)).log()
        signal = TeacherSignal.from_logits(logp, top_k)
        return signal.with_labels(logp, torch.tensor(tokens))


def ids(of: ByteView, text: bytes) -> list[int]:
    """`text` and the end."""
    found = of.encode(text)
    assert found is not None
    assert of.end is not None
    return [*found, of.end]


class FirstTokensOf:
    """The true distribution of a student's next token, ``(V,)``, of texts that are drawn, each encoded once."""

    def __init__(self, student: ByteView) -> None:
        self.student = student
        self._encoded: dict[bytes, list[int]] = {}

    def __call__(self, following: dict[bytes, float], behind: Sequence[int] = ()) -> Tensor:
        """Of the texts `following`, each with its probability, that the student cuts so that `behind` comes first."""
        truth = torch.zeros(len(self.student), dtype=torch.float64)
        written = self.student.join(behind)
        for text, prob in following.items():
            whole = written + text
            if whole not in self._encoded:
                found = self.student.encode(whole)
                assert found is not None
                self._encoded[whole] = found
            cut = self._encoded[whole]
            if cut[: len(behind)] == list(behind):
                truth[cut[len(behind)]] += prob
        return truth / truth.sum()
