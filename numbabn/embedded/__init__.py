"""The operations inside compiled programs: a framework calls the kernels, without Python.

What any framework that can call a C function needs; `xla` and `tensorflow` have what is
of one framework. What an operation takes and returns is described once (`operations`), and both
bring it into programs by that. The function gets buffers (`memory`) and a *plan*, integers that say
which kernels run and on which of the buffers (`plans`), and does what the plan says (`execution`).
A plan names its kernels by their place in a table, which each process fills (`table`,
`process`): neither compiled functions, which are cached, nor programs, which are kept, may
hold an address.

Tasks go to whatever threads the framework has, or else to those of our own (`cpu.jobs`,
`cpu.pool`). Numba's would start a team for each thread that a framework calls from, and abort the
process where the layer is `workqueue`. What only Python knows, it is asked for (`callbacks`).
"""
