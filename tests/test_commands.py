"""``python -m numbabn``: what it prints, and how it ends."""

import importlib
import importlib.util
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import numbabn
from numbabn.__main__ import COMMANDS, main
from numbabn.commands.extras import load
from numbabn.commands.table import table


def test_info_names_what_it_runs_on(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "numbabn ",
        "numba ",
        "threads ",
        "threading layer ",
        "CUDA ",
        "compiled kernels ",
    ):
        assert re.search(f"^{line}", printed, re.MULTILINE), line
    assert numbabn.__version__ in printed


def install_cuda(monkeypatch, *, missing=None, driver=(13, 0), toolkit=(13, 4), parts=()):
    """Stand-ins for what `info` asks of numba-cuda."""
    h200 = SimpleNamespace(id=0, name="NVIDIA H200", compute_capability=(9, 0))
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(get_version=lambda: toolkit), list_devices=lambda: [h200]
    )
    monkeypatch.setattr("numbabn.commands.info.why_unavailable", lambda: missing)
    monkeypatch.setattr("numbabn.commands.info.missing_parts", lambda: list(parts))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "numbabn.commands.info.find_spec",
        lambda name: name if name == "numba_cuda" else find_spec(name),
    )
    # Whether Keras is installed here is told by rows of other lengths.
    monkeypatch.setattr("numbabn.commands.info._keras", dict)
    monkeypatch.setitem(sys.modules, "numba.cuda", cuda)
    monkeypatch.setitem(
        sys.modules, "numba.cuda.cudadrv.driver", SimpleNamespace(get_version=lambda: driver)
    )


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"missing": "it is not there"}, "CUDA              no: it is not there\n"),
        (
            {"driver": (12, 8)},
            "CUDA              no: driver for CUDA 12.8, toolkit 13.4, which is too new for the "
            "driver: pip install 'numbabn[cuda12]'\n",
        ),
        (
            {"missing": "it is not there", "parts": ["libNVVM is missing", "NVRTC is missing"]},
            "CUDA              no: it is not there\n"
            "CUDA, part 1      libNVVM is missing\n"
            "CUDA, part 2      NVRTC is missing\n",
        ),
        (
            {"parts": ["libNVVM is missing"]},
            "CUDA              no: nothing can be compiled\nCUDA, part 1      libNVVM is missing\n",
        ),
        (
            {},
            "CUDA              driver for CUDA 13.0, toolkit 13.4\n"
            "device 0          NVIDIA H200, compute capability 9.0\n",
        ),
    ],
    ids=["no driver", "an old driver", "no driver and no toolkit", "no toolkit", "a device"],
)
def test_info_says_what_cuda_there_is(installed, said, monkeypatch, capsys):
    install_cuda(monkeypatch, **installed)
    assert main(["info"]) == 0
    # How wide the columns are depends on what else there is to say.
    assert re.sub(" {2,}", "  ", said) in re.sub(" {2,}", "  ", capsys.readouterr().out)


def test_info_says_which_way_keras_takes(monkeypatch, capsys):
    details = {"backend": "jax", "CPU": "fast", "CUDA": "slow: nothing is installed"}
    keras = SimpleNamespace(backend_details=lambda: dict(details))
    monkeypatch.setattr("numbabn.commands.info.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "numbabn.keras", keras)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert re.search("^Keras on jax, CPU +fast$", printed, re.MULTILINE)
    assert re.search("^Keras on jax, CUDA +slow: nothing is installed$", printed, re.MULTILINE)


def test_info_names_the_extra_to_install(monkeypatch, capsys):
    monkeypatch.setattr("numbabn.cuda.availability.find_spec", lambda name: None)
    assert main(["info"]) == 0
    assert "not installed: pip install 'numbabn[cuda13]'" in capsys.readouterr().out


def test_warmup_of_cuda_kernels_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr("numbabn.cuda.availability.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["warmup", "--cuda", "--arch", "sm_90"])
    assert ended.value.code == (
        "arrays on a CUDA device need numba-cuda, which is not installed: pip install "
        "'numbabn[cuda13]' (or [cuda12], after the CUDA version of the driver)"
    )


def test_every_command_has_a_module_of_its_own():
    for name in COMMANDS:
        module = importlib.import_module(f"numbabn.commands.{name}")
        assert callable(module.add_options)
        assert callable(module.run)


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 2
    assert "invalid choice: 'train'" in capsys.readouterr().err


@pytest.mark.jit
def test_check_agrees_on_this_machine(capsys):
    assert main(["check"]) == 0
    assert "dgamma" not in capsys.readouterr().err


@pytest.mark.jit
def test_check_ends_with_an_error_where_a_result_is_off(monkeypatch, capsys):
    backward = numbabn.batch_norm_backward

    def slightly_wrong(*arguments, **options):
        dx, dgamma, dbeta = backward(*arguments, **options)
        return dx, dgamma * np.float32(1.0001), dbeta

    monkeypatch.setattr(numbabn, "batch_norm_backward", slightly_wrong)
    assert main(["check"]) == 1
    assert "batch_norm_backward" in capsys.readouterr().out


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(SystemExit) as ended:
        load("no_such_package", "bench")
    assert ended.value.code == (
        "This command needs no_such_package, which is not installed: install numbabn with the "
        "extra bench, as numbabn[bench]"
    )


def test_a_table_is_aligned_markdown():
    assert table(["", "ms"], [["forward", "1.5"], ["copy", "10"]]) == (
        "|         |  ms |\n"
        "|:--------|----:|\n"
        "| forward | 1.5 |\n"
        "| copy    |  10 |"
    )  # fmt: skip
