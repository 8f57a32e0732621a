"""What partial results and coefficients are made of: the rows of these tables.

Both are in COMPUTE, float64 where x is and float32 otherwise, and a row has no gaps.
"""

# Rows of `partial`.
COUNT_ON, HIGH, LOW, M2 = range(4)
MOMENTS = 4
SUM_DY, SUM_DY_X = range(2)
SUMS = 2
# Rows of `coefficients`: the first three always, the others in a backward. What rounding leaves
# of the means, a low part, is in SHIFT: it is the same for every element of a channel.
PIVOT, SCALE, SHIFT = range(3)
FORWARD = 3
PIVOT_DY, SLOPE = range(3, 5)
BACKWARD = 5
