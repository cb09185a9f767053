"""How servers score tokens that are there already, each in its own words: vLLM, SGLang, llama.cpp and TRL's.

All of them take token ids, so that both sides read the same tokens, and say what the model expected at a position: its
likeliest tokens there, and the token that stands there even if it is none of them. The forms are those of vLLM at
commit 030ea52 (``entrypoints/openai/completion/serving.py``), of SGLang's ``/generate`` in version 0.5
(``managers/tokenizer_manager.py``), of llama.cpp at 00dc805 (``tools/server``) and of TRL at f2cd577
(``scripts/vllm_serve.py``).
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

import msgspec

from bridgegarden.data import Conversation
from bridgegarden.errors import ServerError
from bridgegarden.teacher.foreign_values import EXCESS, LARGEST_ID, Unfit, items, mapping, short, shown, whole
from bridgegarden.teacher.scores import (
    ReadUsual,
    Row,
    Scores,
    not_listed,
    read_sglang,
    read_trl,
    read_vllm,
    vllm_row,
)
from bridgegarden.teacher.server_connection import ApiName, BadReply, Reply, error_text
from bridgegarden.teacher.server_logprobs import AS_ID
from bridgegarden.teacher.server_requests import Line, Refused, Server

WIDER = 16
"""By how much more tokens llama.cpp is asked for at a position where the data's token is not among the likeliest."""
UNSHAPED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""All of the distribution, whatever the server would do unasked."""


class Api(ABC):
    """A kind of server. What is asked of it goes through a :class:`~bridgegarden.teacher.server_requests.Line`."""

    name: ClassVar[ApiName]
    title: ClassVar[str]
    more: ClassVar[str]
    """What makes it list more tokens."""

    def __init__(self, server: Server, about: Mapping[str, Any]) -> None:
        """
        Args:
            server: with the address below which its own paths are.
            about: what it says of itself.
        """
        self.server, self.about = server, about
        self.prefix = "v1/" if server.base_url.rstrip("/").endswith("/v1") else ""

    @property
    def workers(self) -> int:
        """Requests that it takes at a time."""
        return self.server.concurrency

    @property
    @abstractmethod
    def says(self) -> str:
        """Its version and what it serves, in a few words."""

    @abstractmethod
    async def score(self, line: Line, ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        """What the model expected at `positions` of the text `ids`, each after all tokens before it.

        Args:
            line: to the server.
            ids: the text.
            positions: ascending, at least 1.
            k: tokens to list.

        Raises:
            Refused: the server does not say.
        """

    async def written(self, line: Line, ids: Sequence[int], most: int) -> list[tuple[int, float]] | None:
        """The model's own greedy continuation of `ids`, at most `most` tokens with the log-probabilities it gave them.

        None where the server does not say.
        """
        return None

    async def spelt(self, line: Line, ids: Sequence[int]) -> str | None:
        """`ids` as the server spells them; None where it does not say."""
        return None

    async def prompt_ids(self, line: Line, chat: Conversation) -> list[int] | None:
        """The ids that it would make of a conversation up to where the assistant speaks; None where it does not say."""
        return None


class Vllm(Api):
    """vLLM: ``prompt_logprobs`` of ``/v1/completions``."""

    name, title, more = "vllm", "vLLM", "start it with --max-logprobs {k} or more"

    @property
    def says(self) -> str:
        return f"vLLM {_word(self.about.get('version'))}"

    async def score(self, line: Line, ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        asked = self._content(ids) | {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": k}
        return await line.ask(f"{self.prefix}completions", asked, self.reader(ids, positions, k))

    def reader(self, ids: Sequence[int], positions: Sequence[int], k: int) -> Callable[[Reply], Scores]:
        """Reads the reply; see :meth:`score`."""
        return _read(lambda tree: self._scores(tree, ids, positions, k), _usual(read_vllm, ids, positions, k))

    def _scores(self, tree: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        given = _first(tree, "choices").get("prompt_logprobs")
        if given is None:
            raise Unfit("it holds no prompt_logprobs, so this server does not score tokens that are there already")
        given = _as_many(given, len(ids), "prompt_logprobs")
        rows = [vllm_row(given[at], ids[at], at) for at in positions]
        return Scores.of(rows, k, positions)

    async def written(self, line: Line, ids: Sequence[int], most: int) -> list[tuple[int, float]]:
        asked = {"max_tokens": most, "temperature": 0.0, "logprobs": 1}

        def read(tree: Mapping[str, Any]) -> list[tuple[int, float]]:
            given = mapping(_first(tree, "choices").get("logprobs"), "logprobs")
            tokens = items(given.get("tokens"), "tokens")
            logps = _as_many(given.get("token_logprobs"), len(tokens), "token_logprobs")
            return [(_named_id(token), _nats(logp)) for token, logp in zip(tokens, logps, strict=True)]

        return await line.ask(f"{self.prefix}completions", self._content(ids) | asked, _read(read))

    async def spelt(self, line: Line, ids: Sequence[int]) -> str | None:
        return await _said(line, "detokenize", {"model": self.server.model, "tokens": list(ids)}, "prompt")

    async def prompt_ids(self, line: Line, chat: Conversation) -> list[int] | None:
        text = chat.messages[0]["content"]
        asked = {"prompt": text} if chat.form == "text" else {"messages": list(chat.messages)}
        return await _ids_said(line, "tokenize", {"model": self.server.model, **asked})

    def _content(self, ids: Sequence[int]) -> dict[str, Any]:
        common = {"model": self.server.model, "prompt": list(ids), "return_tokens_as_token_ids": True}
        return common | UNSHAPED | {"repetition_penalty": 1.0}


class Sglang(Api):
    """SGLang: ``input_top_logprobs`` of ``/generate``."""

    name, title, more = "sglang", "SGLang", "it has no limit of its own; see what it says"

    @property
    def says(self) -> str:
        return f"SGLang {_word(self.about.get('version'))} with {_word(self.about.get('model_path'))}"

    async def score(self, line: Line, ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        # Nothing is said of the first token from there, so one more is asked for.
        start = positions[0] - 1
        asked = {"logprob_start_len": start, "top_logprobs_num": k, "sampling_params": {"max_new_tokens": 0}}
        return await line.ask("generate", self._content(ids, asked), self.reader(ids, positions, k))

    def reader(self, ids: Sequence[int], positions: Sequence[int], k: int) -> Callable[[Reply], Scores]:
        """Reads the reply; see :meth:`score`."""
        return _read(lambda tree: self._scores(tree, ids, positions, k), _usual(read_sglang, ids, positions, k))

    def _scores(self, tree: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        meta, start = mapping(tree.get("meta_info"), "meta_info"), positions[0] - 1
        if meta.get("input_token_logprobs") is None or meta.get("input_top_logprobs") is None:
            raise Unfit("it holds no input_token_logprobs and input_top_logprobs")
        tokens = _as_many(meta["input_token_logprobs"], len(ids) - start, "input_token_logprobs")
        tops = _as_many(meta["input_top_logprobs"], len(ids) - start, "input_top_logprobs")
        rows = []
        for at in positions:
            own, top = items(tokens[at - start], f"token {at}"), items(tops[at - start], f"token {at}")
            if own[1] != ids[at]:
                raise Unfit(f"token {at} is {shown(own[1])} there, and {ids[at]} was sent: it scores other ids")
            rows.append(Row([_id(entry[1]) for entry in top], [entry[0] for entry in top], own[0]))
        return Scores.of(rows, k, positions)

    async def written(self, line: Line, ids: Sequence[int], most: int) -> list[tuple[int, float]]:
        def read(tree: Mapping[str, Any]) -> list[tuple[int, float]]:
            meta = mapping(tree.get("meta_info"), "meta_info")
            entries = items(meta.get("output_token_logprobs"), "output_token_logprobs")
            return [(_id(entry[1]), _nats(entry[0])) for entry in entries]

        asked = {"sampling_params": {"max_new_tokens": most, "temperature": 0.0}}
        return await line.ask("generate", self._content(ids, asked), _read(read))

    async def spelt(self, line: Line, ids: Sequence[int]) -> str | None:
        asked = {"tokens": list(ids), "skip_special_tokens": False}
        return await _said(line, "detokenize", asked, "text")

    async def prompt_ids(self, line: Line, chat: Conversation) -> list[int] | None:
        if chat.form != "text":
            return None
        return await _ids_said(line, "tokenize", {"prompt": chat.messages[0]["content"]})

    def _content(self, ids: Sequence[int], asked: Mapping[str, Any]) -> dict[str, Any]:
        sampling = {"temperature": 1.0} | UNSHAPED | {"top_k": -1} | dict(asked["sampling_params"])
        return {"input_ids": list(ids), "return_logprob": True, **asked, "sampling_params": sampling}


class LlamaCpp(Api):
    """llama.cpp's server, which says nothing of a prompt's tokens: it is asked for one token after each prefix.

    The prefix stays in the slot of the worker, so that every position costs one token of decoding, as generating it
    would.
    """

    name, title, more = "llama.cpp", "llama.cpp", "it lists as many as are asked for, up to its vocabulary"

    @property
    def says(self) -> str:
        return f"llama.cpp {_word(self.about.get('build_info'))} with {_word(self.about.get('model_path'))}"

    @property
    def workers(self) -> int:
        slots = self.about.get("total_slots")
        return max(1, min(self.server.concurrency, slots)) if isinstance(slots, int) else 1

    async def score(self, line: Line, ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        rows = [await self._row(line, ids[:at], ids[at], k) for at in positions]
        try:
            return Scores.of(rows, k, positions)
        except Unfit as error:
            raise Refused(_unfit(error), error) from None

    async def _row(self, line: Line, before: Sequence[int], label: int, k: int) -> Row:
        """The `k` likeliest tokens after `before`; asked again for more until `label` is among them."""
        wanted, kept = k, None
        while True:
            # It lists nothing beside a token that is part of a character. What is written is of no use here, and what
            # is listed is from before any bias: so it writes a letter.
            asked = self._content(line, before, wanted) | {"logit_bias": [["a", 1e6]]}
            ids, logps = await line.ask("completion", asked, _read(_after(len(before))))
            kept = kept or (ids[:k], logps[:k])
            if label in ids:
                return Row(*kept, logps[ids.index(label)])
            if len(ids) < wanted:
                raise Refused(f"token {label} is none of the {len(ids)} that the server's model has.")
            wanted *= WIDER

    def _content(self, line: Line, before: Sequence[int], wanted: int, most: int = 1) -> dict[str, Any]:
        return {
            "prompt": list(before),
            "n_predict": most,
            "n_probs": wanted,
            "temperature": 0.0,
            "post_sampling_probs": False,
            "cache_prompt": True,
            "id_slot": line.number,
        }

    async def written(self, line: Line, ids: Sequence[int], most: int) -> list[tuple[int, float]]:
        def read(tree: Mapping[str, Any]) -> list[tuple[int, float]]:
            entries = items(tree.get("completion_probabilities"), "completion_probabilities")
            said = [(_id(mapping(entry, "entry").get("id")), _nats(entry.get("logprob"))) for entry in entries]
            # Of the tokens of one character it lists the last alone: what follows them is not what was written.
            tokens = items(tree.get("tokens"), "tokens")
            return [pair for pair, _ in takewhile(lambda both: both[0][0] == both[1], zip(said, tokens, strict=False))]

        asked = self._content(line, ids, 1, most) | {"return_tokens": True}
        return await line.ask("completion", asked, _read(read))

    async def spelt(self, line: Line, ids: Sequence[int]) -> str | None:
        return await _said(line, "detokenize", {"tokens": list(ids)}, "content")

    async def prompt_ids(self, line: Line, chat: Conversation) -> list[int] | None:
        text = chat.messages[0]["content"]
        if chat.form != "text":
            text = await _said(line, "apply-template", {"messages": list(chat.messages)}, "prompt")
        asked = {"content": text, "add_special": chat.form == "text", "parse_special": True}
        return None if text is None else await _ids_said(line, "tokenize", asked)


class Trl(Api):
    """TRL's ``trl vllm-serve``: ``/get_sequence_logprobs/``."""

    name, title, more = "trl", "TRL's vLLM server", "its engine takes vLLM's default limit"

    @property
    def says(self) -> str:
        return "trl vllm-serve"

    async def score(self, line: Line, ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        asked = {"sequences": [list(ids)], "prompt_lengths": [positions[0]], "top_logprobs": k, "temperature": 1.0}
        return await line.ask("get_sequence_logprobs/", asked, self.reader(ids, positions, k))

    def reader(self, ids: Sequence[int], positions: Sequence[int], k: int) -> Callable[[Reply], Scores]:
        """Reads the reply; see :meth:`score`."""
        return _read(lambda tree: self._scores(tree, ids, positions, k), _usual(read_trl, ids, positions, k))

    def _scores(self, tree: Mapping[str, Any], ids: Sequence[int], positions: Sequence[int], k: int) -> Scores:
        first = positions[0]
        logps, listed = (
            _as_many(_as_many(tree.get(name), 1, name)[0], len(ids) - first, name)
            for name in ("logprobs", "logprob_token_ids")
        )
        rows = []
        for at in positions:
            tokens = [_id(index) for index in items(listed[at - first], f"token {at}")]
            values = _as_many(logps[at - first], len(tokens), f"token {at}")
            if ids[at] not in tokens:
                raise Unfit(not_listed(at, ids[at]))
            rows.append(Row(tokens, list(values), values[tokens.index(ids[at])]))
        return Scores.of(rows, k, positions)


APIS: Mapping[ApiName, type[Api]] = {api.name: api for api in (Vllm, Sglang, LlamaCpp, Trl)}
ABOUT: Sequence[tuple[str, ApiName, str]] = (
    ("props", "llama.cpp", "total_slots"),
    ("get_server_info", "sglang", "version"),
    ("server_info", "sglang", "version"),
    ("get_world_size/", "trl", "world_size"),
    ("version", "vllm", "version"),
)
"""What tells the kinds of servers apart: a path, and a key that is in the reply to it. vLLM is asked last: a server in
front of others may tell its own version."""


async def found_api(line: Line, server: Server, name: ApiName | None) -> Api:
    """The kind of a server, as the recipe says or else as it says itself.

    Raises:
        ConfigError: it is none that scores.
        Refused: it does not answer.
    """
    tried = []
    for path, kind, key in ABOUT:
        if name not in (None, kind):
            continue
        try:
            about = await line.ask(path, None, _about)
        except Refused as refused:
            if not re.match(r"HTTP (4|501)", str(refused)):
                raise
            tried.append(f"/{path}")
            continue
        if key in about:
            return APIS[kind](server, about)
        tried.append(f"/{path}")
    if name is not None:
        return APIS[name](server, {})  # a gateway need not let these paths through
    raise ServerError(
        f"{server.base_url}: of which kind this server is cannot be told ({', '.join(tried)} say nothing). If it is "
        "vLLM, SGLang, llama.cpp or TRL's vllm-serve, say so (teacher.api); a server of another kind does not score "
        "rows that are there already. Let it write answers instead: bridgegarden generate RECIPE --top-logprobs 20"
    )


def _about(reply: Reply) -> Mapping[str, Any]:
    """What a server says of itself; nothing where that is a page for people."""
    try:
        tree = json.loads(reply.text)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) and not reply.held_key else {}


def _read(
    read: Callable[[Mapping[str, Any]], Any], usual: Callable[[str], Any] = lambda text: None
) -> Callable[[Reply], Any]:
    """`read` of a reply's object; what does not fit is a bad reply.

    Args:
        read: the object.
        usual: reads a reply's text of the usual form, and makes None of any other.
    """

    def checked(reply: Reply) -> Any:
        if reply.held_key:
            raise BadReply("the reply holds our API key, so it is not kept.")
        try:
            found = usual(reply.text)
            if found is not None:
                return found
            tree = mapping(_tree(reply.text), "the reply")
            if tree.get("error") is not None:
                raise BadReply(f"the server replied with an error ({error_text(reply.text)}).", try_again=True)
            return read(tree)
        except Unfit as error:
            raise BadReply(_unfit(error), unfit=error) from None
        except (IndexError, KeyError, TypeError) as error:
            raise BadReply(_unfit(f"an entry of another shape: {type(error).__name__}")) from None

    return checked


def _usual(read: ReadUsual, ids: Sequence[int], positions: Sequence[int], k: int) -> Callable[[str], Scores | None]:
    def scores(text: str) -> Scores | None:
        listed = read(text, ids, positions, k)
        return None if listed is None else Scores.of_listed(listed, positions)

    return scores


def _tree(text: str) -> Any:
    """What JSON says."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass  # stricter than Python's about numbers that are none and halves of characters, which may be of no concern
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = short(str(error))
        raise BadReply(f"the reply is not whole JSON ({len(text)} characters: {cause}).", try_again=True) from None


def _unfit(error: object) -> str:
    return f"the reply is none that can be kept ({error})."


async def _said(line: Line, path: str, asked: Mapping[str, Any], key: str) -> str | None:
    """A text that the server may know; None where it has no such path."""
    try:
        said = await line.ask(path, asked, _read(lambda tree: tree.get(key)), once=True)
    except Refused:
        return None
    return said if isinstance(said, str) else None


async def _ids_said(line: Line, path: str, asked: Mapping[str, Any]) -> list[int] | None:
    try:
        read = _read(lambda tree: [_id(index) for index in items(tree.get("tokens"), "tokens")])
        return await line.ask(path, asked, read, once=True)
    except Refused:
        return None


def _after(length: int) -> Callable[[Mapping[str, Any]], tuple[list[int], list[float]]]:
    """Reads what llama.cpp lists after a prompt of so many tokens."""

    def read(tree: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        if tree.get("truncated") or tree.get("tokens_evaluated", length) != length:
            raise Unfit(f"it read {tree.get('tokens_evaluated')} tokens, and {length} were sent")
        top = items(_first(tree, "completion_probabilities").get("top_logprobs"), "top_logprobs")
        entries = [mapping(entry, "top_logprobs") for entry in top]
        return [_id(entry.get("id")) for entry in entries], [_nats(entry.get("logprob")) for entry in entries]

    return read


def _first(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entries = items(tree.get(name), name)
    if not entries:
        raise Unfit(f"{name}: expected one, got none")
    return mapping(entries[0], name)


def _as_many(given: Any, count: int, what: str) -> Sequence[Any]:
    found = items(given, what)
    if len(found) != count:
        raise Unfit(
            f"{what}: {len(found)} entries, and {count} were expected: the server reads other tokens than it is sent"
        )
    return found


def _id(value: Any) -> int:
    if isinstance(value, str):
        raise Unfit(f"a token is named as text ({shown(value)}), and ids are needed")
    return whole(value, "token id", LARGEST_ID)


def _named_id(token: Any) -> int:
    found = re.fullmatch(AS_ID, token.encode()) if isinstance(token, str) else None
    if found is None:
        raise Unfit(
            f"a token is named as text ({shown(token)}), and its id was asked for (return_tokens_as_token_ids); start "
            "vLLM with --return-tokens-as-token-ids"
        )
    return int(found[1])


def _nats(value: Any) -> float:
    if type(value) not in (int, float) or not value <= EXCESS:
        raise Unfit(f"expected a log-probability (finite, <= 0), got {shown(value)}")
    return float(value)


def _word(value: Any) -> str:
    return short(value) if isinstance(value, str) else "of unknown version"
