"""The operations on tensors of frameworks, for adapters: what of it knows no adapter.

An operation (`numbabn.embedded.operations`) goes by name, and so do its operands and results.

    compute    over the arrays of one library, by what goes under its name in `COMPUTE`
    late       numbers that are read when a computation runs
    torch      on torch's tensors, eagerly
    operators  in the programs that torch makes of Python, as operators of torch's
"""
