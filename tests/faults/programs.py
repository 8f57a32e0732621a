"""The beginning of programs that run in processes of their own, on one backend of Keras."""

import os
import subprocess
import sys

import pytest

# A batch of each of several shapes, large ones among them, with what the layer makes of it.
SETUP = """
import os, random, signal, sys, threading, time, warnings
import numpy as np

rng = np.random.default_rng(5)
BATCHES = []
for rows in (3, 50, 5000):
    x = rng.normal(3.0, 2.0, (rows, 16)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-3)
    BATCHES.append((x, expected))

def right(y, expected):
    # x is rounded to float32, which the result is of the order of 1 of.
    assert np.max(np.abs(np.asarray(y) - expected)) < 1e-4

def arrays():
    import numbabn
    for x, expected in BATCHES:
        y, saved = numbabn.batch_norm_forward(x)
        right(y, expected)
        dx, _, dbeta = numbabn.batch_norm_backward(np.ones_like(x), x, saved)
        assert np.max(np.abs(dx)) < 1e-3 and np.max(np.abs(dbeta - len(x))) < 1e-2 * len(x)

def in_threads(work, number, seconds):
    '''Work in several threads at once, for a time; how often it was done.'''
    failures, done = [], []
    until = time.monotonic() + seconds
    barrier = threading.Barrier(number)
    def repeatedly():
        try:
            barrier.wait()
            while True:
                work()
                done.append(1)
                if time.monotonic() > until:
                    return
        except BaseException as error:
            failures.append(error)
            raise
    threads = [threading.Thread(target=repeatedly) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return len(done)
"""

# The same layer for all, and a training step of it.
KERAS = (
    SETUP
    + """
import keras
from keras import ops
from numbabn.keras import BatchNormalization

BACKEND = keras.backend.backend()

def new_layer(**options):
    layer = BatchNormalization(**options)
    layer.build((None, 16))
    return layer

layer = new_layer()

if BACKEND == "jax":
    import jax
    compiled = jax.jit(lambda *values: layer.stateless_call(*values, training=True))

    def compiled_step(x):
        values = [[each.value for each in one] for one in
                  (layer.trainable_variables, layer.non_trainable_variables)]
        return jax.block_until_ready(compiled(*values, x))[0]
elif BACKEND == "tensorflow":
    import tensorflow as tf
    compiled = tf.function(lambda x: layer(x, training=True),
                           input_signature=[tf.TensorSpec((None, 16))])

    def compiled_step(x):
        return compiled(tf.constant(x)).numpy()
else:
    import torch

    def compiled_step(x):
        tensor = torch.from_numpy(x).clone().requires_grad_()
        y = layer(tensor, training=True)
        (dx,) = torch.autograd.grad(y.sum(), [tensor])
        assert dx.abs().max() < 1e-3
        return y.detach().numpy()

def work():
    for x, expected in BATCHES:
        y = layer(ops.convert_to_tensor(x), training=True)
        right(ops.convert_to_numpy(y.detach() if BACKEND == "torch" else y), expected)
        right(compiled_step(x), expected)
"""
)


def run(program, *arguments, backend=None, status=0, timeout=280, **environment):
    """The standard output of a program, which must end with this status, and say nothing odd."""
    if backend is not None:
        environment |= {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    told = f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    if done.returncode != status:
        pytest.fail(told)
    for odd in ("Fatal Python error", "Exception ignored", "Segmentation", "core dumped"):
        assert odd not in done.stderr, told
    return done.stdout
