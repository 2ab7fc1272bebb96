"""One-flip descent on the loss with its scale profiled out, or with the scale fixed at 1."""

from numba import njit


@njit(cache=True, nogil=True)
def one_flip_sweep(gram, free, tolerance, floor, cross, codes, h, p, q, active, flips):
    """One cyclic sweep that makes every flip that lowers the loss; changes codes, h, p and q.

    ``free``: the loss is −p²/q (the scale profiled out); else q − 2p (the scale is 1). A flip
    must gain more than rounding can, so that it cannot cycle: ``tolerance`` of the value, or,
    where free, of the energy (about 1), and what an error of ``tolerance`` in q would change. A q
    of no more than ``floor`` is rounding noise, and means: no scale helps.
    """
    inputs = gram.shape[0]
    for t in range(codes.shape[0]):
        flips[t] = 0
        if not active[t]:
            continue
        for j in range(inputs):
            bit = codes[t, j]
            p_new = p[t] - 2.0 * bit * cross[t, j]
            q_new = q[t] + 4.0 * (gram[j, j] - bit * h[t, j])
            if free:
                # p²/q must rise
                better = False
                if q_new > floor:
                    old = p[t] * p[t] / q[t] if q[t] > floor else 0.0
                    new = p_new * p_new / q_new
                    noise = 1.0 + new / q_new + (old / q[t] if q[t] > floor else 0.0)
                    better = new - old > tolerance * noise
            else:
                gain = (q[t] - 2.0 * p[t]) - (q_new - 2.0 * p_new)
                better = gain > tolerance * (abs(q[t]) + 2.0 * abs(p[t]))
            if better:
                codes[t, j] = -bit
                flips[t] += 1
                p[t] = p_new
                q[t] = q_new
                step = -2.0 * bit
                for k in range(inputs):
                    h[t, k] += step * gram[j, k]
