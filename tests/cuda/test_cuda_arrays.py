"""Memory as only a device's arrays have it."""

from threading import Thread

import numpy as np

import numbabn
from arrays import assert_close, make_case, raises
from devices import Plain, assert_same, copies, describe, get, not_an_array, put
from numbabn.arrays import cuda_interface
from numbabn.arrays.device import dense_form


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


def on_stream(array, stream):
    plain = put(array, "plain")
    return Plain(plain, {**plain.__cuda_array_interface__, "stream": stream})


def test_work_comes_after_what_is_on_the_streams_of_all_arrays(monkeypatch):
    orders = []
    monkeypatch.setattr(cuda_interface, "order", lambda *each: orders.append(each))
    # Not launched on: the streams of this test are none.
    monkeypatch.setattr("numbabn.cuda.submit.Step.__call__", lambda *each: None)
    monkeypatch.setattr(
        "numbabn.arrays.cuda_interface.Interface.allocate",
        lambda self, form, like: put(np.zeros(form.shape, form.dtype.on_host)),
    )
    x = on_stream(np.ones((6, 4), np.float32), 5)
    gamma, beta = on_stream(np.ones(4), 5), on_stream(np.ones(4), 7)
    mask = on_stream(np.ones((6, 1), bool), 9)
    numbabn.batch_norm_forward(x, gamma, beta, mask=mask)
    assert orders == [(0, 7, 5), (0, 9, 5)]


def test_scratch_is_kept_for_each_thread_and_made_anew_where_it_is_too_small():
    x = describe(put(np.ones((6, 4), np.float32)))
    library, form = x.library, dense_form((100,), np.float32)

    def scratch(array, form=form):
        return library.scratch(form, array).address

    first = scratch(x)
    assert scratch(x, dense_form((9,), np.float64)) == first
    others = [scratch(x, dense_form((1 << 19,), np.float32))]
    thread = Thread(target=lambda: others.append(scratch(x)))
    thread.start()
    thread.join()
    assert first not in others


def test_nothing_is_written_before_all_is_checked():
    x, out = put(np.ones((4, 3), np.float32)), put(np.full((4, 3), 7, np.float32))
    before = copies([x, out])
    with raises(TypeError, not_an_array("mask", "ndarray")):
        numbabn.batch_norm_forward(x, mask=np.ones((4, 3), bool), out=out)
    assert_same([x, out], before)
