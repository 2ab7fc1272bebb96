"""Products of codes with the sums, in an order that never depends on threads or blocking."""

from numba import njit

from hashsolve.kernels.rows import add_rows


@njit(cache=True, nogil=True)
def correlations(gram, codes, h):
    """h[t] = gram @ codes[t], by adding rows in order."""
    h[:, :] = 0.0
    add_rows(gram, codes, h)


@njit(cache=True, nogil=True)
def products(cross, codes, h, p, q):
    """p[t] = cross[t] · codes[t] and q[t] = codes[t] · h[t]."""
    for t in range(codes.shape[0]):
        p[t] = 0.0
        q[t] = 0.0
        for j in range(codes.shape[1]):
            p[t] += codes[t, j] * cross[t, j]
            q[t] += codes[t, j] * h[t, j]
