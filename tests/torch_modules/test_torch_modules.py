"""numbabn.torch beside torch's own modules, and, where those have no masks, beside the oracle."""

import copy
import doctest
import io
import pickle

import numpy as np
import pytest
import torch

import numbabn.torch
import reference
from numbabn import Renorm
from numbabn.torch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, batch_norm, convert
from pages import pages, run
from processes import run_python

TORCH = frozenset({"numbabn.torch"})
RNG = np.random.default_rng(0)
# A layer of torch's, ours, and an input for them.
PEERS = [
    (torch.nn.BatchNorm1d, BatchNorm1d, (6, 4)),
    (torch.nn.BatchNorm1d, BatchNorm1d, (6, 4, 5)),
    (torch.nn.BatchNorm2d, BatchNorm2d, (6, 4, 5, 3)),
    (torch.nn.BatchNorm3d, BatchNorm3d, (6, 4, 2, 3, 3)),
]
OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"track_running_stats": False},
    {"dtype": torch.float64},
]


def tensor(*shape, dtype=torch.float32):
    return torch.from_numpy(RNG.normal(2, 3, shape)).to(dtype)


def array(tensor):
    return tensor.detach().double().numpy()


def step(module, x, dy, *arguments):
    """What a step gives: y, dx, the gradients of parameters."""
    x = x.detach().requires_grad_()
    y = module(x, *arguments)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], dy)


def agree(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def pair(peer, own, **options):
    """Both with the same parameters, which are not what new ones are."""
    modules = peer(4, **options), own(4, **options)
    if modules[0].affine:
        for parameter in modules[0].parameters():
            parameter.data = tensor(4, dtype=parameter.dtype)
    modules[1].load_state_dict(modules[0].state_dict())
    return modules


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("peer", "own", "shape"), PEERS)
def test_as_torchs_own(peer, own, shape, options):
    modules = pair(peer, own, **options)
    dtype = options.get("dtype", torch.float32)
    for _ in range(2):
        x, dy = tensor(*shape, dtype=dtype), tensor(*shape, dtype=dtype)
        expected, found = (step(module, x, dy) for module in modules)
        agree(found, expected)
        agree(modules[1].state_dict(), modules[0].state_dict())
    expected, found = (step(module.eval(), x, dy) for module in modules)
    agree(found, expected)
    modules[0].load_state_dict(modules[1].state_dict())
    modules[0].reset_running_stats()
    modules[1].reset_running_stats()
    agree(modules[1].state_dict(), modules[0].state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast(dtype):
    """What comes of a convolution is of 16 bits, and parameters are not."""
    peer, own = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), each)
        for each in pair(torch.nn.BatchNorm2d, BatchNorm2d)
    )
    own[0].load_state_dict(peer[0].state_dict())
    x, dy = tensor(6, 3, 5, 2), tensor(6, 4, 5, 2, dtype=dtype)
    with torch.autocast("cpu", dtype):
        expected, found = step(peer, x, dy), step(own, x, dy)
    assert found[0].dtype == dtype
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    agree(found, expected, tolerance)
    agree(own.state_dict(), peer.state_dict(), tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_dtype(dtype):
    module = BatchNorm1d(4, affine=True).to(dtype)
    x, dy = tensor(6, 4, dtype=dtype), tensor(6, 4, dtype=dtype)
    y, dx, *gradients = step(module, x, dy)
    assert {each.dtype for each in (y, dx, *gradients, module.running_mean)} == {dtype}
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]
    expected = reference.forward(array(x), epsilon=1e-5).y
    np.testing.assert_allclose(array(y), expected, tolerance, tolerance)
    np.testing.assert_allclose(
        array(module.running_mean), array(x).mean(0) / 10, tolerance, tolerance
    )


def test_memory_orders():
    """Nothing is copied into another one: what goes out lies as what came in."""
    modules = pair(torch.nn.BatchNorm2d, BatchNorm2d)
    for x in (
        tensor(6, 4, 5, 3).to(memory_format=torch.channels_last),
        tensor(6, 5, 4, 3).transpose(1, 2)[:, :, ::2],
        tensor(1, 4, 1, 3).expand(6, 4, 5, 3),
    ):
        expected, found = (step(module, x, torch.ones(x.shape)) for module in modules)
        agree(found, expected, 1e-4)
        if x.is_contiguous(memory_format=torch.channels_last):
            assert found[0].stride() == found[1].stride() == x.stride()


@pytest.mark.parametrize("rank", ["whole", "without channels"])
@pytest.mark.parametrize(("axis", "shape"), [(1, (5, 4, 6)), (-1, (5, 6, 4))])
@pytest.mark.parametrize("renorm", [False, True])
def test_masks_and_renorm(renorm, axis, shape, rank):
    """Beside the oracle, with NaN where the mask is off, and dy is 0."""
    clipping = {"rmin": 0.5, "rmax": 1.1, "dmax": 0.2} if renorm else None
    module = BatchNorm(4, axis=axis, renorm=renorm, renorm_clipping=clipping)
    for parameter in (module.weight, module.bias):
        parameter.data = tensor(4)
    before = array(module.running_mean), array(module.running_var)
    on = RNG.random((5, 6)) < 0.6
    of_channel = np.expand_dims(on, axis)
    x, dy = tensor(*shape), tensor(*shape) * torch.from_numpy(of_channel)
    x = torch.where(torch.from_numpy(of_channel), x, torch.nan)
    mask = torch.from_numpy(on if rank == "without channels" else of_channel)
    y, dx, dgamma, dbeta = step(module, x, dy, mask)
    gamma, beta = array(module.weight), array(module.bias)
    stddev = np.sqrt(before[1] + 1e-5)
    reference_ = (before[0], stddev, clipping) if renorm else None
    options = {"axis": axis, "mask": of_channel, "epsilon": 1e-5}
    expected = reference.forward(array(x), gamma, beta, renorm=reference_, **options)
    np.testing.assert_allclose(array(y), expected.y, 1e-4, 1e-4)
    gradients = reference.backward(
        array(dy), array(x), gamma, r=expected.r, d=expected.d, **options
    )
    for found, each in zip((dx, dgamma, dbeta), gradients, strict=True):
        np.testing.assert_allclose(array(found), each, 1e-4, 1e-4)
    count, mean, variance = expected.statistics
    if not renorm:
        variance = variance * count / (count - 1)
    np.testing.assert_allclose(array(module.running_mean), 0.9 * before[0] + 0.1 * mean, 1e-5)
    np.testing.assert_allclose(array(module.running_var), 0.9 * before[1] + 0.1 * variance, 1e-5)


def test_channels_without_a_value_keep_their_statistics():
    module = BatchNorm1d(3)
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    y = module(tensor(2, 3), mask)
    assert torch.isfinite(y).all()
    assert (module.running_mean != 0).tolist() == [True, False, True]
    # Of a single value the variance is 0, by n too.
    agree(module.running_var[1:], torch.tensor([1.0, 0.9]))


def test_unbiased_as_asked():
    x = tensor(4, 2)
    for renorm, unbiased, correction in (
        (False, None, 1),
        (False, False, 0),
        (True, None, 0),
        (True, True, 1),
    ):
        module = BatchNorm1d(2, momentum=1.0, renorm=renorm, unbiased=unbiased)
        module(x)
        agree(module.running_var, x.var(0, correction=correction))


def test_gradients_of_gradients():
    x, gamma, beta = (
        tensor(*shape, dtype=torch.float64).requires_grad_() for shape in ((5, 3), (3,), (3,))
    )
    mask = torch.tensor([1, 1, 0, 1, 1])
    # Limits that hold r and d: finite differences would move them.
    renorm = Renorm(torch.zeros(3), torch.ones(3), {"rmin": 2, "rmax": 2, "dmax": 0})
    constants = {"mean": torch.zeros(3), "variance": torch.ones(3)}
    for options in ({}, {"mask": mask}, {"mask": mask, "renorm": renorm}, constants):

        def call(x, gamma, beta, options=options):
            return batch_norm(x, gamma, beta, **options)

        torch.autograd.gradcheck(call, (x, gamma, beta))
        torch.autograd.gradgradcheck(call, (x, gamma, beta))


def test_the_function_corrects_as_the_arrays_functions_do():
    x, stddev = tensor(6, 3), torch.tensor([1.0, 2.0, 1e-4])
    mean, clipping = tensor(3), {"rmax": 5.0, "dmax": 1.0}
    found = batch_norm(x, renorm=Renorm(mean, stddev, clipping))
    renorm = Renorm(mean.numpy(), stddev.numpy(), clipping)
    expected, _ = numbabn.batch_norm_forward(x.numpy(), axis=1, epsilon=1e-5, renorm=renorm)
    np.testing.assert_allclose(array(found), expected, 1e-5, 1e-5)


def test_an_optimizer_between_forward_and_backward():
    module, peer = BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    x = tensor(6, 4)
    y, expected = (each(x) for each in (module, peer))
    (dgamma,) = torch.autograd.grad(expected.pow(3).sum(), [peer.weight])
    loss = y.pow(3).sum()
    with torch.no_grad():
        module.weight.mul_(2)
    agree(torch.autograd.grad(loss, [module.weight])[0], dgamma, 1e-4)


def test_an_input_that_is_changed_before_the_backward():
    x = tensor(6, 4)
    y = BatchNorm1d(4)(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_copies():
    """A copy has limits of its own."""
    module = BatchNorm1d(4, renorm=True, renorm_clipping={"rmax": 2.0})
    copied, loaded = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    copied.renorm_clipping = {"rmax": 3.0}
    assert [each.renorm_clipping.rmax for each in (module, copied, loaded)] == [2.0, 3.0, 2.0]
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    torch.nn.BatchNorm1d(4).load_state_dict(torch.load(file))


def test_statistics_taken_anew():
    """torch's way to do it finds the modules: they are its own."""
    module, peer = BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    data = [tensor(6, 4) for _ in range(3)]
    for each in (module, peer):
        torch.optim.swa_utils.update_bn(data, each)
    agree(module.state_dict(), peer.state_dict())


def net():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)
    )


@pytest.mark.parametrize("training", [True, False])
def test_convert_there_and_back(training):
    module = net().train(training)
    module.append(module[1])  # twice in it
    expected = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    converted = convert(module, renorm=True, renorm_clipping={"rmin": 1, "rmax": 1, "dmax": 0})
    assert converted is module
    assert type(module[1]) is BatchNorm2d
    assert module[1] is module[4]
    assert module[1].training is training
    assert optimizer.param_groups[0]["params"] == list(module.parameters())
    x = tensor(2, 3, 8, 8)
    agree(module(x), expected(x))
    back = convert(module, to_torch=True)
    assert type(back[1]) is torch.nn.BatchNorm2d
    assert back[1] is back[4]
    agree(back.eval()(x), module.eval()(x))
    assert str(back) == str(expected)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_convert_one_module(options):
    old = torch.nn.BatchNorm1d(4, momentum=None, eps=0.1, **options)
    new = convert(old)
    assert type(new) is BatchNorm1d
    assert (new.momentum, new.eps) == (None, 0.1)
    assert new.state_dict().keys() == old.state_dict().keys()
    x = tensor(6, 4)
    agree(new(x), copy.deepcopy(old)(x))


def test_convert_leaves_what_is_not_the_same():
    class Own(torch.nn.BatchNorm1d):
        """A computation of its own."""

    module = torch.nn.Sequential(Own(4), torch.nn.SyncBatchNorm(4), torch.nn.LazyBatchNorm1d())
    types = [type(each) for each in module]
    assert [type(each) for each in convert(module)] == types


def test_convert_refuses():
    module = torch.nn.Sequential(BatchNorm2d(4), BatchNorm1d(4, axis=-1))
    message = (
        r"^1 cannot become one of torch's: a numbabn\.torch\.BatchNorm1d with axis=-1 has no equal "
        "there$"
    )
    with pytest.raises(ValueError, match=message):
        convert(module, to_torch=True)
    assert type(module[0]) is BatchNorm2d
    message = r"^module cannot become one of torch's: a numbabn\.torch\.BatchNorm with axis=1 has"
    with pytest.raises(ValueError, match=message):
        convert(BatchNorm(4), to_torch=True)
    with pytest.raises(TypeError, match=r"^module must be a torch\.nn\.Module, got int$"):
        convert(3)
    message = "^changes must be one of renorm, renorm_clipping, unbiased, got axis$"
    with pytest.raises(TypeError, match=message):
        convert(module, axis=-1)
    with pytest.raises(TypeError, match=r"^changes must be none with to_torch=True, got renorm$"):
        convert(module, to_torch=True, renorm=True)


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: batch_norm([1.0]), TypeError, "x must be a torch tensor, got list"),
        (lambda: batch_norm(X, 1.0), TypeError, "gamma must be a torch tensor, got float"),
        (lambda: batch_norm(X, mask=[1]), TypeError, "mask must be a torch tensor, got list"),
        (
            lambda: batch_norm(X, mean=X[0]),
            ValueError,
            "mean and variance must be given together, got mean without variance",
        ),
        (
            lambda: batch_norm(X, mean=X[0], variance=X[0], mask=X),
            ValueError,
            "mask must be None where mean and variance are given: it changes the batch's "
            "statistics, which are not used",
        ),
        (lambda: batch_norm(X, renorm={}), TypeError, "renorm must be a Renorm, got dict"),
        (
            lambda: batch_norm(X, X),
            ValueError,
            r"gamma must have shape \(3,\), one value for each channel of x, got \(4, 3\)",
        ),
        (
            lambda: batch_norm(X.int()),
            TypeError,
            "x must be float16, bfloat16, float32 or float64, got int32",
        ),
        (lambda: BatchNorm(3, axis=[1]), TypeError, "axis must be an int, got list"),
        (
            lambda: BatchNorm(3, renorm=True, track_running_stats=False),
            ValueError,
            "renorm=True needs track_running_stats=True: it corrects against these statistics",
        ),
        (lambda: BatchNorm(3)(X[0]), ValueError, "x must have rank 2 or more, got 1"),
        (lambda: BatchNorm(3)(1), TypeError, "x must be a torch tensor, got int"),
        (lambda: BatchNorm1d(3)(X[0]), ValueError, r"expected 2D or 3D input \(got 1D input\)"),
        (lambda: BatchNorm2d(3)(X), ValueError, r"expected 4D input \(got 2D input\)"),
        (lambda: BatchNorm3d(3)(X), ValueError, r"expected 5D input \(got 2D input\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        call()


REFUSED = (
    r"^numbabn\.torch does not train {}: differentiate with torch\.autograd\.grad, or use "
    r"torch\.nn's modules, which numbabn\.torch\.convert\(module, to_torch=True\) puts back$"
)


# torch's own, where it loads its forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms():
    """In evaluation an expression goes under all of them."""
    module = BatchNorm(3)
    for transform in (torch.func.grad(lambda x: module(x).sum()), torch.func.vmap(module)):
        with pytest.raises(
            NotImplementedError, match=REFUSED.format(r"under the transforms of torch\.func")
        ):
            transform(tensor(2, 4, 3).mT)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        x = forward_ad.make_dual(tensor(4, 3), tensor(4, 3))
        mode = r"in torch's forward mode \(torch\.autograd\.forward_ad\)"
        with pytest.raises(NotImplementedError, match=REFUSED.format(mode)):
            module(x)
        assert not module.running_mean.any()
        module.eval()
        assert forward_ad.unpack_dual(module(x)).tangent is not None
    x = tensor(2, 4, 3).mT
    agree(torch.func.vmap(module)(x[None])[0], module(x))
    found = torch.func.grad(lambda x: module(x).sum())(x)
    agree(found, torch.full(x.shape, (1 + 1e-5) ** -0.5))


def test_functional_call():
    module, peer = pair(torch.nn.BatchNorm1d, BatchNorm1d)
    x, before = tensor(6, 4), copy.deepcopy(module.state_dict())
    states = [copy.deepcopy(before) for _ in range(2)]
    found, expected = (
        torch.func.functional_call(each, state, (x,))
        for each, state in zip((module, peer), states, strict=True)
    )
    agree(found, expected)
    agree(*states)
    agree(module.state_dict(), before, 0)


def test_data_parallel(tmp_path):
    """Buffers and gradients go the way that torch's modules take."""
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        modules = pair(torch.nn.BatchNorm1d, BatchNorm1d)
        parallel = [torch.nn.parallel.DistributedDataParallel(each) for each in modules]
        x, dy = tensor(6, 4), tensor(6, 4)
        for each in parallel:
            each(x).backward(dy)
    finally:
        distributed.destroy_process_group()
    agree(*([each.grad for each in module.parameters()] for module in modules))


@pytest.mark.parametrize("name", numbabn.torch.__all__)
def test_examples(name):
    public = {each: getattr(numbabn.torch, each) for each in numbabn.torch.__all__}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    report = []
    for test in finder.find(public[name], name, globs=public):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("page", pages(TORCH), ids=lambda page: page.name)
def test_the_code_in_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert page.name != "guide.md" or "network" in run(page, TORCH)


def test_keras_is_not_needed():
    run_python("import sys, numbabn.torch; assert 'keras' not in sys.modules")
