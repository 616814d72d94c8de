"""The programs in NumPyro: `build` puts together a model and a guide from their names."""

from collections.abc import Sequence

from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.numpyro.guides import GUIDES
from ppl_tvae.models.numpyro.likelihoods import LIKELIHOODS
from ppl_tvae.models.numpyro.priors import PRIORS
from ppl_tvae.models.numpyro.tvae import tvae
from ppl_tvae.models.numpyro.vae import vae
from ppl_tvae.program import Program


def build(
    lattice: Lattice | None,
    shape: Sequence[int],
    *,
    hidden: Sequence[int],
    guide: str,
    prior: str,
    likelihood: str,
    mu: float,
    epsilon: float,
) -> Program:
    """The topographic program over `lattice`, or the plain VAE where it is None; latents of shape (S, C, D).

    hidden: the sizes of the encoders' hidden layers, from the frames inwards; the decoder mirrors them.
    """
    mirrored = tuple(reversed(hidden))
    if lattice is None:
        latents = {"z": shape}
        model = vae(shape, mirrored, PRIORS[prior], LIKELIHOODS[likelihood])
    else:
        latents = {"z": shape, "u": shape}
        model = tvae(lattice, shape[1], mirrored, PRIORS[prior], LIKELIHOODS[likelihood], mu, epsilon)
    return Program(model, GUIDES[guide](latents, hidden, lattice.time_offsets if lattice else (0,)))
