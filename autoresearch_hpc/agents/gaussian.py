"""A Gaussian process: what is expected of points of the unit cube from what was measured at others, and how surely.

Matérn 5/2 kernel with a length for each dimension, constant mean 0, noise; the lengths, the signal's and the noise's
variance are the most probable ones under a broad prior. Source: Rasmussen and Williams 2006, ch. 2, 4 and 5.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy and scipy are imported where they are used: only a run with this agent pays for them
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Process", "most_probable"]

_ROOT5 = math.sqrt(5)
_JITTER = 1e-6
_NOISE_PRIOR = (math.log(0.01), 1.5)  # mean and deviation of its logarithm, for values of variance 1
_LENGTH_PRIOR = 1.0  # deviation of a length's logarithm
_STEPS = 40


def most_probable(points: "Floats", values: "Floats") -> "Floats":
    """Logarithms of the D lengths, the signal's and the noise's variance: for points (N, D) and values (N,)."""
    import numpy as np
    import scipy.linalg as sl
    from scipy.optimize import minimize

    num, dims = points.shape
    centre = np.array([math.log(0.4 * math.sqrt(dims))] * dims + [0.0, _NOISE_PRIOR[0]])
    spread = np.array([_LENGTH_PRIOR] * dims + [1.0, _NOISE_PRIOR[1]])

    def cost(theta: "Floats") -> "tuple[float, Floats]":
        lengths, signal, noise = np.exp(theta[:-2]), math.exp(theta[-2]), math.exp(theta[-1])
        distance = _distances(points / lengths, points / lengths)
        decay = signal * np.exp(-_ROOT5 * distance)
        kernel = decay * (1 + _ROOT5 * distance + 5 / 3 * distance**2)
        try:
            factor = sl.cholesky(kernel + (noise + _JITTER) * np.eye(num), lower=True, check_finite=False)
        except sl.LinAlgError:
            return 1e25, np.zeros_like(theta)
        inverse = sl.cho_solve((factor, True), np.eye(num), check_finite=False)
        alpha = inverse @ values
        outer = inverse - np.outer(alpha, alpha)
        weight = outer * decay * (1 + _ROOT5 * distance) * 5 / 3
        squares = weight.sum(axis=1) @ points**2 - np.einsum("nd,nd->d", points, weight @ points)
        slope = np.concatenate([squares / lengths**2, [(outer * kernel).sum() / 2, noise * np.trace(outer) / 2]])
        away = (theta - centre) / spread
        likelihood = values @ alpha / 2 + np.log(np.diag(factor)).sum()
        return float(likelihood + away @ away / 2), slope + away / spread

    bounds = [(math.log(0.02), math.log(100.0))] * dims + [(-5.0, 5.0), (math.log(1e-5), 0.0)]
    found: Floats = minimize(cost, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}).x
    return found


class Process:
    """Conditioned on values (N,) at points (N, D), by the logarithms `theta` of `most_probable`."""

    def __init__(self, points: "Floats", values: "Floats", theta: "Floats") -> None:
        import numpy as np
        import scipy.linalg as sl

        self._lengths, self.signal, self.noise = np.exp(theta[:-2]), math.exp(theta[-2]), math.exp(theta[-1])
        self._points = points / self._lengths
        gram = self._kernel(self._points, self._points) + (self.noise + _JITTER) * np.eye(len(points))
        self._factor = sl.cholesky(gram, lower=True, check_finite=False)
        self._alpha = sl.cho_solve((self._factor, True), values, check_finite=False)

    def mean(self, points: "Floats") -> "Floats":
        """(M, D) -> (M,)"""
        expected: Floats = self._kernel(points / self._lengths, self._points) @ self._alpha
        return expected

    def root(self, points: "Floats") -> "Floats":
        """(M, D) -> (N, M): of what is known of the points; products of its columns are what their covariance lost."""
        import scipy.linalg as sl

        cross = self._kernel(self._points, points / self._lengths)
        known: Floats = sl.solve_triangular(self._factor, cross, lower=True, check_finite=False)
        return known

    def prior(self, points: "Floats", others: "Floats") -> "Floats":
        """(M, D), (L, D) -> (M, L): covariances before anything was measured."""
        return self._kernel(points / self._lengths, others / self._lengths)

    def _kernel(self, a: "Floats", b: "Floats") -> "Floats":
        import numpy as np

        distance = _distances(a, b)
        value: Floats = self.signal * np.exp(-_ROOT5 * distance) * (1 + _ROOT5 * distance + 5 / 3 * distance**2)
        return value


def _distances(a: "Floats", b: "Floats") -> "Floats":
    import numpy as np

    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    distance: Floats = np.sqrt(np.maximum(squares, 0.0))
    return distance
