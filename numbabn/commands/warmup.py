"""Compile every kernel into the cache.

Compilation holds a lock within a process, so the kernels are shared out to as many processes as
there are threads: to each those of one dtype and layout, and then of another, until all are there.
"""

import argparse
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from typing import Any

import numba
import numpy as np

import numbabn

from ..cpu.compile import cache_folder
from ..cpu.threads import LEAST_PARALLEL
from ..cuda.availability import missing_parts, why_unavailable
from .extras import load

# bfloat16 first: its conversions take longest to compile, and would otherwise be waited for.
DTYPES = ("bfloat16", "float16", "float32", "float64")
LAYOUTS = ("channels_first", "channels_last")
CHANNELS = 16
# A run that is long enough to stay one.
RUN = 64


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--cuda` and `--arch`."""
    parser.add_argument("--cuda", action="store_true", help="compile the CUDA kernels instead")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="SM",
        help="with --cuda: for which devices, as sm_90, once for each; the one here if left out",
    )


def run(options: argparse.Namespace) -> int:
    return run_cuda(options.arch) if options.cuda else run_cpu()


def run_cuda(architectures: list[str] | None) -> int:
    """Compile every CUDA kernel for devices that are here, or elsewhere."""
    missing = missing_parts()
    if missing:
        raise SystemExit("\n".join(missing))
    from ..cuda import compile, cubins

    if architectures is None:
        reason = why_unavailable()
        if reason is not None:
            raise SystemExit(f"There is no device to compile for, name one with --arch: {reason}")
        architectures = compile.architectures_here()
    try:
        capabilities = [compile.capability_of(each) for each in architectures]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if cubins.folder() is None:
        raise SystemExit(_NO_FOLDER)
    started = time.perf_counter()
    variants = list(compile.variants())
    work = [(each.name, capability) for capability in capabilities for each in variants]
    processes = min(len(work), numba.config.NUMBA_NUM_THREADS)
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(compile.keep_named, *each) for each in work]:
                done.result()
    else:
        for each in work:
            compile.keep_named(*each)
    print(
        f"{len(variants)} CUDA kernels for {' and '.join(architectures)} are in {cubins.folder()}, "
        f"after {time.perf_counter() - started:.1f} s"
    )
    return 0


_NO_FOLDER = (
    "There is no folder to keep compiled kernels in: set NUMBA_CACHE_DIR to one that can be "
    "written to"
)


def run_cpu() -> int:
    progress = load("tqdm", "bench").tqdm
    folder = cache_folder()
    if folder is None:
        raise SystemExit(_NO_FOLDER)
    started = time.perf_counter()
    # A fork would copy Numba's threads in an unknown state; spawn starts anew.
    with ProcessPoolExecutor(
        min(len(DTYPES) * len(LAYOUTS), numba.config.NUMBA_NUM_THREADS),
        mp_context=get_context("spawn"),
    ) as pool:
        work: list[Future[Any]] = [
            pool.submit(compile_all, *chosen) for chosen in product(DTYPES, LAYOUTS)
        ]
        # They take no arrays of the data, so they have no dtype and no layout.
        work.append(pool.submit(compile_rest))
        for done in progress(as_completed(work), total=len(work), unit="group"):
            done.result()
    print(f"Every kernel is in {folder}, after {time.perf_counter() - started:.1f} s")
    return 0


def compile_all(dtype: str, layout: str) -> None:
    """Run every operation once on a small array, and once on one that takes several threads."""
    for size in (0, LEAST_PARALLEL):
        rows = 1 + size // (CHANNELS * RUN)
        if layout == "channels_first":
            shape, axis = (rows, CHANNELS, RUN), 1
        else:
            shape, axis = (rows, RUN, CHANNELS), -1
        x = np.zeros(shape, _dtype(dtype))
        # Parameters of the dtype that a layer's have.
        ones = np.ones(CHANNELS, np.float64 if x.dtype == np.float64 else np.float32)
        numbabn.batch_norm_forward(x, ones, ones, axis=axis, renorm=numbabn.Renorm(ones, ones))
        _, saved = numbabn.batch_norm_forward(x, ones, ones, axis=axis)
        numbabn.batch_norm_backward(x, x, saved)
        whole = numbabn.batch_statistics(x, axis=axis)
        numbabn.batch_norm_forward(x, ones, ones, axis=axis, statistics=whole)
        sums = numbabn.gradient_sums(x, x, saved)
        numbabn.batch_norm_backward(x, x, saved, sums=sums)
        numbabn.normalize(x, ones, ones, ones, ones, axis=axis)


def compile_rest() -> None:
    """Run what is left: the correction of renorm alone, and the moving of statistics."""
    numbabn.renorm_correction([0.0], [1.0], [0.0], [1.0])
    for dtype in (np.float32, np.float64):
        numbabn.BatchNormalization(dtype=dtype)(np.zeros((1, 1), dtype), training=True)


def _dtype(name: str) -> Any:
    # NumPy has no bfloat16 of its own.
    return load("ml_dtypes", "bench").bfloat16 if name == "bfloat16" else np.dtype(name)
