"""The CPU target: Numba kernels under the launchers of :mod:`numbabn.cpu.launch`."""
