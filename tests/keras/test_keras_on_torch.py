"""What is torch's own: memory orders, modes of autograd, threads, compilation."""

import gc
import threading
import tracemalloc
import weakref

import keras
import numpy as np
import pytest
import torch
from backends import array

import reference
from numbabn.keras import BatchNormalization, functions
from numbabn.tensors import compute
from numbabn.tensors import torch as tensors

RNG = np.random.default_rng(0)


def tensor(*shape, dtype=torch.float32):
    return torch.from_numpy(RNG.normal(2, 3, shape)).to(dtype)


def built(shape=(4, 3), **arguments):
    layer = BatchNormalization(**arguments)
    layer.build(shape)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("axis", "order"), [(-1, (0, 2, 3, 1)), (1, (0, 3, 1, 2)), (-1, (1, 0, 2, 3))]
)
def test_permuted_views(axis, order, dtype):
    """Processed as they lie, and the output and the gradient lie the same way."""
    x = tensor(4, 5, 6, 3, dtype=dtype).permute(order).requires_grad_()
    policy = {"float32": "float32"}.get(str(dtype)[6:], f"mixed_{str(dtype)[6:]}")
    layer = built(x.shape, axis=axis, dtype=policy)
    y = layer(x, training=True)
    assert (y.shape, y.stride()) == (x.shape, x.stride())
    dy = torch.empty_like(y).normal_()
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.stride() == x.stride()
    expected = reference.forward(array(x.detach()), axis=axis).y
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    np.testing.assert_allclose(array(y.detach()), expected, tolerance, tolerance)


def test_no_copy_and_nothing_of_the_size_of_the_input():
    x = tensor(64, 32, 32, 16).permute(0, 3, 1, 2)
    layer = built(x.shape, axis=1)
    layer(x, training=True)  # Kernels are compiled.
    size = x.numel() * 4
    tracemalloc.start()
    y = layer(x, training=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= peak < 1.1 * size  # The output, whose memory is NumPy's.
    assert y.shape == x.shape


def test_sliced_and_expanded_inputs():
    for x in (tensor(4, 5, 6)[:, ::2, 1:], tensor(4, 1, 6).expand(4, 5, 6), tensor(4, 5, 6).mT):
        y = built(x.shape)(x, training=True)
        np.testing.assert_allclose(array(y), reference.forward(array(x)).y, 1e-5, 1e-5)
    # The gradient of a sum is one number, expanded.
    x = tensor(4, 5, 6).requires_grad_()
    built(x.shape)(x, training=True).sum().backward()
    np.testing.assert_allclose(array(x.grad), 0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.parametrize("of_gamma", [True, False])
@pytest.mark.parametrize("of_beta", [True, False])
def test_only_what_is_asked_for(of_x, of_gamma, of_beta, training, monkeypatch):
    layer = built()
    layer.gamma.value.requires_grad_(of_gamma)
    layer.beta.value.requires_grad_(of_beta)
    x = tensor(4, 3).requires_grad_(of_x)
    calls = []
    for function in (functions.TRAINING, functions.INFERENCE):
        name = function.backward.name
        monkeypatch.setitem(compute.COMPUTE, name, spy(compute.COMPUTE[name], calls))
    y = layer(x, training=training)
    assert y.requires_grad == (of_x or of_gamma or of_beta)
    if not y.requires_grad:
        return
    y.sum().backward()
    wanted = tuple(
        name for name, asked in (("dx", of_x), ("dgamma", of_gamma), ("dbeta", of_beta)) if asked
    )
    assert calls == [wanted]
    assert (x.grad is not None) == of_x
    assert (layer.gamma.value.grad is not None) == of_gamma


def spy(compute, calls):
    def run(inputs, attributes, wanted, outputs):
        calls.append(wanted)
        return compute(inputs, attributes, wanted, outputs)

    return run


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(mode, training):
    layer, x = built(), tensor(4, 3)
    with mode():
        y = layer(x, training=training)
    assert not y.requires_grad
    expected = built()(x, training=training)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, check_device=True)


def test_input_made_in_inference_mode():
    layer = built()
    with torch.inference_mode():
        x = tensor(4, 3)
        layer(x, training=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        layer(x, training=True)


def test_input_changed_before_the_backward():
    layer, x = built(), tensor(4, 3)
    y = layer(x, training=True)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_is_kept_when_the_output_goes():
    layer, x = built(), tensor(4, 3).requires_grad_()
    y = layer(x, training=True)
    gone = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_backward_in_several_threads():
    """autograd runs a thread's backward there; kernels of several threads at once."""
    errors = []

    def work(seed):
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=(64, 8))).float()
        x.requires_grad_()
        layer = built(x.shape)
        for _ in range(5):
            y = layer(x, training=True)
            dy = torch.arange(8.0).expand(64, 8) * x.detach()
            (dx,) = torch.autograd.grad(y, x, dy)
            expected = reference.backward(array(dy), array(x.detach()))[0]
            if not np.allclose(array(dx), expected, atol=1e-4):
                errors.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


class Normalized(torch.utils.data.Dataset):
    """Items that go through a layer, in whatever process they are asked for."""

    def __init__(self):
        self.x = tensor(8, 5, 3)
        self.layer = built((None, 5, 3))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.layer(self.x[index : index + 1], training=True)[0]


def test_data_loader_workers():
    data = Normalized()
    expected = torch.stack([data[index] for index in range(8)])
    # Forked after kernels have run in several threads here.
    built((64, 256, 64))(tensor(64, 256, 64), training=True)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=0, atol=0)


def test_meta_tensors():
    layer = built()
    y = layer(torch.empty(4, 3, device="meta"), training=False)
    assert (y.device.type, tuple(y.shape)) == ("meta", (4, 3))


REFUSED = (
    r"numbabn\.keras\.BatchNormalization does not train {}: differentiate with "
    r"torch\.autograd\.grad, or use keras\.layers\.BatchNormalization, which "
    r"numbabn\.keras\.convert\(model, to_keras=True\) puts back"
)


def test_function_transforms_are_refused_in_training():
    layer = built()
    before = array(layer.moving_mean)
    with pytest.raises(NotImplementedError, match=REFUSED.format("under the .* of torch.func")):
        torch.func.grad(lambda x: layer(x, training=True).sum())(tensor(4, 3))
    np.testing.assert_array_equal(array(layer.moving_mean), before)


# torch's own, where it loads its forward mode.
loads_forward_mode = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


@loads_forward_mode
@pytest.mark.parametrize("trainable", [True, False])
def test_function_transforms_of_inference(trainable):
    layer, x = built(trainable=trainable), tensor(5, 4, 3)
    layer.moving_mean.assign([1.0, 2.0, 3.0])

    def loss(x):
        return layer(x, training=not trainable).pow(3).sum()

    given = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(map(loss, given)), given)
    found = torch.func.vmap(torch.func.grad(loss))(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    jacobian = torch.func.jacfwd(lambda x: layer(x[None])[0])(x[0, 0])
    slope = 1 / np.sqrt(1 + layer.epsilon)
    np.testing.assert_allclose(array(jacobian), slope * np.eye(3), rtol=1e-5)


@loads_forward_mode
def test_forward_mode():
    """In training it is refused, also where no gradient is asked for: tangents would be lost."""
    layer = built()
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), torch.no_grad():
        layer(tensor(4, 3))  # no dual
        x = forward_ad.make_dual(tensor(4, 3), torch.ones(4, 3))
        with pytest.raises(NotImplementedError, match=REFUSED.format("in torch's forward mode .*")):
            layer(x, training=True)
        layer.trainable = False
        tangent = forward_ad.unpack_dual(layer(x, training=True)).tangent
    np.testing.assert_allclose(array(tangent), 1 / np.sqrt(1 + layer.epsilon), rtol=1e-5)


def test_same_forward_with_and_without_gradients():
    x = tensor(16, 3)
    torch.testing.assert_close(
        built()(x.clone().requires_grad_(), training=True).detach(),
        built()(x, training=True).detach(), rtol=0, atol=0,
    )  # fmt: skip


def test_other_devices_are_refused(monkeypatch):
    class Elsewhere:
        type = "mps"

        def __str__(self):
            return "mps:0"

    class Fake(torch.Tensor):
        device = Elsewhere()

    message = (
        "^x is on the device mps:0: numbabn computes on the CPU or on a CUDA device, where x and "
        "all other inputs have to be$"
    )
    with pytest.raises(TypeError, match=message):
        tensors.array_of(tensor(4, 3).as_subclass(Fake), "x")


def test_keras_runs_on_torch():
    assert keras.backend.backend() == "torch"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("renorm", [False, True])
def test_a_checkpoint_moves_statistics_once(renorm, reentrant):
    x = np.random.default_rng(0).normal(2, 3, (16, 6)).astype(np.float32)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32))
    found = []
    for checkpointed in (False, True):
        layer = BatchNormalization(momentum=0.5, renorm=renorm, renorm_momentum=0.5)
        layer.build((None, 6))
        given = torch.from_numpy(x).requires_grad_()

        def run(values, layer=layer):
            # Something after it, for which the forward is run again to the end.
            return torch.sin(layer(values, training=True)).square()

        for _ in range(2):
            y = (
                torch.utils.checkpoint.checkpoint(run, given, use_reentrant=reentrant)
                if checkpointed
                else run(given)
            )
            (y * weights).sum().backward()
        gradients = [given.grad, layer.gamma.value.grad, layer.beta.value.grad]
        found.append([*map(array, gradients), *(array(each.value) for each in layer.weights)])
    for plain, other in zip(*found, strict=True):
        np.testing.assert_allclose(plain, other, 1e-6, 1e-6)


def test_statistics_that_are_not_finite_are_skipped_where_it_is_compiled():
    layer = built((4, 3), skip_nonfinite=True)
    x = tensor(4, 3)
    x[1, 2] = torch.nan
    torch.compile(lambda x: layer(x, training=True), backend="eager")(x)
    mean = array(layer.moving_mean.value)
    assert mean[2] == 0
    assert (mean[:2] != 0).all()
