"""Quantiles of Student's t, for intervals of a mean of few values."""

from statistics import NormalDist


def student_t(share: float, degrees: int) -> float:
    """The quantile of a share (Cornish-Fisher; within 0.5 % from 3 degrees of freedom on)."""
    z, n = NormalDist().inv_cdf(share), degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
