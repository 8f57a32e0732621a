"""torch.compile of the layer: one graph, the same results, and limits read when it runs."""

import shutil
from functools import partial

import keras
import numpy as np
import pytest
import torch
from backends import array, weights_of

from numbabn.embedded.operations import BACKWARD, FORWARD, NORMALIZE, Attributes
from numbabn.keras import BatchNormalization
from numbabn.tensors import operators
from numbabn.tensors.late import Late

RNG = np.random.default_rng(0)
# Differentiates and lowers as the whole compiler does, and generates no code.
BACKEND = "aot_eager"
# Dynamo's own, where a graph breaks at a tensor that has a gradient function.
graph_breaks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo counts how often a line of a test is compiled."""
    torch._dynamo.reset()


def tensor(*shape, dtype=torch.float32):
    return torch.from_numpy(RNG.normal(2, 3, shape)).to(dtype)


def built(shape, **arguments):
    layer = BatchNormalization(**arguments)
    layer.build(shape)
    return layer


def step(call, layer, x, dy):
    """Everything that a step gives, by name."""
    x = x.detach().requires_grad_()
    y = call(layer, x)
    values = [weight.value for weight in layer.trainable_weights]
    dx, *gradients = torch.autograd.grad(y, [x, *values], dy)
    named = zip((weight.name for weight in layer.trainable_weights), gradients, strict=True)
    return {
        "y": array(y.detach()),
        "dx": array(dx),
        **{f"gradient of {name}": array(each) for name, each in named},
        **weights_of(layer),
    }


def train(layer, x):
    return layer(x * 1, training=True)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((8, 5), {}),
        ((4, 3, 5, 6), {"axis": 1, "center": False}),
        ((4, 3, 5), {"axis": [0, 2], "scale": False, "renorm": True}),
        ((8, 5), {"renorm": True, "renorm_momentum": None, "renorm_clipping": {"rmax": 1.1}}),
        ((8, 5), {"trainable": False}),
        ((8, 5), {"dtype": "mixed_float16"}),
        ((8, 5), {"dtype": "mixed_bfloat16"}),
        ((8, 5), {"dtype": "bfloat16", "renorm": True}),
        ((8, 5), {"dtype": "float64"}),
    ],
    ids=str,
)
def test_a_step_is_what_it_is_eagerly(shape, arguments):
    """To the last bit: the same kernels."""
    layers = [built(shape, **arguments) for _ in range(2)]
    x, dy = tensor(*shape), tensor(*shape)
    x, dy = (each.to(getattr(torch, layers[0].compute_dtype)) for each in (x, dy))
    compiled = torch.compile(train, backend=BACKEND, fullgraph=True)
    for _ in range(2):
        expected, found = (
            step(call, layer, x, dy) for call, layer in zip((train, compiled), layers, strict=True)
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    "x",
    [
        tensor(4, 5, 6, 3).permute(0, 3, 1, 2),
        tensor(4, 5, 1, 3).permute(0, 3, 1, 2),
        tensor(4, 5, 6)[:, ::2, 1:],
        tensor(4, 1, 6).expand(4, 5, 6),
    ],
    ids=["permuted", "a size of 1", "sliced", "expanded"],
)
def test_memory_orders(x):
    """The compiler relies on the strides that it foresaw, and lays out what follows by them."""

    def run(layer, x):
        y = layer(x, training=True)
        return y + 1, y.stride()

    layer, eager = built(x.shape), built(x.shape)
    (y, strides) = torch.compile(run, backend=BACKEND, fullgraph=True)(layer, x)
    np.testing.assert_array_equal(array(y), array(run(eager, x)[0]))
    assert strides == torch.empty_like(x).stride()


def test_an_open_batch_size():
    layer, eager = built((None, 3, 4), axis=1), built((None, 3, 4), axis=1)
    compiled = torch.compile(train, backend=BACKEND, fullgraph=True, dynamic=True)
    for size in (4, 5, 9):
        x, dy = tensor(size, 3, 4), tensor(size, 3, 4)
        found, expected = step(compiled, layer, x, dy), step(train, eager, x, dy)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def a_number(limits):
    given = {"rmax": 1.0}
    return given, lambda limit: given.update(rmax=limit)


def a_function(limits):
    return {"rmax": lambda: limits[0]}, lambda limit: None


def a_variable(limits):
    variable = keras.Variable(1.0, trainable=False)
    return {"rmax": variable}, variable.assign


@pytest.mark.parametrize("kind", [a_number, a_function, a_variable])
def test_limits_are_read_when_it_runs(kind):
    """Dynamo makes a number of a dictionary an input when it sees it change, and that is all."""
    limits, graphs = [1.0], []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(train, backend=count, fullgraph=True)
    given, change = kind(limits)
    layer, eager = (
        built((8, 3), renorm=True, momentum=0.5, renorm_clipping=clipping)
        for clipping in (given, None)
    )
    for step in range(5):
        limits[0] = 1.0 + step / 10
        change(limits[0])
        eager.renorm_clipping = {"rmax": limits[0]}
        x = tensor(8, 3)
        np.testing.assert_array_equal(array(compiled(layer, x)), array(train(eager, x)))
    assert len(graphs) == (2 if kind is a_number else 1)


def test_limits_that_are_replaced():
    layer, eager = (built((8, 3), renorm=True) for _ in range(2))
    compiled = torch.compile(train, backend=BACKEND, fullgraph=True)
    for rmax in (1.0, 1.1, 1.2):
        layer.renorm_clipping = eager.renorm_clipping = {"rmax": rmax}
        x = tensor(8, 3)
        np.testing.assert_array_equal(array(compiled(layer, x)), array(train(eager, x)))


def test_a_variable_that_the_program_itself_changes():
    variable = keras.Variable(1.0, trainable=False)

    def run(layer, x):
        variable.assign(variable + 0.1)
        return layer(x, training=True)

    layer, eager = (
        built((8, 3), renorm=True, renorm_clipping={"rmax": limit}) for limit in (variable, 1.1)
    )
    x = tensor(8, 3)
    y = torch.compile(run, backend=BACKEND, fullgraph=True)(layer, x)
    np.testing.assert_array_equal(array(y), array(train(eager, x)))


def test_limits_of_a_layer_that_is_gone():
    late = Late(lambda: 3.0)
    inputs = {"x": tensor(4, 3), "rmax": late}
    inputs |= {"moving_mean": torch.zeros(3), "moving_variance": torch.ones(3)}
    attributes = Attributes(-1, 1e-3, 0.9, renorm=False, renorm_momentum=None)
    operators.call(FORWARD, inputs, attributes)
    arguments = operators._arguments(FORWARD, inputs, attributes, "")
    del late, inputs
    message = (
        "^the limits of renorm cannot be read: the layer that this program was made of is gone, or "
        "was in another process$"
    )
    with pytest.raises(RuntimeError, match=message):
        operators._OPERATORS[FORWARD.name](*arguments)


@graph_breaks
def test_a_mask():
    """Keras attaches it to the output, where the graph breaks."""
    mask = torch.from_numpy(RNG.random((4, 5)) < 0.6)

    def run(layer, x):
        return layer(x, training=True, mask=mask)

    layers = [built((4, 5, 3)) for _ in range(2)]
    x, dy = tensor(4, 5, 3), tensor(4, 5, 3)
    calls = torch.compile(run, backend=BACKEND), run
    found, expected = (
        step(call, *each, x, dy) for call, each in zip(calls, zip(layers), strict=True)
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_without_a_gradient():
    layer, eager = built((4, 3)), built((4, 3))
    compiled = torch.compile(train, backend=BACKEND, fullgraph=True)
    for mode in (torch.no_grad, torch.inference_mode):
        x = tensor(4, 3)
        with mode():
            np.testing.assert_array_equal(array(compiled(layer, x)), array(train(eager, x)))


def model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5), BatchNormalization(renorm=True), keras.layers.Dense(1)]
    return keras.Sequential([keras.layers.Input((6,)), *layers])


@graph_breaks
def test_a_model_that_is_trained(monkeypatch):
    """With what Keras compiles of a step, of which its own code breaks the graph in places."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=BACKEND))
    x, losses = RNG.normal(size=(32, 6)).astype("float32"), []
    for jit_compile in (False, True):
        each = model()
        each.compile("sgd", "mse", jit_compile=jit_compile)
        losses.append([each.train_on_batch(x, x[:, :1]) for _ in range(2)])
    assert losses[0][0] != losses[0][1]
    np.testing.assert_allclose(*losses, rtol=1e-5)


# torch's own, where it loads its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_by_the_whole_compiler():
    def run(layer, x):
        return torch.relu(layer(x * 2, training=True)) + 1

    layer, eager = (built((6, 5, 4), axis=1, renorm=True) for _ in range(2))
    x, dy = tensor(6, 5, 4), tensor(6, 5, 4)
    compiled = torch.compile(run, fullgraph=True)
    found, expected = step(compiled, layer, x, dy), step(run, eager, x, dy)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("axis", [-1, 1, (0, 2)])
@pytest.mark.parametrize("operation", [FORWARD, NORMALIZE, BACKWARD])
def test_what_torch_asks_of_an_operator(operation, axis, renorm):
    """Its schema, its shapes and strides, its gradient, and all of them under the compiler."""
    x = tensor(4, 5, 3).transpose(0, 1).requires_grad_()
    rows = {-1: (3,), 1: (4,), (0, 2): (5, 1, 3)}[axis]
    inputs = {
        "x": x,
        "gamma": tensor(*rows).requires_grad_(),
        "beta": tensor(*rows).requires_grad_(),
        "mask": torch.ones(5, 4, 1),
        "moving_mean": torch.zeros(rows),
        "moving_variance": torch.ones(rows),
    }
    attributes = Attributes(axis, 1e-3, 0.9, renorm=renorm, renorm_momentum=None)
    wanted = ""
    if operation is BACKWARD:
        inputs |= operators.call(FORWARD, inputs, attributes) | {"dy": tensor(5, 4, 3)}
        inputs = {name: each.detach() for name, each in inputs.items()}
        wanted = "dx,dgamma"
    arguments = operators._arguments(operation, inputs, attributes, wanted)
    torch.library.opcheck(operators._OPERATORS[operation.name], arguments)


class Net(torch.nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.layer = built((None, 4), renorm=True, renorm_clipping={"rmax": 1.1})
        self.arguments = arguments

    def forward(self, x):
        return self.layer(x, **self.arguments)


@pytest.mark.parametrize("training", [True, False])
def test_exported(training):
    """With the operators in it, which take any batch size."""
    x, size = tensor(9, 4), torch.export.Dim("size", min=2)
    net = Net(training=training)
    program = torch.export.export(net, (tensor(6, 4),), dynamic_shapes=({0: size},))
    np.testing.assert_array_equal(array(program.module()(x)), array(Net(training=training)(x)))


# Of torch's, which would have programs exported.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_traced():
    x, net = tensor(9, 4), Net()
    traced = torch.jit.trace(net, (tensor(6, 4),))
    np.testing.assert_array_equal(array(traced(x)), array(net(x)))


def test_exported_by_keras(tmp_path):
    model = keras.Sequential([keras.layers.Input((3,)), BatchNormalization()])
    model.export(tmp_path / "model.pt2", format="torch", verbose=False)
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = tensor(1, 3)
    np.testing.assert_array_equal(array(program(x)), array(model(x)))
