"""The operations on a CUDA device: kernels, launchers, and the arrays of other libraries."""
