"""What every test shares: seeds, the hypothesis profile, the marker for compiled kernels."""

import numpy as np
import pytest
from hypothesis import settings

from arrays import JIT_DISABLED
from numbabn.cpu import launch, partition

settings.register_profile(
    "numbabn",
    derandomize=True,  # the same examples on every run
    deadline=None,  # the first example compiles
    database=None,
    max_examples=25 if JIT_DISABLED else 60,
)
settings.load_profile("numbabn")

if JIT_DISABLED:
    # The kernels run as plain Python over NumPy scalars here, and those warn of what compiled
    # code computes in silence: NaN and inf that a caller passed.
    np.seterr(all="ignore")


def pytest_collection_modifyitems(items):
    if JIT_DISABLED:
        skip = pytest.mark.skip(reason="needs compiled kernels")
        for item in items:
            if item.get_closest_marker("jit"):
                item.add_marker(skip)


@pytest.fixture
def rng():
    return np.random.default_rng(20170210)


@pytest.fixture
def cut(monkeypatch):
    """Change how tensors are cut: ``cut(TASK_ELEMENTS=64)`` sets a constant of `partition`."""

    def forget():
        partition.partition.cache_clear()
        launch._plan.cache_clear()

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(partition, name, value)
        forget()

    yield change
    monkeypatch.undo()
    forget()
