# ruff: noqa: A005 - imported as tests.typing alone
