"""An app with a store for each kind of models, and services to declare calls to."""

from __future__ import annotations

import pytest
from sqlmodel import SQLModel

from groundstate import App, ExternalService, Store
from tests.app.models import Base, DataBase


@pytest.fixture
def app() -> App:
    """A fresh app of a name of its own; connects to nothing."""
    return App("declared", Store("sqlite:///never-opened.db", Base), Store("sqlite:///nor-this.db", DataBase, SQLModel))


@pytest.fixture
def bank() -> ExternalService:
    return ExternalService("bank")
