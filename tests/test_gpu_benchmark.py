"""What `benchmarks/gpu.py` makes of times; it measures where there is a device only."""

import argparse
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is beside the package

from benchmarks import common, gpu  # noqa: E402
from benchmarks.common import Timing  # noqa: E402


def timing(seconds):
    return Timing(seconds, seconds, seconds, 21)


def measured(layout=gpu.LAST, dtype="float16", size=1 << 28, part="size", **seconds):
    """Records of one array: a copy takes a second, the others what is given."""
    names = {"ours": gpu.OURS, "native": gpu.NATIVE, "cudnn": gpu.CUDNN}
    times = {(gpu.COPY, "copy"): timing(1.0)}
    for call, value in seconds.items():
        contender, operation = call.split("_")
        times[names[contender], operation] = timing(value)
    return gpu.records(part, layout, dtype, (2, 64, 32, 32), size, times)


def masked(**seconds):
    times = {(name, "statistics"): timing(value) for name, value in seconds.items()}
    times[gpu.COPY, "copy"] = timing(1.0)
    return gpu.records("statistics", gpu.LAST, "float32", (2, 64, 32, 32), 1 << 29, times)


def test_share_of_the_time_that_the_bytes_take():
    # A copy moves 2N bytes in 1 s: 3N take 1.5 s, 5N take 2.5 s.
    assert gpu.share("copy", 1.0, 1.0) == 1
    assert gpu.share("forward", 1.5, 1.0) == 1
    assert gpu.share("forward", 3.0, 1.0) == 0.5
    assert gpu.share("backward", 2.5, 1.0) == 1


def test_a_record_has_the_share_of_its_own_array():
    forward, statistics = (
        next(r for r in found if r["contender"] != gpu.COPY)
        for found in (measured(ours_forward=2.0), masked(none=1.0))
    )
    assert (forward["operation"], forward["share"]) == ("forward", 0.75)
    assert (forward["shape"], forward["bytes"]) == ("2x64x32x32", 1 << 28)
    assert statistics["share"] == ""


def test_speedups_are_of_the_same_array_and_operation():
    found = measured(ours_forward=2.0, native_forward=5.0, ours_backward=4.0, cudnn_backward=2.0)
    found += measured(dtype="float32", native_forward=9.0)
    key = ("size", gpu.LAST, "float16", 1 << 28)
    assert gpu.speedups(found, gpu.NATIVE) == {(*key, "forward"): 2.5}
    assert gpu.speedups(found, gpu.CUDNN) == {(*key, "backward"): 0.5}


def test_aims_take_the_least_of_what_they_are_about():
    found = measured(ours_forward=1.6, native_forward=4.0, cudnn_forward=1.6)
    found += measured(dtype="float32", ours_forward=2.0, native_forward=3.0, cudnn_forward=1.0)
    found += measured(size=gpu.MIB, ours_forward=100.0, native_forward=1.0)  # too small to count
    found += measured(part="graph", ours_forward=100.0)
    found += masked(none=3.0, padding=1.0, random=1.5)
    assert {aim.what: (aim.found, aim.least) for aim in gpu.aims(found)} == {
        "share, forward, above 100 MB": (0.75, 0.85),
        "times as fast as torch native, above 100 MB": (1.5, 1.5),
        "times as fast as cuDNN, channels-last, float16, above 100 MB": (1.0, 1.0),
        "times as fast with half of the rows off, statistics, channels-last": (2.0, 1.5),
    }


def test_the_report_says_which_aims_are_reached():
    found = measured(ours_forward=1.5, native_forward=2.1, ours_backward=5.0)
    text = gpu.report(found)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| share, forward, above 100 MB | 1.00 | 0.85 | yes |" in lines
    assert "| share, backward, above 100 MB | 0.50 | 0.85 | no |" in lines
    assert "| times as fast as torch native, above 100 MB | 1.40 | 1.50 | no |" in lines
    array = "channels-last, float16, forward, 256 MiB"
    assert f"| {array} | 1.5 s | 1.00 | 0.71 | 1.40 | – | – |" in lines
    assert "CUDA graph" not in text
    assert "CUDA graph" in gpu.report(found + measured(part="graph", ours_forward=1.5))


def test_shapes_hold_the_bytes_and_buffers_outdo_the_cache():
    for size in gpu.SIZES:
        for itemsize in (2, 4):
            images, channels, height, width = gpu.shape_of(size, itemsize)
            assert images * channels * height * width * itemsize == size
        assert size * (gpu.buffers_of(size, cache=50 * gpu.MIB) - 1) >= 4 * 50 * gpu.MIB
    assert gpu.buffers_of(gpu.SIZES[-1], cache=50 * gpu.MIB) == 3
    # Three of the largest, their gradients and outputs, and results to compare.
    assert gpu.memory_of(gpu.SIZES[-1], 3) == 34 << 30


def test_results_go_to_a_folder_of_the_gpu_unless_told_otherwise(tmp_path):
    default = argparse.Namespace(output=common.RESULTS / common.hardware())
    chosen = gpu.options_of("NVIDIA H200 (141 GB)", default)
    assert chosen.output == common.RESULTS / "nvidia-h200-141-gb"
    told = argparse.Namespace(output=tmp_path)
    assert gpu.options_of("NVIDIA H200", told).output == tmp_path


def test_results_of_a_call_do_not_share_memory():
    class Result:
        """An array."""

    alive, most = weakref.WeakSet(), 0

    def call(given):
        nonlocal most
        result = Result()
        alive.add(result)
        most = max(most, len(alive))
        return result

    assert gpu.all_buffers(call, [{}, {}, {}])() == 3
    assert most == 3


def torch_with(device):
    cuda = SimpleNamespace(is_available=lambda: device)
    return SimpleNamespace(__version__="2.13.0", cuda=cuda)


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        (None, "This benchmark compares with torch, which is not installed"),
        (
            torch_with(device=False),
            "This benchmark needs an NVIDIA GPU, and torch 2.13.0 finds none here",
        ),
        (torch_with(device=True), "This benchmark cannot run: numba-cuda is missing"),
    ],
    ids=["no torch", "no device", "no numba-cuda"],
)
def test_it_ends_with_a_sentence_where_it_cannot_run(torch, said, monkeypatch):
    monkeypatch.setattr(common, "installed", lambda module: torch is not None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(gpu, "why_unavailable", lambda: "numba-cuda is missing")
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == said


def test_without_tqdm_every_step_says_its_name(monkeypatch, capsys):
    monkeypatch.setattr(common, "installed", lambda module: False)
    assert gpu.measure({"a": lambda: [{"n": 1}], "b": lambda: [{"n": 2}]}) == [{"n": 1}, {"n": 2}]
    assert capsys.readouterr().out == "1 of 2: a\n2 of 2: b\n"
