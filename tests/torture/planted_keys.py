"""A fault on purpose, in the workers of a torture run: each call has a key of its own, so that no provider knows it again (hazard 2)."""

from __future__ import annotations

import secrets

from groundstate.engine import begin
from groundstate.values import keys
from groundstate.values.answers import Key


class _Keys:
    """Stands in the place of the module of keys, for what is begun."""

    def __init__(self, module: object) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)

    def call_key(self, *_: str) -> Key:
        return Key(secrets.token_hex(8))


setattr(begin, "keys", _Keys(keys))  # noqa: B010  # of another type than the module, on purpose
