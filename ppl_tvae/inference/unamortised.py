"""Settings of a guide that is fitted to each sequence alone, the same for both backends."""

import math
from typing import Any, NamedTuple

from ppl_tvae.catalogue import AUTO_GUIDES
from ppl_tvae.errors import UserError, check_count, unknown_name


class Unamortised(NamedTuple):
    """name: of one of the hosts' automatic guides; steps of Adam for each sequence, and the learning rate at its start.

    The learning rate falls exponentially, to a hundredth of that at the end. Adam moves a parameter by no more than the
    sum of its rates, about a fifth of steps * learning_rate; the hosts start scales at 0.1, which is 2.8 away from 1
    before softplus. A fit that cannot go so far misses about a nat of every latent that the frames say little about.
    """

    name: str
    steps: int = 500
    learning_rate: float = 0.1

    @property
    def decay(self) -> float:
        """By which factor the learning rate falls in a step."""
        return 0.01 ** (1 / self.steps)


def check_unamortised(settings: Unamortised) -> None:
    """Raises UserError for an unknown guide, or where a number is out of range."""
    if settings.name not in AUTO_GUIDES:
        raise unknown_name("automatic guide", settings.name, AUTO_GUIDES)
    check_count("steps of an automatic guide", settings.steps)
    if not 0 < settings.learning_rate < math.inf:
        raise UserError(f"expected a positive learning rate for an automatic guide, found {settings.learning_rate}")


def check_whole_plate(name: str, scale: Any) -> None:
    """Raises UserError where a latent has a scale, of a plate larger than the batch: fits would be of other densities.

    scale: of the site, as the host's trace has it; NumPyro has None for 1.
    """
    if scale is not None and scale != 1:
        raise UserError(
            f"expected a plate of as many sequences as there are frames with automatic guides, whose fit takes its "
            f"scale for a power of the density; found the scale {scale} at site '{name}'"
        )
