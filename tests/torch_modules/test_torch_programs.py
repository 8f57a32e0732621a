"""numbabn.torch in what torch makes of Python: compiled, exported and traced."""

import copy

import numpy as np
import pytest
import torch

from numbabn.torch import BatchNorm, BatchNorm1d
from processes import run_python

RNG = np.random.default_rng(0)
# Differentiates and lowers as the whole compiler does, and generates no code.
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo counts how often a line of a test is compiled."""
    torch._dynamo.reset()


def tensor(*shape, dtype=torch.float32):
    return torch.from_numpy(RNG.normal(2, 3, shape)).to(dtype)


def step(call, module, x, dy, *arguments):
    x = x.detach().requires_grad_()
    y = call(x, *arguments)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], dy)
    return [y.detach(), *gradients, *(each.clone() for each in module.buffers())]


def agree(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"renorm": True, "momentum": None},
        {"affine": False, "track_running_stats": False, "axis": -1},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_compiled(options):
    """With masks, in one graph."""
    module = BatchNorm(4, **options)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, backend=BACKEND, fullgraph=True)
    shape = (3, 5, 4) if "axis" in options else (3, 4, 5)
    dtype = options.get("dtype", torch.float32)
    for mode in (True, False):
        module.train(mode)
        eager.train(mode)
        mask = torch.from_numpy(RNG.random((3, 5)) < 0.6)
        x, dy = tensor(*shape, dtype=dtype), tensor(*shape, dtype=dtype)
        agree(step(compiled, module, x, dy, mask), step(eager, eager, x, dy, mask))


def test_limits_are_read_when_it_runs():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    module = BatchNorm1d(4, renorm=True)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, backend=count, fullgraph=True)
    for step in range(4):
        module.renorm_clipping = eager.renorm_clipping = {"rmax": 1 + step / 10, "dmax": step}
        x = tensor(6, 4)
        agree(compiled(x), eager(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("training", [True, False])
def test_exported(training, tmp_path):
    """Any batch size, and in another process, which has to import numbabn.torch."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), BatchNorm1d(4, renorm=True))
    module.train(training)
    size = torch.export.Dim("size", min=2)
    program = torch.export.export(module, (tensor(6, 3),), dynamic_shapes=({0: size},))
    x = tensor(9, 3)
    expected = copy.deepcopy(module)(x)
    torch.export.save(program, tmp_path / "program.pt2")
    agree(program.module()(x), expected)
    torch.save((x, expected.detach()), tmp_path / "data.pt")
    run_python(
        f"""
import torch, numbabn.torch
program = torch.export.load({str(tmp_path / "program.pt2")!r})
x, expected = torch.load({str(tmp_path / "data.pt")!r})
torch.testing.assert_close(program.module()(x), expected)
"""
    )


# Of torch's, which would have programs exported.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
def test_traced(training):
    module = BatchNorm1d(4).train(training)
    traced = torch.jit.trace(module, (tensor(6, 4),), check_trace=False)
    eager = copy.deepcopy(module)
    x, dy = tensor(9, 4), tensor(9, 4)
    agree(step(traced, module, x, dy), step(eager, eager, x, dy))


def test_transforms_in_what_is_compiled():
    module = BatchNorm1d(4).eval()

    def gradient(x):
        return torch.func.grad(lambda x: module(x).pow(3).sum())(x)

    x = tensor(6, 4)
    agree(torch.compile(gradient, backend=BACKEND, fullgraph=True)(x), gradient(x))


# Of torch's, which would have programs exported.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_no_operators_for_onnx(monkeypatch):
    """It has none of ours; torch's exporters say when they are at work."""
    module = BatchNorm1d(4).eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    traced = torch.jit.trace(module, (tensor(6, 4),))
    assert "numbabn::" not in str(traced.graph)
    x = tensor(9, 4)
    agree(traced(x), module(x))
