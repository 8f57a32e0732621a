"""What happens around calls: run on the frameworks that NUMBABN_FAULTS names, which must be there.

NUMBABN_FAULTS=numpy,torch,jax pytest tests/faults
NUMBABN_FAULTS=tensorflow pytest tests/faults --soak 3600
"""

import importlib
import os
import pathlib
import sys

import pytest

# What all tests share lies above.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

FRAMEWORKS = [each for each in os.environ.get("NUMBABN_FAULTS", "").split(",") if each]
if not FRAMEWORKS:
    collect_ignore_glob = ["test_*.py"]


def pytest_addoption(parser):
    parser.addoption(
        "--soak", type=float, default=None, metavar="SECONDS", help="how long each soak takes"
    )
    parser.addoption(
        "--large", action="store_true", help="tensors of more than 2**31 elements: 10 GB"
    )


def pytest_configure(config):
    for name in FRAMEWORKS:
        importlib.import_module(name)


def pytest_generate_tests(metafunc):
    """A test with `framework` runs on each that is here, and one that is marked `on` on those."""
    marker = metafunc.definition.get_closest_marker("on")
    chosen = [each for each in FRAMEWORKS if marker is None or each in marker.args]
    if "framework" in metafunc.fixturenames:
        trains = [each for each in chosen if each != "numpy"]
        metafunc.parametrize("framework", trains)


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if not _runs_here(config, item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _runs_here(config, item):
    if pathlib.Path(__file__).parent not in item.path.parents:
        return True
    if item.get_closest_marker("large") and not config.getoption("--large"):
        return False
    # What no framework plays a part in runs beside NumPy alone.
    marker = item.get_closest_marker("on")
    named = marker.args if marker else ("numpy",)
    return "framework" in item.fixturenames or any(each in FRAMEWORKS for each in named)


@pytest.fixture
def soak(request):
    """How many seconds a soak takes; a few where nobody asked for more."""
    return request.config.getoption("--soak") or 3.0
