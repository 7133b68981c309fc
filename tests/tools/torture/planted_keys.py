"""A fault on purpose, in the workers of a torture run: each call of a label or an announcement has a key of its own, so that the provider
does not know it again (hazard 2). Those alone: they go by their key, and what the others did twice would end the run before it is seen.
"""

from __future__ import annotations

import secrets

from groundstate.engine.call import begin
from groundstate.values import keys
from groundstate.values.answers import IdempotencyKey

BY_THEIR_KEY = ("labelled", "stickered", "announced")


class _Keys:
    """Stands in the place of the module of keys, for what is begun."""

    def __init__(self, module: object) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)

    def call_key(self, app: str, reaction: str, record: str, occurrence: str) -> IdempotencyKey:
        if reaction in BY_THEIR_KEY:
            return IdempotencyKey(secrets.token_hex(8))
        return keys.call_key(app, reaction, record, occurrence)


setattr(begin, "keys", _Keys(keys))  # noqa: B010  # of another type than the module, on purpose
