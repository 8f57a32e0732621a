"""Arrays for the tests: dtypes, memory orders, masks, whole cases, and how close is close."""

import contextlib
import dataclasses

import ml_dtypes
import numba
import numpy as np
import pytest
from hypothesis import strategies as st

import reference

JIT_DISABLED = bool(numba.config.DISABLE_JIT)

DTYPES = [np.dtype(each) for each in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]

# dtype: (atol, rtol). atol is the error of the arithmetic for values of about one (what is
# promised for float32 parameters); rtol is half a unit in the last place: results are
# rounded once, at the end.
TOLERANCES = {
    DTYPES[0]: (2e-6, 2.0**-11),
    DTYPES[1]: (2e-6, 2.0**-8),
    DTYPES[2]: (2e-6, 2.0**-24),
    DTYPES[3]: (1e-12, 2.0**-53),
}


def assert_close(actual, expected, *, scale=1.0):
    """Equal within the tolerance of the dtype of `actual`; `scale` is the size of the terms."""
    atol, rtol = TOLERANCES[actual.dtype]
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(
        actual.astype(np.float64), expected, atol=atol * max(1.0, scale), rtol=rtol
    )


@contextlib.contextmanager
def raises(error, message):
    """What is within raises this error, of this type exactly and with this message as a whole."""
    with pytest.raises(error) as raised:
        yield
    assert type(raised.value) is error
    assert str(raised.value) == message


def mask_does_not_fit(mask_shape, x_shape):
    """The message for a mask of a shape that is of neither form."""
    return (
        f"mask of shape {mask_shape} does not fit x of shape {x_shape}: expected the rank of x, "
        "or one less (then a last axis is added), and each size to be that of x or 1"
    )


def parameter_dtype(dtype):
    """Parameters are float32, but float64 for float64 inputs."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def dense(values, memory):
    """A copy whose memory holds the axes in the order `memory`, from slowest to fastest."""
    return np.ascontiguousarray(values.transpose(memory)).transpose(np.argsort(memory))


def strided(values):
    """A view on every second element of each axis; NaN between them, which nobody may read."""
    holder = np.full([2 * length + 1 for length in values.shape], np.nan, values.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in values.shape)]
    view[...] = values
    return view


def backwards(values):
    """A view with negative strides on every axis."""
    flip = tuple(slice(None, None, -1) for _ in values.shape)
    return values[flip].copy()[flip]


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def unaligned(values):
    """A view that starts one byte off."""
    holder = np.empty(values.nbytes + 1, np.uint8)
    view = holder[1:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def same_memory_order(a, b):
    """Whether two dense arrays of one shape order their memory alike."""
    long_axes = [axis for axis, length in enumerate(a.shape) if length > 1]
    return a.size == 0 or all(a.strides[axis] == b.strides[axis] for axis in long_axes)


@dataclasses.dataclass
class Case:
    """The arguments of a forward and a backward call."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray | None
    beta: np.ndarray | None
    axis: int | list[int]
    mask: np.ndarray | None
    renorm: tuple | None  # mean, stddev, clipping dict

    @property
    def forward(self):
        return reference.forward(
            self.x,
            self.gamma,
            self.beta,
            axis=self.axis,
            mask=self.mask,
            renorm=self.renorm,
        )

    @property
    def parameter_shape(self):
        return reference.parameter_shape(self.x.shape, self.axis)


def make_case(
    shape, axis, dtype, *, seed=0, offset=0.0, mask=None, affine=True, renorm=False, zeros=0.0
):
    """A case of normal values in C order; `zeros` is the fraction of `dy` that is zero."""
    rng = np.random.default_rng(seed)
    channels = reference.parameter_shape(shape, axis)
    parameters = parameter_dtype(dtype)
    dy = np.where(rng.random(shape) < zeros, 0.0, rng.normal(size=shape))
    return Case(
        x=rng.normal(offset, 1.0, shape).astype(dtype),
        dy=dy.astype(dtype),
        gamma=rng.normal(1.0, 0.5, channels).astype(parameters) if affine else None,
        beta=rng.normal(size=channels).astype(parameters) if affine else None,
        axis=axis,
        mask=mask,
        renorm=(
            rng.normal(offset, 0.5, channels).astype(parameters),
            rng.uniform(0.5, 2.0, channels).astype(parameters),
            {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0},
        )
        if renorm
        else None,
    )


def masked_case(shape, axis, mask, dtype):
    """A case with all that there is, by the kind of mask."""
    channels = reference.channel_axes(len(shape), axis)
    positions = tuple(1 if a in channels else length for a, length in enumerate(shape))
    rng = np.random.default_rng(3)
    on = {
        "none": lambda: None,
        "positions": lambda: rng.random(positions) < 0.8,
        "elements": lambda: rng.random(shape) < 0.8,
        "broadcast": lambda: rng.random((1, *shape[1:])) < 0.8,
        "half": lambda: rng.random(positions) < 0.5,
        "padding": lambda: np.arange(np.prod(positions)).reshape(positions) % 60 < 35,
    }[mask]()
    return make_case(shape, axis, dtype, renorm=True, offset=1.0, mask=on, zeros=0.1)


def assert_results(case, *, y, statistics, r, d, dx, dgamma, dbeta):
    """Every result of a forward and a backward call, as NumPy arrays, is the oracle's."""
    wanted = case.forward
    assert y.dtype == dx.dtype == case.x.dtype
    assert_close(y, wanted.y, scale=np.max(np.abs(wanted.y), initial=0.0))
    np.testing.assert_array_equal(statistics.count, wanted.statistics.count)
    exact = case.x.dtype == np.float64
    for actual, expected in [
        (statistics.mean, wanted.statistics.mean),
        (statistics.variance, wanted.statistics.variance),
        (r, wanted.r),
        (d, wanted.d),
    ]:
        assert actual.shape == case.parameter_shape
        assert actual.dtype == np.float64
        np.testing.assert_allclose(
            actual, expected, rtol=1e-12 if exact else 1e-6, atol=1e-11 if exact else 2e-6
        )

    expected = reference.backward(
        case.dy, case.x, case.gamma, axis=case.axis, mask=case.mask, r=wanted.r, d=wanted.d
    )
    assert dgamma.dtype == dbeta.dtype == parameter_dtype(case.x.dtype)
    # dx is a difference of terms of the size of g * dy, and dgamma and dbeta are sums.
    dy = case.dy.astype(np.float64)
    gamma = 1.0 if case.gamma is None else case.gamma
    g = np.abs(gamma * wanted.r) / np.sqrt(wanted.statistics.variance + 1e-3)
    terms = np.abs(dy * reference.broadcastable(g, case.x.shape, case.axis))
    assert_close(dx, expected[0], scale=np.max(terms, initial=0.0))
    unscaled = reference.normalize(
        case.x,
        wanted.statistics.mean,
        wanted.statistics.variance,
        axis=case.axis,
        r=wanted.r,
        d=wanted.d,
    )
    assert_close(dgamma, expected[1], scale=np.sum(np.abs(dy * unscaled)))
    assert_close(dbeta, expected[2], scale=np.sum(np.abs(dy)))


@st.composite
def shapes(draw, min_rank=2, max_rank=5):
    """Small enough for plain Python; now and then with an axis of one, or an empty one."""
    longest = {2: 40, 3: 11, 4: 6, 5: 4}
    rank = draw(st.integers(min_rank, max_rank))
    lengths = [draw(st.integers(2, longest[rank])) for _ in range(rank)]
    special = draw(st.sampled_from([None, None, None, None, 1, 1, 0]))
    if special is not None:
        lengths[draw(st.integers(0, rank - 1))] = special
    return tuple(lengths)


@st.composite
def axes(draw, rank):
    """An int, or a list in any order that leaves at least one axis to reduce; negative too."""
    chosen = draw(
        st.one_of(
            st.integers(0, rank - 1),
            st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank - 1, unique=True),
        )
    )
    negative = draw(st.booleans())
    if isinstance(chosen, int):
        return chosen - rank if negative else chosen
    return [each - rank if negative else each for each in chosen]


@st.composite
def masks(draw, shape):
    """None, or a mask of either form, some axes broadcast, of any dtype and memory order."""
    form = draw(st.sampled_from(["none", "positions", "full"]))
    if form == "none":
        return None
    lengths = shape[:-1] if form == "positions" else shape
    mask_shape = tuple(1 if draw(st.booleans()) else length for length in lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    on = rng.random(mask_shape) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    dtype = draw(st.sampled_from([np.bool_, np.uint8, np.int32, np.int64, np.float32]))
    # Nonzero is on: 1, but also -3, and a half that an integer cast would turn off.
    value = draw(st.sampled_from([1, -3, 0.5] if dtype == np.float32 else [1]))
    mask = np.where(on, value, 0).astype(dtype)
    return draw(st.sampled_from([np.asarray, np.asfortranarray, strided_mask, read_only]))(mask)


def strided_mask(mask):
    """A strided view of a mask; between its elements everything is on."""
    holder = np.ones([2 * length + 1 for length in mask.shape], mask.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in mask.shape)]
    view[...] = mask
    return view


@st.composite
def layouts(draw, rank):
    """A function that copies values into some memory order, dense or not."""
    other = draw(st.sampled_from([None, None, None, strided, backwards, read_only, unaligned]))
    if other is not None:
        return other
    memory = draw(st.permutations(range(rank)))
    return lambda values: dense(values, memory)


@st.composite
def cases(draw, dtypes=tuple(DTYPES)):
    """Everything at once: shape, axis, dtype, mask, renorm, memory orders."""
    shape = draw(shapes())
    case = make_case(
        shape,
        draw(axes(len(shape))),
        draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**32 - 1)),
        offset=draw(st.sampled_from([0.0, -3.0, 50.0])),
        mask=draw(masks(shape)),
        affine=draw(st.booleans()),
        renorm=draw(st.booleans()),
        zeros=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    case.x = draw(layouts(len(shape)))(case.x)
    case.dy = draw(layouts(len(shape)))(case.dy)
    return case
