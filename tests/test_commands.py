"""``python -m numbabn``: what it prints, and how it ends."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import numbabn
from numbabn.__main__ import COMMANDS, main
from numbabn.commands import demo
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
        "This command needs no_such_package, which is not installed: "
        "python -m pip install '.[bench]' in a checkout of numbabn brings it"
    )


def test_a_table_is_aligned_markdown():
    assert table(["", "ms"], [["forward", "1.5"], ["copy", "10"]]) == (
        "|         |  ms |\n"
        "|:--------|----:|\n"
        "| forward | 1.5 |\n"
        "| copy    |  10 |"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--turns", "0"], "argument --turns: must be a whole number of at least 1, got '0'"),
        (["--turns", "-3"], "argument --turns: must be a whole number of at least 1, got '-3'"),
        (["--turns", "x"], "argument --turns: must be a whole number of at least 1, got 'x'"),
        *(
            (
                ["--shape", shape],
                "argument --shape: a shape is two or more lengths of at least 1, as in "
                f"32,56,56,64, got {shape!r}",
            )
            for shape in ("8", "8,a", "8,0", "")
        ),
    ],
)
def test_bench_refuses_options(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m numbabn bench: error: {message}"


def test_bench_refuses_what_is_larger_than_the_memory():
    pytest.importorskip("tqdm")
    with pytest.raises(
        SystemExit,
        match=r"^--shape 1000000000,1000000 needs 2\.4e\+07 GB of memory, and this machine has "
        r"[\d.e+]+ GB$",
    ):
        main(["bench", "--shape", "1000000000,1000000"])


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
        (MemoryError("cannot hold 8 TB"), 1, "There is not enough memory: cannot hold 8 TB\n"),
        (MemoryError(), 1, "There is not enough memory: an array is too large\n"),
    ],
    ids=["Ctrl-C", "memory", "memory, without a word"],
)
def test_what_ends_a_command_is_a_sentence(error, status, message, monkeypatch, capsys):
    def run(options):
        raise error

    monkeypatch.setattr("numbabn.commands.info.run", run)
    assert main(["info"]) == status
    assert capsys.readouterr().err == message


def test_a_reader_that_has_seen_enough():
    """`info | head -2`, with a pipe that is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "numbabn", "info"],
            stdout=pipe, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 141
    # A framework that `info` asks after may have logged something.
    assert "BrokenPipe" not in ended.stderr


def test_help_says_what_passes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "--help"])
    assert ended.value.code == 0
    assert "A case passes where its error is at most 2e-6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/demo.png", "cannot be written: No such file or directory"),
        ("folder.png", "cannot be written: Is a directory"),
        ("demo.txt", None),
    ],
)
def test_demo_finds_out_first_whether_the_picture_can_be_written(name, message, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    (tmp_path / "folder.png").mkdir()
    path = tmp_path / name
    with pytest.raises(SystemExit) as ended:
        demo._check_picture(path, pyplot)
    if message is None:
        assert str(ended.value).startswith(f"--picture {path} must end in one of .")
    else:
        assert str(ended.value) == f"--picture {path} {message}"
    demo._check_picture(tmp_path / "demo.png", pyplot)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.png"]
