"""What the benchmarks time: one set-up of the data, and the same operation of each library.

Every function here returns calls that take nothing, by :class:`Call`: a training forward, its
backward, or both. "fresh" calls allocate their result, "given" ones write into an array that is
there already, "kept" ones into one that they keep. :func:`check` sees to it that contenders compute
the same.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

import numbabn

from .common import COPY, cores

Array = NDArray[Any]

EPSILON = 1e-3
FIRST, LAST = "channels-first", "channels-last"


class Call(NamedTuple):
    """A contender's name, its operation, and where the result goes: "fresh", "given" or "kept"."""

    contender: str
    operation: str
    output: str


Calls = dict[Call, Callable[[], Any]]


@dataclass
class Data:
    """An input, its gradient, parameters, and outputs that are there already.

    The outputs are written once, so that no contender is the first to touch their memory.
    """

    layout: str
    x: Array
    dy: Array
    y: Array
    dx: Array
    gamma: Array  # (channels,)
    beta: Array  # (channels,)

    @property
    def axis(self) -> int:
        return 1 if self.layout == FIRST else -1


def data(shape: tuple[int, ...], layout: str, dtype: str = "float32") -> Data:
    """Random data of a shape: (outer, channels, …) for FIRST, (…, channels) for LAST."""
    generator = np.random.default_rng(0)
    kind: Any = dtype
    if dtype == "bfloat16":
        kind = importlib.import_module("ml_dtypes").bfloat16
    x, dy = (generator.standard_normal(shape, np.float32) for _ in range(2))
    x, dy = x.astype(kind, copy=False), dy.astype(kind, copy=False)
    channels = shape[1 if layout == FIRST else -1]
    gamma = generator.uniform(0.5, 1.5, channels).astype(np.float32)
    beta = generator.standard_normal(channels, np.float32)
    return Data(layout, x, dy, np.ones_like(x), np.ones_like(x), gamma, beta)


def copies(given: Data) -> Calls:
    """The yardstick: NumPy's copy of x, which runs on one thread."""
    return {Call(COPY, "copy", "given"): lambda: np.copyto(given.dx, given.x)}


@numba.njit(parallel=True, cache=True)
def _copy_blocks(target, source):
    block = 1 << 15  # words; a core's share of a large array is many of them
    for i in numba.prange((source.size + block - 1) // block):
        target[i * block : (i + 1) * block] = source[i * block : (i + 1) * block]


def threaded_copies(given: Data) -> Calls:
    """A copy of x by all threads, which shows what the memory itself can do."""
    target, source = (array.reshape(-1).view(np.uint64) for array in (given.dx, given.x))
    return {Call("copy, all threads", "copy", "given"): lambda: _copy_blocks(target, source)}


def ours(given: Data, mask: Array | None = None, name: str = "numbabn") -> Calls:
    """numbabn's forward and backward."""
    x, dy, gamma, beta, axis = given.x, given.dy, given.gamma, given.beta, given.axis

    def forward(out: Array | None = None) -> Any:
        return numbabn.batch_norm_forward(
            x, gamma, beta, axis=axis, mask=mask, epsilon=EPSILON, out=out
        )

    _, saved = forward(given.y)

    def backward(out: Array | None = None) -> Any:
        return numbabn.batch_norm_backward(dy, x, saved, out=out)

    return {
        Call(name, "forward", "given"): lambda: forward(given.y),
        Call(name, "forward", "fresh"): forward,
        Call(name, "backward", "given"): lambda: backward(given.dx),
        Call(name, "backward", "fresh"): backward,
    }


def layer(given: Data, name: str = "layer") -> Calls:
    """A training step of numbabn's layer, which writes into arrays that it keeps."""
    made = numbabn.BatchNormalization(axis=given.axis, epsilon=EPSILON, reuse_outputs=True)
    made.build(given.gamma.size)
    made.gamma, made.beta = given.gamma, given.beta
    made(given.x, training=True)
    return {
        Call(name, "forward", "kept"): lambda: made(given.x, training=True),
        Call(name, "backward", "kept"): lambda: made.backward(given.dy),
    }


class _Tensors:
    """torch's views of the same memory, with its channels second in shape."""

    def __init__(self, given: Data, view: Callable[[Any], Any]) -> None:
        import torch

        self.x, self.dy, self.y = (
            view(torch.from_numpy(array)) for array in (given.x, given.dy, given.y)
        )
        self.gamma, self.beta = torch.from_numpy(given.gamma), torch.from_numpy(given.beta)
        _, self.mean, self.rstd = self.forward()

    def forward(self) -> Any:
        import torch

        return torch.native_batch_norm(
            self.x, self.gamma, self.beta, None, None, True, 0.0, EPSILON
        )

    def forward_given(self) -> Any:
        import torch

        return torch.ops.aten.native_batch_norm.out(
            self.x, self.gamma, self.beta, None, None, True, 0.0, EPSILON,
            out=self.y, save_mean=self.mean, save_invstd=self.rstd,
        )  # fmt: skip

    def backward(self) -> Any:
        import torch

        return torch.ops.aten.native_batch_norm_backward(
            self.dy, self.x, self.gamma, None, None, self.mean, self.rstd, True, EPSILON,
            [True, True, True],
        )  # fmt: skip


def _candidates(given: Data) -> list[_Tensors]:
    """The memory formats that torch may have the data in, without a copy.

    Channels-last data are either a matrix of rows or images in torch.channels_last.
    """
    shape = given.x.shape
    if given.layout == FIRST:
        return [_Tensors(given, lambda tensor: tensor)]
    rows, channels = given.x.size // shape[-1], shape[-1]
    image = (1, rows, 1, channels) if len(shape) != 4 else shape
    return [
        _Tensors(given, lambda tensor: tensor.view(rows, channels)),
        _Tensors(given, lambda tensor: tensor.view(image).movedim(-1, 1)),
    ]


def _fastest(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    """The candidate whose best of three calls is best."""

    def seconds(call: Callable[[], Any]) -> float:
        call()
        found = []
        for _ in range(3):
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
        return min(found)

    return min(calls, key=seconds) if len(calls) > 1 else calls[0]


def torch_calls(given: Data) -> Calls:
    """torch's kernels without autograd around them, each in the memory format it is fastest in.

    Its backward always allocates.
    """
    candidates = _candidates(given)
    return {
        Call("torch", "forward", "fresh"): _fastest([each.forward for each in candidates]),
        Call("torch", "forward", "given"): _fastest([each.forward_given for each in candidates]),
        Call("torch", "backward", "fresh"): _fastest([each.backward for each in candidates]),
    }


def why_not_compiled() -> str | None:
    """Why torch.compile has no column, or None where it works: it needs a C++ compiler.

    Tried in a process of its own, where a failure has no consequences.
    """
    script = "import torch; torch.compile(lambda x: x.exp() + 1)(torch.ones(64))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False
    )
    if found.returncode == 0:
        return None
    last = (found.stderr.strip().splitlines() or ["no message"])[-1]
    return f"torch.compile does not work here, hence it has no column: {last}"


def compiled_calls(given: Data) -> Calls:
    """torch.compile (inductor) of the same two operations."""
    import torch

    torch._dynamo.reset()  # otherwise it gives up after a few shapes
    images = _candidates(given)[-1]
    forward = torch.compile(lambda x, *others: torch.native_batch_norm(x, *others), dynamic=False)
    backward = torch.compile(
        lambda dy, *others: torch.ops.aten.native_batch_norm_backward(dy, *others), dynamic=False
    )
    to_forward = (images.x, images.gamma, images.beta, None, None, True, 0.0, EPSILON)
    to_backward = (
        images.dy, images.x, images.gamma, None, None, images.mean, images.rstd, True, EPSILON,
        [True, True, True],
    )  # fmt: skip
    return {
        Call("torch.compile", "forward", "fresh"): lambda: forward(*to_forward),
        Call("torch.compile", "backward", "fresh"): lambda: backward(*to_backward),
    }


def why_not_jax() -> str | None:
    """Why jax has no column, or None where it has one."""
    if importlib.util.find_spec("jax") is None:
        return "jax is not installed, hence it has no column."
    if numba.get_num_threads() != cores():
        return "jax takes every core and numbabn does not, hence it has no column."
    return None


def jax_calls(given: Data) -> Calls:
    """jax.jit of the formulas, the backward with mean and rstd of the forward, as torch has it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    rank, axis = given.x.ndim, given.axis % given.x.ndim
    axes = tuple(a for a in range(rank) if a != axis)
    shape = tuple(-1 if a == axis else 1 for a in range(rank))
    count = given.x.size // given.x.shape[axis]

    @jax.jit
    def forward(x: Any, gamma: Any, beta: Any) -> Any:
        mean = x.mean(axes)
        rstd = jax.lax.rsqrt(x.var(axes) + EPSILON)
        y = (x - mean.reshape(shape)) * (gamma * rstd).reshape(shape) + beta.reshape(shape)
        return y, mean, rstd

    @jax.jit
    def backward(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any) -> Any:
        xhat = (x - mean.reshape(shape)) * rstd.reshape(shape)
        dbeta, dgamma = dy.sum(axes), (dy * xhat).sum(axes)
        through = (dbeta.reshape(shape) + xhat * dgamma.reshape(shape)) / count
        return (gamma * rstd).reshape(shape) * (dy - through), dgamma, dbeta

    x, dy, gamma, beta = map(jnp.asarray, (given.x, given.dy, given.gamma, given.beta))
    _, mean, rstd = forward(x, gamma, beta)
    return {
        Call("jax.jit", "forward", "fresh"): lambda: jax.block_until_ready(forward(x, gamma, beta)),
        Call("jax.jit", "backward", "fresh"): lambda: jax.block_until_ready(
            backward(dy, x, gamma, mean, rstd)
        ),
    }


def check(given: Data, calls: Calls) -> None:
    """Raise AssertionError unless all calls of an operation agree on the array they return."""
    # Wide enough for float32 sums: torch's is 1.5e-2 off where a channel has 8e6 positions.
    # What computes something else is off by 1 and more.
    tolerance = 0.05
    expected: dict[str, Array] = {}
    for call, function in calls.items():
        if call.operation not in ("forward", "backward"):
            continue
        result = function()[0]
        if tuple(result.shape) != given.x.shape and result.ndim > 2:
            result = result.moveaxis(1, -1)  # torch's shape of channels-last data
        array = np.asarray(result).reshape(given.x.shape)
        first = expected.setdefault(call.operation, array)
        worst = float(np.max(np.abs(first - array)))
        assert worst < tolerance, f"{call} is {worst:.1e} from the others, at {given.x.shape}"
