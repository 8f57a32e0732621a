"""What each process does once: make the operator known to TensorFlow."""

import ctypes
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import tensorflow as tf
from numba import types

from ...cpu import pool, threads
from ...cpu.addresses import address_of
from ...cpu.compile import c_function
from .. import process
from . import c_api, kernel, records

OPERATOR = "NumbabnKernels"
_ATTRIBUTES = ("Tin: list(type) >= 1", "Tout: list(type) >= 1", "spec: int")

# What the tables and TensorFlow hold the addresses of.
_kept: list[Any] = []
_registering = threading.Lock()


def register():
    """Make the operator known to TensorFlow, unless it is."""
    with _registering:
        _register()


@lru_cache(maxsize=1)
def _register():
    from tensorflow.python.framework import op_def_registry

    # TensorFlow ends the process over a second operator of one name. There would be one where
    # this package is loaded twice.
    if op_def_registry.get(OPERATOR) is not None:
        raise RuntimeError(f"TensorFlow has an operator {OPERATOR} already")
    library = _library()
    process.fill_table()
    c_api.TABLE.fill(
        **{name: address_of(getattr(library, name)) for name in c_api.TABLE.at._fields}
    )
    kernel.TABLE.fill(
        attribute=process.address_of_text("spec"),
        find_state=address_of(records.find_state),
        make_record=address_of(records.make_record),
        most_others=_thread_count() - 1,
    )
    process.enter(kernel.TABLE, "tensorflow", kernel.count_others, kernel.schedule, kernel.fail)
    if not threads.in_forked_child():
        pool.start()
    word = types.int64
    functions = {
        each.__name__: c_function(each, f"numbabn_tensorflow_{each.__name__}", signature)
        for each, signature in (
            (kernel.create, word(word)),
            (kernel.compute, types.void(word, word)),
            (kernel.delete, types.void(word)),
            (kernel.infer_shapes, types.void(word, word)),
        )
    }
    _kept.extend((library, functions))
    _register_operator(library, functions)
    _register_kernel(library, functions)


def _library():
    """TensorFlow's own library, which is loaded by now."""
    for path in sorted(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")):
        library = ctypes.CDLL(str(path))
        for name in ("TF_NewStatus", "TF_NewOpDefinitionBuilder", "TF_NewKernelBuilder"):
            getattr(library, name).restype = ctypes.c_void_p
        library.TF_Message.restype = ctypes.c_char_p
        return library
    raise OSError(f"there is no library of TensorFlow's C API in {tf.sysconfig.get_lib()}")


def _thread_count():
    """How many threads work on one call: no more than TensorFlow and Numba were told to use."""
    numbers = [
        numba.config.NUMBA_NUM_THREADS,
        tf.config.threading.get_intra_op_parallelism_threads(),
    ]
    return min(number for number in numbers if number > 0)


def _register_operator(library, functions):
    pointer = ctypes.c_void_p
    builder = pointer(library.TF_NewOpDefinitionBuilder(OPERATOR.encode()))
    for attribute in _ATTRIBUTES:
        library.TF_OpDefinitionBuilderAddAttr(builder, attribute.encode())
    library.TF_OpDefinitionBuilderAddInput(builder, b"inputs: Tin")
    library.TF_OpDefinitionBuilderAddOutput(builder, b"outputs: Tout")
    library.TF_OpDefinitionBuilderSetShapeInferenceFunction(
        builder, pointer(functions["infer_shapes"].address)
    )
    _checked(library, library.TF_RegisterOpDefinition, builder)


def _register_kernel(library, functions):
    addresses = [
        ctypes.c_void_p(functions[name].address) for name in ("create", "compute", "delete")
    ]
    builder = ctypes.c_void_p(library.TF_NewKernelBuilder(OPERATOR.encode(), b"CPU", *addresses))
    _checked(library, library.TF_RegisterKernelBuilder, OPERATOR.encode(), builder)


def _checked(library, function, *arguments):
    """Call a function that takes a status last; RuntimeError where it says what is wrong."""
    status = ctypes.c_void_p(library.TF_NewStatus())
    function(*arguments, status)
    code, message = library.TF_GetCode(status), library.TF_Message(status)
    library.TF_DeleteStatus(status)
    if code != 0:
        raise RuntimeError(f"TensorFlow refuses the kernels: {message.decode()}")
