"""Train on handwritten digits in microbatches of four images from two classes.

Ioffe 2017 (arXiv 1702.03275) names the two places where plain batch norm fails, small minibatches
and minibatches that are not iid; these are both at once. Gradients of 16 microbatches are summed
for each step, so that every way sees the same number of images a step at the same learning rate,
and only the normalization differs. The accuracy is that of inference, with moving statistics.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

import numbabn

from .extras import load
from .network import Classifier
from .table import table

Array = NDArray[Any]

SEEDS = (0, 1, 2)
STEPS = 400
RATE = 0.1
IMAGES_A_STEP = 64
MICROBATCH = 4
PADDED = 6
HIDDEN = 64
EVALUATIONS = 20


@dataclass(frozen=True)
class Way:
    """One way to train.

    microbatch: images that are normalized together
    renorm: batch renorm in place of plain batch norm
    padded: rows that a microbatch has with its padding
    """

    name: str
    microbatch: int = MICROBATCH
    renorm: bool = False
    padded: int = MICROBATCH


IID = Way("batch norm, one iid batch of 64", microbatch=IMAGES_A_STEP, padded=IMAGES_A_STEP)
PLAIN = Way("batch norm, microbatches of 4")
RENORM = Way("batch renorm, microbatches of 4", renorm=True)
PLAIN_PADDED = Way("batch norm, 4 + 2 NaN rows, masked", padded=PADDED)
RENORM_PADDED = Way("batch renorm, 4 + 2 NaN rows, masked", renorm=True, padded=PADDED)
WAYS = (IID, PLAIN, RENORM, PLAIN_PADDED, RENORM_PADDED)
PADDING = ((PLAIN, PLAIN_PADDED), (RENORM, RENORM_PADDED))


@dataclass(frozen=True)
class Digits:
    """Images of 64 pixels in [0, 1], float32, and the digits that they show."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


@dataclass(frozen=True)
class Run:
    """What one training gave: test accuracy over the steps, and the weights at the end."""

    steps: list[int]
    accuracies: list[float]
    weights: list[Array]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("demo.png"),
        help="where to write the curves (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    progress = load("tqdm", "demo").tqdm
    pyplot = _pyplot()
    _check_picture(options.picture, pyplot)
    digits = _digits()

    started = time.perf_counter()
    runs: dict[Way, list[Run]] = {way: [] for way in WAYS}
    with progress(total=len(WAYS) * len(SEEDS) * STEPS, unit="step", smoothing=0) as bar:
        for way in WAYS:
            bar.set_description(way.name)
            runs[way] = [_train(way, digits, seed, bar) for seed in SEEDS]
        bar.set_description("trained")

    images = len(digits.train_labels), len(digits.test_labels)
    print(
        f"\n{images[0]} images to train on, {images[1]} to test with; {STEPS} steps of "
        f"{IMAGES_A_STEP} images, {len(SEEDS)} seeds, {time.perf_counter() - started:.0f} s.\n"
        "Test accuracy at the end, with moving statistics:\n"
    )
    print(_accuracies(runs))
    print("\nThe same training with and without padding, over all seeds:\n")
    print(_differences(runs))
    _draw(pyplot, runs, options.picture)
    print(f"\nCurves: {options.picture.resolve()}")
    return 0


def _pyplot() -> Any:
    # Agg draws without a screen; it has to be chosen before pyplot is there.
    load("matplotlib", "demo").use("Agg")
    return load("matplotlib.pyplot", "demo")


def _check_picture(path: Path, pyplot: Any) -> None:
    """End the program where the picture could not be written: now, and not after the training."""
    known = pyplot.matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise SystemExit(
            f"--picture {path} must end in one of {', '.join(f'.{each}' for each in sorted(known))}"
        )
    try:
        if path.exists():
            with path.open("r+b"):
                pass
        else:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
    except OSError as error:
        raise SystemExit(f"--picture {path} cannot be written: {error.strerror}") from None


def _digits() -> Digits:
    datasets = load("sklearn.datasets", "demo")
    model_selection = load("sklearn.model_selection", "demo")
    pixels, labels = datasets.load_digits(return_X_y=True)
    # Pixels are 0 to 16. The split is the same for every seed, so that seeds differ in training.
    train, test, train_labels, test_labels = model_selection.train_test_split(
        (pixels / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels
    )
    return Digits(train, train_labels, test, test_labels)


def clipping(step: int) -> numbabn.RenormClipping:
    """The limits at a step, by the schedule of Ioffe 2017 (section 4).

    There rmax 1 and dmax 0 (plain batch norm) stay for 5k steps; rmax then rises to 3 at 40k steps
    and dmax to 5 at 25k. Here a training of 160k steps is shrunk to the length of this one. The
    paper does not limit r from below; 1 / rmax does, or the start would not be plain.
    """
    thousands = 160 * step / STEPS
    of_r = numbabn.RenormClipping.ramp(np.interp(thousands, [5, 40], [0, 1]), rmax=3)
    of_d = numbabn.RenormClipping.ramp(np.interp(thousands, [5, 25], [0, 1]), dmax=5)
    return numbabn.RenormClipping(of_r.rmin, of_r.rmax, of_d.dmax)


def _microbatches(way: Way, labels: Array, seed: int) -> Iterator[list[Array]]:
    """For every step, the indices of the images in each of its microbatches."""
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in range(10)]
    while True:
        if way.microbatch == IMAGES_A_STEP:
            yield [generator.choice(len(labels), IMAGES_A_STEP, replace=False)]
            continue
        pairs = [generator.choice(10, 2, replace=False) for _ in range(IMAGES_A_STEP // MICROBATCH)]
        yield [
            np.concatenate(
                [generator.choice(of_class[c], MICROBATCH // 2, replace=False) for c in pair]
            )
            for pair in pairs
        ]


def _train(way: Way, digits: Digits, seed: int, bar: Any) -> Run:
    images, labels = digits.train_images, digits.train_labels
    network = Classifier(images.shape[1], HIDDEN, 10, renorm=way.renorm, seed=seed)
    batches = _microbatches(way, labels, seed)
    result = Run([], [], [])
    for step in range(STEPS):
        if way.renorm:
            network.limit(clipping(step))
        sums: list[Array] = []
        for chosen in next(batches):
            x, mask = _padded(images[chosen], way.padded)
            y = np.pad(labels[chosen], (0, len(x) - len(chosen)))
            gradients = network.gradients(x, y, mask)
            sums = [s + g for s, g in zip(sums, gradients, strict=True)] if sums else gradients
        network.descend([gradient / IMAGES_A_STEP for gradient in sums], RATE)
        bar.update()
        if (step + 1) % (STEPS // EVALUATIONS) == 0:
            result.steps.append(step + 1)
            result.accuracies.append(network.accuracy(digits.test_images, digits.test_labels))
    result.weights.extend(network.parameters)
    return result


def _padded(x: Array, rows: int) -> tuple[Array, Array | None]:
    """`x` with rows of NaN up to `rows`, and the mask that tells them apart."""
    if rows == len(x):
        return x, None
    padded = np.full((rows, x.shape[1]), np.nan, x.dtype)
    padded[: len(x)] = x
    return padded, np.arange(rows) < len(x)


def _accuracies(runs: dict[Way, list[Run]]) -> str:
    rows = []
    for way in WAYS:
        final = [100 * run.accuracies[-1] for run in runs[way]]
        rows.append([way.name, f"{mean(final):.1f} %", f"{min(final):.1f} to {max(final):.1f} %"])
    return table(["training", "mean", "lowest to highest"], rows)


def _differences(runs: dict[Way, list[Run]]) -> str:
    rows = []
    for bare, padded in PADDING:
        pairs = list(zip(runs[bare], runs[padded], strict=True))
        weights = max(
            float(np.abs(a - b).max())
            for one, other in pairs
            for a, b in zip(one.weights, other.weights, strict=True)
        )
        accuracy = max(
            abs(a - b)
            for one, other in pairs
            for a, b in zip(one.accuracies, other.accuracies, strict=True)
        )
        rows.append([padded.name, f"{weights:.1e}", f"{100 * accuracy:.1f} %"])
    return table(["training", "largest difference of a weight", "of an accuracy"], rows)


def _draw(pyplot: Any, runs: dict[Way, list[Run]], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for way in (IID, RENORM, PLAIN):
        steps = runs[way][0].steps
        curves = 100 * np.array([run.accuracies for run in runs[way]])
        (line,) = axes.plot(steps, curves.mean(axis=0), label=way.name)
        axes.fill_between(
            steps, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel(f"steps of {IMAGES_A_STEP} images")
    axes.set_ylabel("test accuracy with moving statistics, %")
    axes.set_title(f"Handwritten digits: mean and range of {len(SEEDS)} seeds")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
