"""Memory as only a device's arrays have it."""

import numpy as np

import numbabn
from arrays import assert_close, make_case, raises
from devices import Plain, assert_same, copies, get, not_an_array, put


def test_memory_that_is_not_aligned_to_vectors():
    """It starts one element after a boundary, so it is read element by element."""
    case = make_case((24, 16), -1, np.float32)
    holder = np.zeros(case.x.size + 1, np.float32)
    holder[1:] = case.x.reshape(-1)
    memory = put(holder, "plain")
    interface = memory.__cuda_array_interface__
    first, _ = interface["data"]
    x = Plain(memory, {**interface, "shape": (24, 16), "strides": None, "data": (first + 4, False)})
    y, _ = numbabn.batch_norm_forward(x, put(case.gamma), put(case.beta))
    assert_close(get(y), case.forward.y, scale=4)


def test_nothing_is_written_before_all_is_checked():
    x, out = put(np.ones((4, 3), np.float32)), put(np.full((4, 3), 7, np.float32))
    before = copies([x, out])
    with raises(TypeError, not_an_array("mask", "ndarray")):
        numbabn.batch_norm_forward(x, mask=np.ones((4, 3), bool), out=out)
    assert_same([x, out], before)
