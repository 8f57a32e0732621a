"""Batches of four images from two classes: what renorm is for.

A small convolutional network learns handwritten digits in Keras, from microbatches in which
the statistics are those of four images. What such a batch is normalized by in training differs
much from the moving statistics that predictions use; renorm (Ioffe 2017, arXiv 1702.03275,
section 4.3) closes the gap.

    KERAS_BACKEND=torch python examples/microbatch_digits.py --picture microbatch_digits.png
"""

import argparse
import time

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from numbabn.keras import BatchNormalization, RenormClippingSchedule

BATCH = 4


def digits():
    """Images in [0, 1] and classes: for training and for testing."""
    images, classes = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1).astype(np.float32)
    return train_test_split(images, classes, test_size=0.25, random_state=0, stratify=classes)


def microbatches(classes, rng):
    """An order of the examples in which each four in a row are of two classes."""
    left = [list(rng.permutation(np.flatnonzero(classes == each))) for each in range(10)]
    order = []
    while True:
        with_two = [each for each in range(10) if len(left[each]) >= BATCH // 2]
        if len(with_two) < 2:
            return np.array(order)
        for each in rng.choice(with_two, 2, replace=False):
            order += [left[each].pop() for _ in range(BATCH // 2)]


def network(normalization):
    """Two convolutions, each normalized."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            normalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
            normalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def train(normalization, callbacks, data, epochs):
    """Test accuracy with moving statistics after each epoch, and seconds an epoch."""
    train_x, test_x, train_y, test_y = data
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = network(normalization)
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    accuracies, seconds = [], []
    for _ in range(epochs):
        order = microbatches(train_y, rng)
        start = time.perf_counter()
        model.fit(
            train_x[order], train_y[order],
            batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        predicted = model.predict(test_x, batch_size=64, verbose=0).argmax(-1)
        accuracies.append(float(np.mean(predicted == test_y)))
    # The first epoch compiles, or loads, kernels.
    return accuracies, float(np.median(seconds[1:] or seconds))


def variants(steps):
    """What is compared, by name: how a layer is made, and the callbacks of the training."""

    def renorm():
        return BatchNormalization(momentum=0.98, renorm=True, renorm_momentum=0.98)

    # The paper's ramp, from the end of the first epoch to the end of the third.
    ramp = (steps, 3 * steps)
    schedule = RenormClippingSchedule(rmax_steps=ramp, dmax_steps=ramp)
    return {
        "Keras": (lambda: layers.BatchNormalization(momentum=0.98), []),
        "numbabn": (lambda: BatchNormalization(momentum=0.98), []),
        "numbabn, renorm": (renorm, [schedule]),
    }


def draw(accuracies, path):
    """Accuracy against epochs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in accuracies.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axes.set(
        xlabel="epoch",
        ylabel="test accuracy, with moving statistics",
        title=f"Digits, microbatches of {BATCH} from two classes",
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


def main():
    """Train each variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--picture", help="where to draw the accuracies (png, svg, ...)")
    arguments = parser.parse_args()
    data = digits()
    accuracies = {}
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: digits, {len(data[0])} images, "
          f"microbatches of {BATCH} from two classes, {arguments.epochs} epochs\n")  # fmt: skip
    print(f"{'layer':<16} {'accuracy':>9} {'last three':>11} {'s an epoch':>11}")
    for name, (normalization, callbacks) in variants(len(data[0]) // BATCH).items():
        values, seconds = train(normalization, callbacks, data, arguments.epochs)
        accuracies[name] = values
        print(f"{name:<16} {values[-1]:>9.1%} {np.mean(values[-3:]):>11.1%} {seconds:>11.2f}")
    if arguments.picture:
        draw(accuracies, arguments.picture)


if __name__ == "__main__":
    main()
