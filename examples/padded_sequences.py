"""Sequences of different lengths: statistics that leave the padding out.

The rows of handwritten digits, from the top, cut off at random lengths and padded to one. Each
network reads them with `Masking`, batch normalization and an LSTM, and is trained twice from the
same start: on sequences padded to 10 rows, and on the same ones padded to 24. With a mask the
statistics are those of the rows that are there, so that padding changes nothing. Without one the
padding is normalized along with the rows, and the more there is of it, the less of what sets the
rows apart is left.

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
LENGTHS = (10, 24)


def sequences(length):
    """(examples, length, 8) rows, padded, of digits cut at 4 to 8 rows; and their classes."""
    images, classes = load_digits(return_X_y=True)
    rows = (images / 16.0).reshape(-1, 8, 8).astype(np.float32)
    lengths = np.random.default_rng(0).integers(4, 9, len(rows))
    padded = np.full((len(rows), length, 8), PADDING, np.float32)
    padded[:, :8] = rows
    padded[np.arange(length) >= lengths[:, None]] = PADDING
    return padded, classes, lengths


class WithoutMask(layers.BatchNormalization):
    """Keras's layer, blind to padding; the mask goes on to the LSTM."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training)


def network(normalization):
    """Masking, normalization of the rows, and an LSTM over those that are there."""
    inputs = keras.Input((None, 8))
    x = layers.Masking(PADDING)(inputs)
    x = normalization(momentum=0.9)(x)
    x = layers.LSTM(32)(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def accuracy_of(normalization, x, y, train, test, epochs):
    """Train a network: its accuracy, its moving mean and the seconds of an epoch."""
    keras.utils.set_random_seed(0)
    model = network(normalization)
    model.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x[train], y[train], batch_size=64, verbose=0)
    start = time.perf_counter()
    model.fit(x[train], y[train], batch_size=64, epochs=epochs - 1, verbose=0)
    seconds = (time.perf_counter() - start) / max(epochs - 1, 1)
    predicted = model.predict(x[test], batch_size=512, verbose=0).argmax(-1)
    mean = float(np.mean(keras.ops.convert_to_numpy(model.layers[2].moving_mean)))
    return float(np.mean(predicted == y[test])), mean, seconds


def main():
    """Train each variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--picture", help="where to draw the accuracies (png, svg, ...)")
    arguments = parser.parse_args()
    x, y, lengths = sequences(8)
    train, test = train_test_split(np.arange(len(x)), test_size=0.25, random_state=0, stratify=y)
    there = x[train][np.arange(8) < lengths[train, None]]
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: {len(train)} digits as "
          f"sequences of 4 to 8 rows, {arguments.epochs} epochs")  # fmt: skip
    print(f"mean of all rows that are there: {there.mean():.3f}\n")
    print(f"{'layer':<20} {'padded to':>9} {'moving mean':>12} {'accuracy':>9} {'s an epoch':>11}")
    results = {}
    for name, normalization in {
        "Keras, without mask": WithoutMask,
        "Keras, with mask": layers.BatchNormalization,
        "numbabn, with mask": BatchNormalization,
    }.items():
        for length in LENGTHS:
            padded, _, _ = sequences(length)
            accuracy, mean, seconds = accuracy_of(
                normalization, padded, y, train, test, arguments.epochs
            )
            results.setdefault(name, []).append(accuracy)
            print(f"{name:<20} {length:>9} {mean:>12.3f} {accuracy:>9.1%} {seconds:>11.2f}")
    if arguments.picture:
        draw(results, arguments.picture)


def draw(results, path):
    """Accuracy of each layer, trained with little padding and with much."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    places = np.arange(len(results))
    for i, length in enumerate(LENGTHS):
        label = f"padded to {length} rows"
        axes.bar(places + 0.4 * i, [each[i] for each in results.values()], 0.4, label=label)
    axes.set_xticks(places + 0.2, list(results))
    axes.set(ylabel="test accuracy", title="Digits as sequences of rows", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


if __name__ == "__main__":
    main()
