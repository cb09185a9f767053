"""The key to a server: read from the environment, sent to that server, and shown and written nowhere."""

import os
import re
from urllib.parse import urlsplit

from bridgegarden.errors import ConfigError

KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 8
"""Characters. A shorter word may stand in an answer by chance, so that nobody could say whether it is the key."""
MASK = "***"


def api_key(variable: str | None = None) -> str | None:
    """The key in an environment variable: the one named, which must be set, or ``OPENAI_API_KEY``, which need not.

    Raises:
        ConfigError: it is not set, or what it holds cannot be a key. The message shows neither name nor content: either
            may be the key.
    """
    value = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if not value and variable is not None:
        raise ConfigError(
            f"--api-key-env takes the name of an environment variable that holds the key, such as {KEY_VARIABLE}; no "
            "variable of the given name is set. (Never give the key itself: others can see command lines.)"
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigError("the API key in the environment holds spaces or characters that no key has.")
    return value or None


def check_url(url: str, place: str) -> None:
    """Refuse an address that is none, or that holds what must not be written down.

    Args:
        url: the address.
        place: what to call it in messages, which do not show it.

    Raises:
        ConfigError: says what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # as it is looked up
        usable = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(not "!" <= character <= "~" for character in url):
        raise ConfigError(
            f"{place}: the server's address must be like http://localhost:8000/v1 (http or https, no spaces, ASCII)."
        )
    if parts.username is not None or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ConfigError(
            f"{place}: the server's address holds a user name, password or query. It would be written to files; give "
            f"only the address, and the key in the environment ({KEY_VARIABLE}, or --api-key-env NAME)."
        )


class Secret:
    """A key, or none, and its absence from whatever is shown."""

    def __init__(self, key: str | None) -> None:
        """
        Args:
            key: of :func:`api_key`.

        Raises:
            ConfigError: it is too short to be told from other text.
        """
        if key is not None and len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"the API key in the environment has {len(key)} characters; one of fewer than {SHORTEST_KEY} cannot be "
                "told from the words of an answer, so it could be written down. Take a longer one; for a server that "
                f"asks for none, unset {KEY_VARIABLE}."
            )
        self._key = key
        self._pattern = None if key is None else re.compile("".join(map(_spellings, key)))

    def __bool__(self) -> bool:
        return self._key is not None

    @property
    def headers(self) -> dict[str, str]:
        """What the server wants to see."""
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    def masked(self, text: str) -> str:
        """`text` without the key, in whichever way JSON, addresses or HTML spell its characters.

        To be called before anything is cut off: of a half there is no telling what it was.
        """
        return text if self._pattern is None else self._pattern.sub(MASK, text)


def _spellings(character: str) -> str:
    """A pattern for one character of a key."""
    code = ord(character)
    forms = [re.escape(character), rf"\\\\*u(?i:{code:04x})", f"%(?i:{code:02x})", f"&#(?i:x0*{code:x}|0*{code});"]
    if not character.isalnum():
        forms.append(rf"\\\\*{re.escape(character)}")
    return f"(?:{'|'.join(forms)})"
