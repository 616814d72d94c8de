"""Which class of images a position of a code prefers: d', for any array library."""

from typing import Any

from array_api_compat import array_namespace

from ppl_tvae.data.placement import beside
from ppl_tvae.errors import UserError


def class_selectivity(activations: Any, labels: Any, num_classes: int) -> Any:
    """d' of every class at every position: activations (N, D), labels (N,) -> (num_classes, D). No unit.

    d' = (mean_class - mean_others) / sqrt((var_class + var_others) / 2), the means and variances over images (divided
    by their number) of the class and of all the others: by how many standard deviations the position answers higher
    to the class. Above zero it prefers the class. 0 where the position answers alike to all images, inf or -inf where
    it answers in two ways that tell the class from the others without fail. The measure of
    category selectivity in Keller, Gao & Welling 2021 (arXiv 2110.13911), from signal detection theory.

    Raises UserError for other shapes, for labels that are not whole numbers in 0..num_classes-1, and for a class that
    no image or every image has.
    """
    xp = array_namespace(activations, labels)
    if activations.ndim != 2 or labels.shape != activations.shape[:1]:
        raise UserError(
            f"expected activations (image, position) and a label for each image, found {tuple(activations.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not xp.isdtype(labels.dtype, "integral") or bool(xp.any((labels < 0) | (labels >= num_classes))):
        raise UserError(f"expected labels as whole numbers in 0..{num_classes - 1}, found others; number the classes")
    own = xp.astype(labels[None, :] == xp.arange(num_classes, **beside(labels))[:, None], activations.dtype)
    counts = xp.sum(own, axis=1)
    if bool(xp.any((counts == 0) | (counts == labels.shape[0]))):
        raise UserError(f"expected images of two or more classes and of each of the {num_classes}, found otherwise")
    activations = activations - activations[:1, :]  # one that answers alike to all is zero, whatever rounds its mean
    mean, variance = _moments(activations, own)
    mean_others, variance_others = _moments(activations, 1 - own)
    spread = xp.sqrt((variance + variance_others) / 2)
    # of two ways to answer, each in a class of its own, rounding of the means is all the spread there is
    rounding = labels.shape[0] * xp.finfo(activations.dtype).eps * xp.max(xp.abs(activations), axis=0)
    difference, still = mean - mean_others, spread <= rounding
    endless = xp.full_like(difference, xp.inf)
    without_fail = xp.where(difference == 0, difference, xp.where(difference > 0, endless, -endless))
    return xp.where(still, without_fail, difference / xp.where(still, 1.0, spread))


def _moments(activations: Any, weights: Any) -> tuple[Any, Any]:
    """Mean and variance over images under weights (K, N) of 0 and 1: two arrays (K, D)."""
    xp = array_namespace(activations)
    counts = xp.sum(weights, axis=1)[:, None]
    mean = weights @ activations / counts
    # About each class's own mean: E[a**2] - E[a]**2 would lose all digits beside a large mean (mu = 10).
    squares = [weights[k, :] @ (activations - mean[k, :]) ** 2 for k in range(weights.shape[0])]
    return mean, xp.stack(squares) / counts
