"""What only a device has: streams, graphs, other libraries' arrays, and large tensors."""

from threading import Thread

import cupy
import numpy as np
import pytest
import torch

import numbabn
import reference
from arrays import DTYPES, make_case, raises
from devices import assert_agrees, get, put
from pages import ROOT, run

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = DTYPES
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor.contiguous().view(BITS[tensor.element_size()])


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(bits(one), bits(other))


def step(x, dy, gamma, beta, mask=None):
    """Everything that a training step gives, by torch."""
    y, saved = numbabn.batch_norm_forward(x, gamma, beta, mask=mask)
    return (y, saved.values, *numbabn.batch_norm_backward(dy, x, saved))


def tensors(rows=20000, channels=64, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    x, dy = (normal(rows, channels).to(dtype) for _ in range(2))
    return x, dy, normal(channels), normal(channels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize("seed", range(6))
def test_random_large_shapes(seed, mask, dtype):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(2, 5))
    shape = tuple(int(each) for each in rng.integers(2, int(2e6 ** (1 / rank)), rank))
    axis = int(rng.integers(rank))
    mask_shape = {
        "none": None,
        "positions": tuple(1 if each == axis else n for each, n in enumerate(shape)),
        "elements": shape,
    }[mask]
    on = None if mask_shape is None else rng.random(mask_shape) < 0.7
    case = make_case(shape, axis, dtype, seed=seed, offset=3.0, mask=on, renorm=True, zeros=0.1)
    assert_agrees(case, "torch" if seed % 2 else "numba")


def test_more_elements_than_32_bits_count():
    x = torch.zeros((1 << 31) + 1024, 2, dtype=torch.float16, device="cuda")
    x[:, 1] = 1
    x[-1] = 3
    y, saved = numbabn.batch_norm_forward(x)
    rows = x.shape[0]
    np.testing.assert_array_equal(get(saved.statistics.count), [rows, rows])
    np.testing.assert_allclose(get(saved.statistics.mean), [3 / rows, 1 + 2 / rows], rtol=1e-9)
    assert torch.all(y[-1] > 30)
    assert torch.all(y[:-1].abs() < 1e-2)


def test_more_elements_than_32_bits_count_in_runs():
    """Two channels of runs that are longer than 2³⁰, the last position unlike the others."""
    length = (1 << 30) + 512
    x = torch.zeros(1, 2, length, dtype=torch.float16, device="cuda")
    x[:, 1] = 1
    x[..., -1] = 3
    y, saved = numbabn.batch_norm_forward(x, axis=1)
    np.testing.assert_array_equal(get(saved.statistics.count), [length, length])
    np.testing.assert_allclose(get(saved.statistics.mean), [3 / length, 1 + 2 / length], rtol=1e-9)
    assert torch.all(y[..., -1] > 30)
    assert torch.all(y[..., :-1].abs() < 1e-2)
    dx, dgamma, dbeta = numbabn.batch_norm_backward(torch.ones_like(x), x, saved, out=y)
    assert torch.all(dx.abs() < 1e-2)
    np.testing.assert_array_equal(get(dbeta), [length, length])
    assert get(dgamma).shape == (2,)


@pytest.mark.parametrize("of_elements", [False, True], ids=["rows", "elements"])
def test_more_elements_than_32_bits_count_under_a_mask(of_elements):
    rows = (1 << 31) + 1024
    x = torch.zeros(rows, 2, dtype=torch.float16, device="cuda")
    on = torch.zeros(rows, 2 if of_elements else 1, dtype=torch.bool, device="cuda")
    x[-8:] = torch.arange(8, device="cuda")[:, None]
    on[-8:] = True
    statistics = numbabn.batch_statistics(x, mask=on).to_host()
    np.testing.assert_array_equal(statistics.count, [8, 8])
    np.testing.assert_allclose(statistics.mean, [3.5, 3.5], rtol=1e-6)
    np.testing.assert_allclose(statistics.variance, [5.25, 5.25], rtol=1e-6)


def test_a_thread_of_its_own():
    """It has no context until the first call of numbabn's gives it one."""
    x, *_ = tensors(rows=256)
    found = []
    thread = Thread(target=lambda: found.append(numbabn.batch_norm_forward(x)[0]))
    thread.start()
    thread.join()
    assert torch.equal(found[0], numbabn.batch_norm_forward(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torch_agrees_with_its_own_batch_norm(memory_format, dtype):
    x = torch.randn(16, 32, 28, 28, device="cuda").to(dtype).to(memory_format=memory_format)
    gamma, beta = torch.rand(2, 32, device="cuda", dtype=torch.float64)
    y, saved = numbabn.batch_norm_forward(x, gamma, beta, axis=1)
    assert y.stride() == x.stride()
    expected = torch.nn.functional.batch_norm(
        x.double(), None, None, gamma, beta, training=True, eps=1e-3
    )
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6}.get(dtype, 1e-12)
    assert torch.allclose(y.double(), expected, atol=tolerance, rtol=tolerance)
    assert saved.values.device == x.device


def test_tensors_that_require_a_gradient_are_read():
    x, dy, gamma, beta = tensors()
    expected = step(x, dy, gamma, beta)
    result = step(*(each.clone().requires_grad_() for each in (x, dy, gamma, beta)))
    assert_same_bits(result, expected)
    assert not any(each.requires_grad for each in result)


def test_work_is_on_the_current_stream():
    """x is not there before a long product of matrices is, on a stream of its own."""
    x, dy, gamma, beta = tensors()
    expected = step(x, dy, gamma, beta)
    late = torch.full_like(x, torch.nan)
    busy = torch.randn(6000, 6000, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy * 1e-3
        late.copy_(x)
        result = step(late, dy, gamma, beta)
    stream.synchronize()
    assert_same_bits(result, expected)


def test_nothing_waits_for_the_device():
    x, dy, gamma, beta = tensors()
    mask = torch.rand(20000, device="cuda") < 0.5
    layer = numbabn.BatchNormalization(renorm=True)
    layer(x, training=True, mask=mask)
    layer.backward(dy)
    step(x, dy, gamma, beta, mask)
    busy = torch.randn(8000, 8000, device="cuda")
    torch.cuda.synchronize()
    for _ in range(50):
        busy = busy @ busy * 1e-3
    after = torch.cuda.Event()
    step(x, dy, gamma, beta, mask)
    layer(x, training=True, mask=mask)
    layer.backward(dy)
    after.record()
    assert not after.query()
    torch.cuda.synchronize()


def test_two_tensors_in_flight():
    both = [tensors(seed=seed) for seed in (1, 2)]
    expected = [step(*each) for each in both]
    streams = [torch.cuda.Stream() for _ in both]
    torch.cuda.synchronize()
    results = [[], []]
    for _ in range(30):
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[index].append(step(*both[index]))
    torch.cuda.synchronize()
    for found, wanted in zip(results, expected, strict=True):
        for each in found:
            assert_same_bits(each, wanted)


def test_cuda_graphs():
    x, dy, gamma, beta = tensors(rows=256)
    mask = torch.rand(256, device="cuda") < 0.5
    # What is compiled now is not loaded within the capture.
    step(x, dy, gamma, beta, mask)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(x, dy, gamma, beta, mask)
    for seed in (3, 4):
        for held, new in zip((x, dy, gamma, beta), tensors(rows=256, seed=seed), strict=True):
            held.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(result, step(x, dy, gamma, beta, mask))


@pytest.mark.parametrize("reuse", [False, True], ids=["new outputs", "reused outputs"])
@pytest.mark.parametrize("momentum", [0.9, None], ids=["separate", "shared"])
def test_a_layer_in_a_graph_moves_its_statistics(momentum, reuse):
    layer, eager = (
        numbabn.BatchNormalization(renorm=True, renorm_momentum=momentum, reuse_outputs=reuse)
        for _ in range(2)
    )
    x, *_ = tensors(rows=256)
    for each in (layer, eager):
        each(x, training=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x, training=True)
    for seed in (5, 6):
        x.copy_(tensors(rows=256, seed=seed)[0])
        graph.replay()
        wanted = eager(x, training=True)
        torch.cuda.synchronize()
        assert torch.equal(y, wanted)
    for name, weight in layer.weights.items():
        assert torch.equal(weight, eager.weights[name]), name


def test_reused_outputs_are_of_one_stream():
    """torch gives memory that is dropped to others, in the order of the stream it was made on."""
    layer = numbabn.BatchNormalization(reuse_outputs=True)
    x, *_ = tensors(rows=256)
    first, again = layer(x), layer(x)
    assert again.data_ptr() == first.data_ptr()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        other = layer(x)
    stream.synchronize()
    assert other.data_ptr() != first.data_ptr()
    assert torch.equal(other, first)


def test_cupy_streams():
    case = make_case((2000, 16), -1, FLOAT32)
    x, expected = put(case.x, "cupy"), put(case.x, "numba")
    expected, _ = numbabn.batch_norm_forward(expected)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        y, _ = numbabn.batch_norm_forward(x)
        stream.synchronize()
    np.testing.assert_array_equal(y.get(), get(expected))


def test_libraries_do_not_mix():
    x, dy, gamma, beta = tensors()

    def not_of_torch(name, got):
        return f"{name} must be an array of torch on a CUDA device, as x is, got {got}"

    for name, wrong in {"gamma": cupy.ones(64), "mask": cupy.ones(20000, bool)}.items():
        with raises(TypeError, not_of_torch(name, "ndarray")):
            numbabn.batch_norm_forward(x, **{name: wrong})
    with raises(TypeError, not_of_torch("gamma", "Tensor")):
        numbabn.batch_norm_forward(x, gamma.cpu())
    wanted = "x must be a NumPy array or an array on a CUDA device, got Tensor: pass x.numpy()"
    with raises(TypeError, wanted):
        numbabn.batch_norm_forward(x.cpu())
    _, saved = numbabn.batch_norm_forward(x, gamma, beta)
    with raises(TypeError, not_of_torch("dy", "ndarray")):
        numbabn.batch_norm_backward(cupy.asarray(dy), x, saved)
    layer = numbabn.BatchNormalization().to("cuda", "cupy")
    layer.build(64)
    message = (
        "the layer's weights are arrays of cupy on CUDA device 0 and x is elsewhere (Tensor): "
        "move the layer with to()"
    )
    with raises(TypeError, message):
        layer(x)


@pytest.mark.parametrize("number", range(torch.cuda.device_count()))
def test_work_is_on_the_device_of_x(number):
    case = make_case((300, 16), -1, FLOAT32)
    x, dy, gamma = (
        torch.from_numpy(each).to(f"cuda:{number}") for each in (case.x, case.dy, case.gamma)
    )
    y, saved = numbabn.batch_norm_forward(x, gamma)
    results = (y, saved.values, *numbabn.batch_norm_backward(dy, x, saved))
    assert all(each.device == x.device for each in results)
    layer = numbabn.BatchNormalization().to(number, "torch")
    layer(x, training=True)
    assert layer.moving_mean.device == x.device
    expected = reference.forward(case.x, case.gamma)
    np.testing.assert_allclose(y.cpu().numpy(), expected.y, atol=4e-6)


def test_the_code_in_pages_runs():
    names = run(ROOT / "docs" / "gpu.md", frozenset({"cuda"}))
    assert torch.isfinite(names["dx"]).all()
