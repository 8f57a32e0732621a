"""Training steps, with SIGINT at random moments: ``python tests/faults/soak.py SECONDS``.

On the backend that KERAS_BACKEND names, by turns: eager steps of the Keras layer, compiled ones
(on torch, with the gradient) and the layer over arrays, of a few hundred shapes. Held is:

- Each step that is not interrupted gives what it gives without interrupts, to the bit.
- After an interrupt, all statistics are those before the step, or all are those after it; and the
  next step is right.
- No interrupt is lost: it is raised within `MOST_STEPS` steps. Python drops what is raised while
  it collects garbage, and JAX and TensorFlow run Python then; those are counted apart.
- Memory does not grow once all shapes have been seen.

Prints counts every ten seconds. The last line, of what was held, is there only if all was.
"""

import argparse
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback

import keras
import numpy as np
from keras import ops

import numbabn
from numbabn.interrupts import Uninterrupted
from numbabn.keras import BatchNormalization

BACKEND = keras.backend.backend()
CHANNELS = 3
# On JAX each shape is compiled, which takes a while.
SHAPES = 40 if BACKEND == "jax" else 400
# An interrupt is due at once; some steps later is the scheduler's doing.
MOST_STEPS = 2000
# What Python and the frameworks keep after the first minute, by what was seen in an hour.
MOST_GROWTH = 150


def batch(number):
    return np.random.default_rng(number).normal(2.0, 3.0, (2 + number, CHANNELS)).astype("f4")


class OfKeras:
    """The layer of Keras, and one kind of step."""

    def __init__(self):
        limits = {"rmax": lambda: 3.0, "dmax": lambda: 2.0}
        self.layer = BatchNormalization(renorm=True, renorm_clipping=limits)
        self.layer.build((None, CHANNELS))
        self.first = [np.array(ops.convert_to_numpy(each.value)) for each in self.layer.weights]

    def state(self):
        """The bytes of every weight."""
        return [ops.convert_to_numpy(each.value).tobytes() for each in self.layer.weights]

    def begin(self):
        """Have the weights of the beginning."""
        with Uninterrupted():
            for weight, value in zip(self.layer.weights, self.first, strict=True):
                weight.assign(value)


class Eager(OfKeras):
    def step(self, x):
        return ops.convert_to_numpy(self.layer(ops.convert_to_tensor(x), training=True))


class Graph(OfKeras):
    """TensorFlow's, whose sizes are open."""

    def __init__(self):
        import tensorflow as tf

        super().__init__()
        # One graph, since what chooses among several is spoilt where an interrupt meets it.
        self.run = tf.function(lambda x: self.layer(x, training=True)).get_concrete_function(
            tf.TensorSpec((None, CHANNELS))
        )

    def step(self, x):
        return self.run(ops.convert_to_tensor(x)).numpy()


class Jit(OfKeras):
    """JAX's; the step's own part ends with the new statistics, which the caller assigns."""

    def __init__(self):
        import jax

        super().__init__()
        self.wait = jax.block_until_ready
        self.run = jax.jit(
            lambda trainable, others, x: self.layer.stateless_call(
                trainable, others, x, training=True
            )
        )

    def step(self, x):
        trainable = [each.value for each in self.layer.trainable_variables]
        others = [each.value for each in self.layer.non_trainable_variables]
        y, moved = self.wait(self.run(trainable, others, x))
        with Uninterrupted():
            for variable, value in zip(self.layer.non_trainable_variables, moved, strict=True):
                variable.assign(value)
        return np.asarray(y)


class WithGradient(OfKeras):
    """torch's: the backward runs on a thread of autograd's."""

    def step(self, x):
        import torch

        tensor = ops.convert_to_tensor(x).requires_grad_()
        y = self.layer(tensor, training=True)
        torch.autograd.grad(y.sum(), [tensor, self.layer.gamma.value])
        return ops.convert_to_numpy(y.detach())


class OverArrays:
    """The layer over NumPy's arrays, forward and backward."""

    def __init__(self):
        self.layer = numbabn.BatchNormalization(renorm=True, renorm_clipping={"rmax": 3.0})
        self.layer.build(CHANNELS)
        self.first = {name: each.copy() for name, each in self.layer.weights.items()}

    def state(self):
        return [each.tobytes() for each in self.layer.weights.values()]

    def begin(self):
        with Uninterrupted():
            for name, value in self.first.items():
                setattr(self.layer, name, value)

    def step(self, x):
        y = self.layer(x, training=True)
        self.layer.backward(y)
        return y


COMPILED = {"tensorflow": Graph, "jax": Jit, "torch": WithGradient}[BACKEND]


class Failure(Exception):
    """Something that was to be held, and was not."""


class Steps:
    """One kind of step, and what each of its shapes gives."""

    def __init__(self, way):
        self.way, self.name = way, type(way).__name__
        self.before = way.state()
        self.expected = []
        for number in range(SHAPES):
            y = way.step(batch(number)).copy()
            self.expected.append((y.tobytes(), way.state()))
            way.begin()
        self.number = 0

    def run(self, number):
        """One step from the beginning, checked; the weights are those of the beginning then."""
        self.number = number
        y = self.way.step(batch(number))
        wanted, after = self.expected[number]
        if y.tobytes() != wanted or self.way.state() != after:
            raise Failure(f"{self.name}: a wrong step on {2 + number} rows")
        self.way.begin()

    def was_whole(self):
        """Whether the step that was interrupted is done; it must be that, or not begun."""
        found = self.way.state()
        if found not in (self.before, self.expected[self.number][1]):
            raise Failure(f"{self.name}: a step on {2 + self.number} rows was cut in two")
        return found != self.before


class Interrupter(threading.Thread):
    """Sends one SIGINT, at a random moment, whenever `wanted` is released."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.wanted = threading.Semaphore(0)
        self.sent = 0

    def run(self):
        while True:
            self.wanted.acquire()
            time.sleep(self.random.random() ** 2 * 0.02)
            os.kill(os.getpid(), signal.SIGINT)
            self.sent += 1


class Dropped:
    """Counts the interrupts that Python drops, of which no call can know."""

    def __init__(self):
        self.number = 0
        sys.unraisablehook = self

    def __call__(self, found):
        innermost = traceback.extract_tb(found.exc_traceback)[-1].filename
        if isinstance(found.exc_value, KeyboardInterrupt) and "numbabn" not in innermost:
            self.number += 1
        elif found.object is None or "answers" not in found.object.__qualname__:
            # A callback of ours that Python did not begin is asked for again.
            sys.__unraisablehook__(found)


class Counts:
    def __init__(self):
        self.began = time.monotonic()
        self.steps = self.interrupts = self.whole = 0
        self.dropped = Dropped()
        self.settled = None

    def seconds(self):
        return time.monotonic() - self.began

    def __str__(self):
        return (
            f"{self.seconds():.0f} s: {self.steps} steps, {self.interrupts} interrupts, of which "
            f"{self.whole} after a whole step and {self.dropped.number} dropped by Python; "
            f"{resident()} MiB ({self.settled} MiB at first)"
        )


def resident():
    """MiB that this process has in memory; 0 where nobody tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0


def until_interrupted(steps, interrupter, chosen, counts):
    """Steps of one kind, until an interrupt is raised."""
    sent, dropped, since = interrupter.sent, counts.dropped.number, 0
    try:
        interrupter.wanted.release()
        while since < MOST_STEPS:
            steps.run(chosen.randrange(SHAPES))
            counts.steps += 1
            since += interrupter.sent > sent
            if counts.dropped.number > dropped:
                return
    except KeyboardInterrupt:
        return
    raise Failure(f"{steps.name}: an interrupt was lost")


def soak(seconds, seed=0):
    """Steps and interrupts for some seconds; their counts.

    Raises:
        Failure: something was not held.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What callbacks log of interrupts.
    logging.getLogger("numbabn").setLevel(logging.CRITICAL)
    kinds = [Steps(way()) for way in (Eager, COMPILED, OverArrays)]
    chosen, interrupter = random.Random(seed), Interrupter(seed)
    interrupter.start()
    counts, told = Counts(), 0.0
    while counts.seconds() < seconds:
        steps = chosen.choice(kinds)
        until_interrupted(steps, interrupter, chosen, counts)
        counts.interrupts += 1
        counts.whole += steps.was_whole()
        steps.way.begin()
        steps.run(steps.number)
        if counts.seconds() > told + 10:
            told = counts.seconds()
            if counts.settled is None and told > min(60.0, seconds / 2):
                gc.collect()
                counts.settled = resident()
            print(counts, flush=True)
    gc.collect()
    if counts.settled is not None and resident() > counts.settled + MOST_GROWTH:
        raise Failure(f"memory grew: {counts}")
    print("held for", counts, flush=True)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(BACKEND, flush=True)
    soak(options.seconds, options.seed)
