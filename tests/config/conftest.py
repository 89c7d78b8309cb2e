"""Classes that are registered for one test."""

from unittest import mock

import pytest

from jldm.config import registry
from tests.config.examples import Network, Pair


@pytest.fixture
def registered():
  with mock.patch.dict(registry.CLASSES):
    yield registry.register(Pair), registry.register(Network)
