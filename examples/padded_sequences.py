"""Sequences of different lengths: statistics that leave the padding out.

The rows of handwritten digits, from the top, cut off at random lengths and padded to one. Each
model reads them with `Masking`, batch normalization and an LSTM. With a mask the statistics
are those of the rows that are there, however much padding a batch has; without one, padding
shifts them, and each other padding shifts them differently.

    KERAS_BACKEND=torch python examples/padded_sequences.py --picture padded_sequences.png
"""

import argparse
import time

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from numbabn.keras import BatchNormalization

PADDING = -1.0  # No pixel has it.


def sequences(length):
    """(examples, length, 8) rows, padded, of digits cut at 4 to 8 rows; and their classes."""
    images, classes = load_digits(return_X_y=True)
    rows = (images / 16.0).reshape(-1, 8, 8).astype(np.float32)
    lengths = np.random.default_rng(0).integers(4, 9, len(rows))
    padded = np.full((len(rows), length, 8), PADDING, np.float32)
    padded[:, :8] = rows
    padded[np.arange(length) >= lengths[:, None]] = PADDING
    return padded, classes, lengths


class WithoutMask(BatchNormalization):
    """The same layer, blind to padding; the mask goes on to the LSTM."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training)


def network(normalization):
    """Masking, normalization of the rows, and an LSTM over those that are there."""
    inputs = keras.Input((None, 8))
    x = layers.Masking(PADDING)(inputs)
    x = normalization(momentum=0.9)(x)
    x = layers.LSTM(32)(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def main():
    """Train each variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--picture", help="where to draw the accuracies (png, svg, ...)")
    arguments = parser.parse_args()
    x, y, lengths = sequences(8)
    longer, _, _ = sequences(24)
    train, test = train_test_split(np.arange(len(x)), test_size=0.25, random_state=0, stratify=y)
    there = x[train][np.arange(8) < lengths[train, None]]
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: {len(train)} digits as "
          f"sequences of 4 to 8 rows, {arguments.epochs} epochs")  # fmt: skip
    print(f"mean of all rows that are there: {there.mean():.3f}\n")
    print(f"{'layer':<21} {'moving mean':>12} {'accuracy':>9} {'padded to 24':>13} "
          f"{'s an epoch':>11}")  # fmt: skip
    results = {}
    for name, normalization in {
        "Keras": layers.BatchNormalization,
        "numbabn": BatchNormalization,
        "numbabn without mask": WithoutMask,
    }.items():
        keras.utils.set_random_seed(0)
        model = network(normalization)
        model.compile(
            keras.optimizers.Adam(1e-2),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x[train], y[train], batch_size=32, verbose=0)
        start = time.perf_counter()
        model.fit(x[train], y[train], batch_size=32, epochs=arguments.epochs - 1, verbose=0)
        seconds = (time.perf_counter() - start) / max(arguments.epochs - 1, 1)
        accuracies = []
        for padded in (x, longer):
            predicted = model.predict(padded[test], batch_size=256, verbose=0).argmax(-1)
            accuracies.append(float(np.mean(predicted == y[test])))
        mean = float(np.mean(keras.ops.convert_to_numpy(model.layers[2].moving_mean)))
        results[name] = accuracies
        print(f"{name:<21} {mean:>12.3f} {accuracies[0]:>9.1%} {accuracies[1]:>13.1%} "
              f"{seconds:>11.2f}")  # fmt: skip
    if arguments.picture:
        draw(results, arguments.picture)


def draw(results, path):
    """Accuracy of each layer, with the padding of the training and with more."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    places = np.arange(len(results))
    for i, label in enumerate(("padded to 8 rows", "padded to 24 rows")):
        axes.bar(places + 0.4 * i, [each[i] for each in results.values()], 0.4, label=label)
    axes.set_xticks(places + 0.2, list(results))
    axes.set(ylabel="test accuracy", title="Digits as sequences of rows", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


if __name__ == "__main__":
    main()
