"""The programs in NumPyro: `build` puts together a model and a guide from their names."""

from collections.abc import Mapping, Sequence
from functools import partial

from ppl_tvae.models.latent import Latent
from ppl_tvae.models.lattice import Lattice
from ppl_tvae.models.numpyro.guides import GUIDES, guide_of, power_spherical
from ppl_tvae.models.numpyro.likelihoods import LIKELIHOODS
from ppl_tvae.models.numpyro.priors import PRIORS
from ppl_tvae.models.numpyro.tvae import tvae
from ppl_tvae.models.numpyro.vae import vae
from ppl_tvae.program import Program


def build(
    lattice: Lattice | None,
    shape: tuple[int, int, int],
    *,
    hidden: Sequence[int],
    guide: str,
    priors: Mapping[str, str],
    likelihood: str,
    mu: float,
    mu_shape: Sequence[int],
    epsilon: float,
    learn_lattice: bool,
) -> Program:
    """The topographic program over `lattice`, or the plain VAE where it is None; latents of shape (S, C, D).

    hidden: the sizes of the encoders' hidden layers, from the frames inwards; the decoder mirrors them. priors: by
    latent, z and u. What else there is, `tvae` says.
    """
    latents = [Latent("z", shape, tuple(hidden), lattice.time_offsets if lattice else (0,))]
    latents += [latents[0]._replace(name="u")] if lattice else []
    prior = {latent.name: partial(PRIORS[priors[latent.name]], latent) for latent in latents}
    posterior = {
        latent.name: partial(power_spherical if priors[latent.name] == "hyperspherical" else GUIDES[guide], latent)
        for latent in latents
    }
    mirrored, pixels = tuple(reversed(hidden)), LIKELIHOODS[likelihood]
    if lattice is None:
        return Program(vae(prior["z"], mirrored, pixels), guide_of(posterior))
    model = tvae(
        lattice, prior["z"], prior["u"], mirrored, pixels, mu=mu, mu_shape=mu_shape, epsilon=epsilon,
        learn_lattice=learn_lattice,
    )  # fmt: skip
    return Program(model, guide_of(posterior))
