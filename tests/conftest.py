"""What every test shares: where it runs, seeds, the hypothesis profile, which cases are run."""

import os

import numba
import numpy as np
import pytest
from hypothesis import settings

from arrays import JIT_DISABLED
from numbabn.cpu import launch, partition
from simulated import MAX_EXAMPLES, runs_in_simulation

WHERE = os.environ.get("NUMBABN_CUDA")

settings.register_profile(
    "numbabn",
    derandomize=True,  # the same examples on every run
    deadline=None,  # the first example compiles
    database=None,
    max_examples=MAX_EXAMPLES if WHERE == "simulator" else 25 if JIT_DISABLED else 60,
)
settings.load_profile("numbabn")

if JIT_DISABLED:
    # The kernels run as plain Python over NumPy scalars here, and those warn of what compiled
    # code computes in silence: NaN and inf that a caller passed.
    np.seterr(all="ignore")


def pytest_configure(config):
    if WHERE is None:
        return
    if WHERE not in ("simulator", "device"):
        pytest.exit(f"NUMBABN_CUDA must be simulator or device, got {WHERE!r}", returncode=1)
    if WHERE == "simulator":
        if not numba.config.ENABLE_CUDASIM:
            pytest.exit("NUMBABN_CUDA=simulator needs NUMBA_ENABLE_CUDASIM=1", returncode=1)
        # Kernels run in plain Python over NumPy scalars there, and those warn of what a device
        # computes in silence: NaN and inf that a caller passed.
        for text in ("invalid value", "overflow", "divide by zero"):
            config.addinivalue_line("filterwarnings", f"ignore:{text} encountered:RuntimeWarning")
    from numbabn import targets

    targets.cuda()


def pytest_collection_modifyitems(config, items):
    if JIT_DISABLED:
        skip = pytest.mark.skip(reason="needs compiled kernels")
        for item in items:
            if item.get_closest_marker("jit"):
                item.add_marker(skip)
    kept, left_out = [], []
    for item in items:
        (kept if _runs_here(item) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _runs_here(item):
    target = "cpu" if WHERE is None else "cuda"
    if any(marker.args != (target,) for marker in item.iter_markers("only_on")):
        return False
    return WHERE != "simulator" or runs_in_simulation(item)


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
