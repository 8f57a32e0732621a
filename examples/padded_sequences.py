"""Sequences of different lengths: statistics that leave the padding out.

The rows of handwritten digits, from the top, cut off at random lengths and padded. Each network
reads them with `Masking`, batch normalization and an LSTM, and is trained three times from the
same start on the same batches: all padded to 10 rows, all padded to 24, and in buckets, where each
epoch goes from batches padded to 10 rows to batches padded to 40. With a mask the statistics are
those of the rows that are there, and padding changes nothing. Without one they are those of the
padding, too: in buckets no batch has the statistics of another, and the moving ones, by which the
network is tested, are those of the last.

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
PADDINGS = {"to 10 rows": (10,), "to 24 rows": (24,), "in buckets": (10, 24, 40)}
BATCH = 64


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


def accuracy_of(normalization, lengths, split, epochs):
    """Train a network on batches padded to `lengths`, in this order in every epoch.

    Returns its accuracy, its moving mean and the seconds of an epoch.
    """
    train, test = split
    keras.utils.set_random_seed(0)
    model = network(normalization)
    model.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    rng = np.random.default_rng(0)
    buckets = [sequences(length) for length in lengths]
    batches = len(train) // BATCH
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        order = rng.permutation(train)
        for k in range(batches):
            x, y, _ = buckets[k * len(buckets) // batches]
            chosen = order[k * BATCH : (k + 1) * BATCH]
            model.train_on_batch(x[chosen], y[chosen])
        seconds.append(time.perf_counter() - start)
    x, y, _ = buckets[0]
    predicted = model.predict(x[test], batch_size=512, verbose=0).argmax(-1)
    mean = float(np.mean(keras.ops.convert_to_numpy(model.layers[2].moving_mean)))
    return float(np.mean(predicted == y[test])), mean, float(np.median(seconds))


def main():
    """Train each variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--picture", help="where to draw the accuracies (png, svg, ...)")
    arguments = parser.parse_args()
    x, y, lengths = sequences(8)
    split = train_test_split(np.arange(len(x)), test_size=0.25, random_state=0, stratify=y)
    there = x[split[0]][np.arange(8) < lengths[split[0], None]]
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: {len(split[0])} digits as "
          f"sequences of 4 to 8 rows, {arguments.epochs} epochs")  # fmt: skip
    print(f"mean of all rows that are there: {there.mean():.3f}\n")
    print(f"{'layer':<20} {'padded':>10} {'moving mean':>12} {'accuracy':>9} {'s an epoch':>11}")
    results = {}
    for name, normalization in {
        "Keras, without mask": WithoutMask,
        "Keras, with mask": layers.BatchNormalization,
        "numbabn, with mask": BatchNormalization,
    }.items():
        for padding, bucket_lengths in PADDINGS.items():
            accuracy, mean, seconds = accuracy_of(
                normalization, bucket_lengths, split, arguments.epochs
            )
            results.setdefault(name, []).append(accuracy)
            print(f"{name:<20} {padding:>10} {mean:>12.3f} {accuracy:>9.1%} {seconds:>11.2f}")
    if arguments.picture:
        draw(results, arguments.picture)


def draw(results, path):
    """Accuracy of each layer, by how the batches of its training were padded."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    places = np.arange(len(results))
    for i, padding in enumerate(PADDINGS):
        heights = [each[i] for each in results.values()]
        axes.bar(places + 0.27 * i, heights, 0.27, label=f"padded {padding}")
    axes.set_xticks(places + 0.27, list(results))
    axes.set(ylabel="test accuracy", title="Digits as sequences of rows", ylim=(0.5, 1))
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    print(f"\ndrawn: {path}")


if __name__ == "__main__":
    main()
