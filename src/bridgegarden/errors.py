"""What can go wrong, by who can mend it.

Every error a user can cause derives from :class:`BridgegardenError` and from the matching builtin, carries one
message (so that it survives pickling between worker processes), and says where, what was got, what was expected
and what to do. The command line prints the message on one line and exits with status 2; anything else is our bug
and keeps its traceback.
"""


class BridgegardenError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(BridgegardenError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(BridgegardenError, ValueError):
    """A row, file or data set cannot be used as it is."""


class ModelError(BridgegardenError, ValueError):
    """A model or tokenizer does not fit the other, the data, or what the library can do with it."""


class NonFiniteError(BridgegardenError, ArithmeticError):
    """A loss or gradient became infinite or not a number; training on would only hide it."""
