"""Every fourth sampler in the fast tests, the others in the slow ones."""

import pytest

from tests.samplers.gaussian import SAMPLERS

A_FEW = [s if i % 4 == 0 else pytest.param(s, marks=pytest.mark.slow) for i, s in enumerate(SAMPLERS)]
