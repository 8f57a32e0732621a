"""The frameworks whose programs call the kernels: one object each, with what tests ask of it."""

import re

import numpy as np

from numbabn.embedded.operations import Attributes
from numbabn.keras.bridges import bridge_of
from numbabn.keras.functions import TRAINING
from numbabn.keras.gradient import apply
from numbabn.tensors.compute import COMPUTE


def caller_of(backend):
    """The caller that is tested on a backend of Keras."""
    return {"jax": Jax, "tensorflow": TensorFlow}[backend]()


def attributes_of(axis=-1, renorm=None):
    """Of a layer; `renorm` is None, "separate" or "shared"."""
    momentum = 0.8 if renorm == "separate" else None
    return Attributes(axis, 1e-3, 0.9, renorm=bool(renorm), renorm_momentum=momentum)


class Caller:
    """What follows from the rest.

    package: of `numbabn.embedded`
    errors: what is raised where a program fails as it runs
    kernel, python: what the node of a program is called that is a kernel, or Python's
    of_a_step: how many kernels there are in a training step over large tensors, backward included
    """

    def on_host(self, operation, inputs, attributes, wanted):
        """An operation on NumPy arrays."""
        results = COMPUTE[operation.name](inputs, attributes, wanted, {})
        return {name: results[name] for name in wanted}

    def train(self, x, gamma, beta, mask=None, attributes=None, **limits):
        """The results of a training call through the bridge, from statistics of 0 and 1."""
        attributes = attributes_of() if attributes is None else attributes
        given = {"x": x, "gamma": gamma, "beta": beta, **limits}
        given["moving_mean"] = self.tensor(np.zeros(gamma.shape, np.float32))
        given["moving_variance"] = self.tensor(np.ones(gamma.shape, np.float32))
        if mask is not None:
            given["mask"] = mask
        return apply(self.bridge, TRAINING, given, attributes)


class Jax(Caller):
    kernel, python = "numbabn_execute", "callback"
    of_a_step = 3  # The backward is two, for XLA to leave out what nobody reads.
    # A mask is brought to the size of x along the reduced axes, as on the host.
    expands_masks = True

    def __init__(self):
        import jax

        from numbabn.embedded import xla

        self.package, self.bridge = xla, bridge_of("jax")
        # jaxlib raises ValueError where the caller's own thread ran the program.
        self.errors = (ValueError, jax.errors.JaxRuntimeError)

    def refuse(self, monkeypatch):
        import jax

        def refuse(*arguments, **options):
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: unsupported API version")

        monkeypatch.setattr(jax.ffi, "ffi_call", refuse)

    def serves(self, axis, rank):
        return True

    def tensor(self, array):
        import jax.numpy as jnp

        return jnp.asarray(array)

    def compiled(self, function):
        import jax

        return jax.jit(function)

    def nodes(self, function, *arguments):
        text = self.compiled(function).lower(*arguments).as_text()
        return re.findall(r"custom_call @(\w+)", text)

    def call(self, operation, inputs, attributes, wanted):
        return self.package.call(operation.name, inputs, attributes, wanted)

    def runs(self, run, inputs):
        return [self.compiled(run), run]

    def array(self, tensor, name=None):
        array = np.asarray(tensor)
        return array.view(np.float64)[..., 0] if name == "saved" else array

    def operand(self, array, name):
        if name == "saved":
            array = np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, 2)
        return self.tensor(array)

    def gradients(self, loss, tensors):
        import jax

        return jax.grad(loss, tuple(range(len(tensors))))(*tensors)

    def total(self, tensor, weights):
        return (tensor * weights.astype(tensor.dtype)).sum()

    def wait(self, results):
        import jax

        return jax.block_until_ready(results)


class TensorFlow(Caller):
    kernel, python = "NumbabnKernels", "PyFunc"
    of_a_step = 2
    expands_masks = False

    def __init__(self):
        import tensorflow as tf

        from numbabn.embedded import tensorflow

        self.package, self.bridge = tensorflow, bridge_of("tensorflow")
        # Eagerly a ValueError of Python's own comes out as it is.
        self.errors = (
            ValueError,
            tf.errors.InvalidArgumentError,
            tf.errors.FailedPreconditionError,
        )

    def refuse(self, monkeypatch):
        from numbabn.embedded.tensorflow import operator

        monkeypatch.setattr(operator, "OPERATOR", "Identity")  # It has one of that name.
        monkeypatch.setattr(operator, "register", operator._register.__wrapped__)

    def serves(self, axis, rank):
        return isinstance(axis, int) or axis != (0, 2)

    def tensor(self, array):
        import tensorflow as tf

        return tf.constant(array)

    def compiled(self, function):
        import tensorflow as tf

        return tf.function(function)

    def nodes(self, function, *arguments):
        graph = self.compiled(function).get_concrete_function(*arguments).graph
        return [node.type for node in graph.get_operations()]

    def call(self, operation, inputs, attributes, wanted):
        return self.package.call(operation.name, inputs, {}, attributes, wanted)

    def runs(self, run, inputs):
        """Eagerly, as a graph, and as one in which every size but that of a channel is open."""
        import tensorflow as tf

        signature = {
            name: tf.TensorSpec(
                [None] * (value.ndim - 1) + [value.shape[-1]]
                if name in ("x", "dy", "mask") and value.ndim > 1
                else value.shape,
                value.dtype,
            )
            for name, value in inputs.items()
        }
        return [run, tf.function(run), tf.function(run, input_signature=[signature])]

    def array(self, tensor, name=None):
        return tensor.numpy()

    def operand(self, array, name):
        return self.tensor(array)

    def gradients(self, loss, tensors):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = loss(*tensors)
        return tape.gradient(value, tensors)

    def total(self, tensor, weights):
        import tensorflow as tf

        # Its gradient takes no arithmetic: the same bits eagerly and in a graph.
        return tf.reduce_sum(tensor * tf.constant(weights, tensor.dtype))

    def wait(self, results):
        return results
