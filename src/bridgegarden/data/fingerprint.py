"""Names for content: equal exactly when token ids would mean the same thing.

All are SHA-256 in hexadecimal. None depends on paths, file formats, or settings that do not change the ids.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from bridgegarden.data.template import name_of
from bridgegarden.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of how `tokenizer` turns text into ids: vocabulary, merges, normaliser, added tokens, and its ends of text.

    Not of its chat template (:func:`chat_template_fingerprint`), nor of padding and truncation, which change while it
    is in use.

    Raises:
        ModelError: when it is not backed by the ``tokenizers`` library, and so cannot be read as a whole.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{name_of(tokenizer)} is not backed by the tokenizers library, so whether it agrees with another cannot "
            "be told. Use a model that has a tokenizer.json."
        )
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    ends = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return _sha256(_canonical([state, {name: None if token is None else str(token) for name, token in ends.items()}]))


def chat_template_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template; the same for every tokenizer that has none."""
    return _sha256(_canonical(tokenizer.chat_template))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=repr).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
