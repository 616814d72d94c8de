"""Parts of densities that neither host has in the form needed, for any array library.

Continuous Bernoulli (Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845) in terms of logits l, lambda = sigmoid(l):

    p(x) = C lambda^x (1 - lambda)^(1-x) on [0, 1],    C = l / tanh(l / 2)    (C = 2 at l = 0)

Written in logits it is exact for saturated pixels, where the usual form in lambda has to clamp.
"""

from typing import Any

from array_api_compat import array_namespace

# Below this |l| the closed forms lose digits to cancellation and the series is exact to float64 rounding.
_SERIES_BELOW = 1e-2
_LOG_TWO = 0.6931471805599453


def continuous_bernoulli_log_normalizer(logits: Any) -> Any:
    """log C, elementwise."""
    xp = array_namespace(logits)
    small = xp.abs(logits) < _SERIES_BELOW
    safe = xp.where(small, xp.ones_like(logits), logits)  # keeps the gradient of the unused branch finite
    squared = xp.where(small, logits, xp.zeros_like(logits)) ** 2
    series = _LOG_TWO + squared / 12 - 7 * squared**2 / 1440 + 31 * squared**3 / 90720
    return xp.where(small, series, xp.log(xp.abs(safe)) - xp.log(xp.tanh(xp.abs(safe) / 2)))


def continuous_bernoulli_mean(logits: Any) -> Any:
    """E[x] = lambda / (2 lambda - 1) - 1 / l, elementwise; 1/2 + l/12 near l = 0."""
    xp = array_namespace(logits)
    small = xp.abs(logits) < _SERIES_BELOW
    safe = xp.where(small, xp.ones_like(logits), logits)
    exact = 0.5 + 0.5 / xp.tanh(safe / 2) - 1 / safe
    return xp.where(small, 0.5 + logits / 12 - logits**3 / 720, exact)


def continuous_bernoulli_quantile(logits: Any, probability: Any) -> Any:
    """The inverse of the cumulative distribution, elementwise, for drawing samples."""
    xp = array_namespace(logits)
    magnitude = xp.abs(logits)  # x -> 1 - x turns l into -l; exp(-|l|) cannot overflow
    uniform = magnitude == 0
    safe = xp.where(uniform, xp.ones_like(logits), magnitude)
    p = xp.where(logits > 0, 1 - probability, probability)
    x = -xp.log1p(-p * -xp.expm1(-safe)) / safe  # for l = -|l|
    x = xp.where(uniform, probability, xp.where(logits > 0, 1 - x, x))
    return xp.clip(x, 0, 1)  # a uniform number of exactly 0 would be drawn as minus infinity where the logit is large


def student_t_log_gamma_ratio(degrees_of_freedom: Any) -> Any:
    """log Gamma((nu + 1) / 2) - log Gamma(nu / 2), elementwise, without the cancellation of the two.

    Gamma(a + 1) = a Gamma(a) raises nu to m = nu + 20; from there the asymptotic series
    log(m / 2) / 2 - 1 / (4 m) + 1 / (24 m**3) - 1 / (20 m**5) + 17 / (112 m**7) is exact to float64 rounding.
    """
    xp, nu = array_namespace(degrees_of_freedom), degrees_of_freedom
    m = nu + 20
    series = -1 / (4 * m) + 1 / (24 * m**3) - 1 / (20 * m**5) + 17 / (112 * m**7)
    raised = -sum(xp.log1p(1 / (nu + 2 * k)) for k in range(10))
    return 0.5 * xp.log(m / 2) + series + raised
