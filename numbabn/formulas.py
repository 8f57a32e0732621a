"""The mathematics of batch normalization, one value at a time.

Plain functions: each target compiles them for its kernels, and those that say so take
arrays too, as they are. Every formula stands here and nowhere else. Those of an element have
one signature: they find what belongs to its channel in `c`, and do without what they have no use
for. A target that computes several elements as one gives them its own `where`; one that leaves the
low parts of means out of `centered`, its own `scaled`.

The symbols are those of Ioffe and Szegedy 2015 (arXiv 1502.03167) and, for `r` and `d`,
Ioffe 2017 (arXiv 1702.03275, section 3).
"""


def merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Count, mean and sum of squared deviations of two sets together; numbers or arrays.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances", equation 2.1. An empty set has mean and m2 of 0.
    """
    count = count_a + count_b
    share = count_b / (count + (count == 0))
    delta = mean_b - mean_a
    m2 = m2_a + m2_b + delta * (delta * (count_a * share))
    return count, mean_a + delta * share, m2


def merge_in_two(count_a, high, low, m2_a, share, delta, m2_b):
    """`merge` where only its count is not to be had: the mean as high + low, and m2.

    share, delta    count_b / (count_a + count_b), and mean_b − mean_a; both means are near `high`

    To be compiled without reordering: `low` is what rounding left of the mean.
    """
    m2 = m2_a + (m2_b + delta * (delta * (count_a * share)))
    rest = low + delta * share
    mean = high + rest
    return mean, rest - (mean - high), m2


def block_moments(count, pivot, sum_1, sum_2):
    """Mean and m2 from Σ(x − pivot) and Σ(x − pivot)²; the pivot and 0 for an empty set."""
    shift = sum_1 / (count + (count == 0))
    m2 = sum_2 - sum_1 * shift
    # Rounding may leave a hair below zero where every value is the same; NaN passes.
    if m2 < 0:
        m2 = 0.0
    return pivot + shift, m2


def variance_of(count, m2):
    """Biased variance, 0 for an empty set; numbers or arrays."""
    return m2 / (count + (count == 0))


def square_root(value):
    """Of numbers or arrays; targets may have an instruction for it."""
    return value**0.5


def standard_deviation(variance, epsilon):
    """sqrt(variance + epsilon); numbers or arrays."""
    return square_root(variance + epsilon)


def renorm_r_d(mean, stddev, reference_mean, reference_stddev, epsilon, rmin, rmax, dmax):
    """The correction of batch renormalization: `r` and `d` (Ioffe 2017, section 3).

    The reference's standard deviation is floored at sqrt(epsilon), the least that
    `standard_deviation` gives, so that a reference of zeros divides nothing by zero.
    """
    floor = epsilon**0.5
    if reference_stddev < floor:
        reference_stddev = floor
    r = stddev / reference_stddev
    d = (mean - reference_mean) / reference_stddev
    # Comparisons rather than min and max: those may lose a NaN.
    if r < rmin:
        r = rmin
    if r > rmax:
        r = rmax
    if d < -dmax:
        d = -dmax
    if d > dmax:
        d = dmax
    return r, d


def scale_shift(gamma, beta, rstd, r, d):
    """`scale` and `shift` of y = (x − mean) · scale + shift."""
    return gamma * r * rstd, gamma * d + beta


def parameter_gradients(sum_dy, sum_dy_xhat, r, d):
    """dgamma and dbeta from Σ dy and Σ dy · x̂."""
    return sum_dy_xhat * r + sum_dy * d, sum_dy


def input_gradient(gamma, r, rstd, count, sum_dy, sum_dy_xhat):
    """`scale`, `mean_dy` and `slope` of dx = scale · ((dy − mean_dy) − slope · (x − mean)).

    That is the gradient where the mask is on; where it is off, dx = scale · dy. An empty
    set depends on nothing: `mean_dy` and `slope` are 0 there.
    """
    scale = gamma * r * rstd
    if count == 0:
        return scale, 0.0, 0.0
    return scale, sum_dy / count, sum_dy_xhat * rstd / count


def centered(value, mean_high, mean_low):
    """value − mean, for a mean held in two parts because float32 is not enough for it.

    To be compiled without reordering: (value − high) − low is accurate where value − mean is
    small against the mean; value − (high + low) would lose all of `low`.
    """
    return (value - mean_high) - mean_low


def where(condition, value, other):
    """`value` where the condition is not 0, `other` elsewhere."""
    return value if condition != 0 else other


def scaled(value, c, on):
    """What the parts of dx come to, together.

    Where the low parts of the means are 0, since one number for a channel, scale · (slope ·
    mean_low − mean_dy_low), makes up for them, this adds it to what is on.
    """
    return c.scale * value


def element_moments(dy, x, c, on):
    """What an element adds to Σ (x − pivot) and Σ (x − pivot)²; nothing where it is not on."""
    shifted = where(on, x - c.pivot, 0)
    return shifted, shifted * shifted


def element_y(dy, x, c, on):
    """y of an element."""
    return centered(x, c.mean_high, c.mean_low) * c.scale + c.shift


def element_gradients(dy, x, c, on):
    """What an element adds to Σ dy and Σ dy · (x − mean): where dy is 0 nothing, whatever x is."""
    return dy, where(dy, dy * centered(x, c.mean_high, c.mean_low), dy)


def element_dx(dy, x, c, on):
    """dx of an element, which had part in the statistics where it is on."""
    value = centered(x, c.mean_high, c.mean_low)
    inside = centered(dy, c.mean_dy_high, c.mean_dy_low) - c.slope * value
    return scaled(where(on, inside, dy), c, on)


def is_followed(count, mean, variance, skip_nonfinite):
    """Whether statistics are to be followed: those of nothing are not, and others may be left out.

    skip_nonfinite: whether those that are infinite or NaN are left out
    """
    return count > 0 and (not skip_nonfinite or (mean - mean) + (variance - variance) == 0)


def moving_average(moving, batch, momentum):
    """moving · momentum + batch · (1 − momentum); numbers or arrays."""
    return moving * momentum + batch * (1 - momentum)


def variance_from_stddev(stddev, epsilon):
    """max(stddev² − epsilon, 0); numbers or arrays."""
    variance = stddev * stddev - epsilon
    return variance * (variance > 0)
