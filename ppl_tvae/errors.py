"""What is raised: a user's mistake, as a sentence that says what was expected, what was found, what to do; and a
training that ends before its last step.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class UserError(ValueError):
    """Bad input from a user. The command line prints its sentence and exits with code 2; the API raises it."""


class NoFrameScore(UserError):
    """A program that has one score for a whole sequence and none for each frame, which `released-is` is made of."""


# Of whatever is counted: JAX counts steps in 32 bits, and no size that fits in memory comes near.
LARGEST_COUNT = 2**31 - 1


def check_count(name: str, value: object, least: int = 1, most: int = LARGEST_COUNT) -> None:
    """Raises UserError unless a value is a whole number of at least so much, and at most one that can be counted to."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"expected {name} as a whole number, found {value!r}; give one of at least {least}")
    if value < least:
        raise UserError(f"expected {name} of at least {least}, found {value}; raise it")
    if int(value) > most:
        raise UserError(f"expected {name} of at most {most}, found {value}; lower it")


def check_is(name: str, value: object, kind: type) -> None:
    """Raises UserError for settings of another kind, such as the name of a guide in place of its settings."""
    if not isinstance(value, kind):
        raise UserError(f"expected {name} as ppl_tvae.{kind.__name__}(...), found {value!r}")


class Diverged(RuntimeError):
    """A loss, a held-out ELBO or a parameter was not finite.

    The run directory holds the last good state and the best parameters; before the first step there is none.
    """


class Interrupted(RuntimeError):
    """Ctrl-C. What was done before is in the run directory: the state of the last step, or the records of sequences."""


def is_of_memory(error: BaseException) -> bool:
    """Whether there was not enough of it: Python's own error, or JAX's or torch's, which are of types of their own."""
    words = ("resource_exhausted", "out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a catalogue, with the nearest one that is."""
    known = sorted(known)
    article = "an" if kind[0] in "aeiou" else "a"
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose one of {', '.join(known)}."
    return UserError(f"expected the name of {article} {kind}, found '{name}'; {hint}")
