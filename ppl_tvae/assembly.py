"""From an experiment to its program and to its data."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ppl_tvae import catalogue
from ppl_tvae.config import OWN_DIGESTS, Experiment
from ppl_tvae.data import SequenceData, open_data, render
from ppl_tvae.errors import UserError, unknown_name
from ppl_tvae.files import digest, read
from ppl_tvae.models import lattice as lattices
from ppl_tvae.models.latent import Latent
from ppl_tvae.models.lattice import Lattice
from ppl_tvae.own_program import own_lattice, own_program
from ppl_tvae.program import Program


def assemble(experiment: Experiment, backend: str) -> Program:
    """The program of a resolved experiment, for "numpyro" or "pyro". Raises UserError."""
    if backend not in catalogue.BACKENDS:
        raise unknown_name("backend", backend, catalogue.BACKENDS)
    if experiment.program_file is not None:
        _check_is_the_same("program", experiment.program_file, experiment.program_digest)
        return own_program(experiment.program_file, backend, experiment.seed)
    return _named(experiment, backend)


def _named(experiment: Experiment, backend: str) -> Program:
    """A named model with the priors, guide and likelihood that the experiment names."""
    parts = ("guides", "likelihoods", "priors", "tvae", "vae")
    guides, likelihoods, priors, tvae, vae = (import_module(f"ppl_tvae.models.{backend}.{part}") for part in parts)
    S, C, D, hidden = experiment.num_timesteps, experiment.num_capsules, experiment.capsule_dim, experiment.hidden
    assert S
    assert C
    assert D
    assert hidden is not None
    lattice = lattice_of(experiment)
    latents = [Latent("z", (S, C, D), hidden, lattice.time_offsets if lattice else (0,))]
    latents += [latents[0]._replace(name="u")] if lattice else []
    prior, posterior = {}, {}
    for latent in latents:
        name = experiment.priors[latent.name]
        guide = guides.power_spherical if name == "hyperspherical" else guides.GUIDES[experiment.guide]
        prior[latent.name] = partial(priors.PRIORS[name], latent)
        posterior[latent.name] = partial(guide, latent)
    mirrored, pixels = hidden[::-1], likelihoods.LIKELIHOODS[experiment.likelihood]
    if lattice is None:
        return Program(vae.vae(prior["z"], mirrored, pixels), guides.guide_of(posterior))
    model = tvae.tvae(
        lattice,
        prior["z"],
        prior["u"],
        mirrored,
        pixels,
        mu=experiment.mu,
        mu_shape={"model": (), "capsule": (C, 1), "cell": (C, D)}[experiment.mu_per],
        epsilon=experiment.epsilon,
        learn_lattice=experiment.lattice_weights == "learned",
    )
    return Program(model, guides.guide_of(posterior))


def lattice_of(experiment: Experiment) -> Lattice | None:
    """W of a resolved experiment; None of a vae, and of an own program that has no `LATTICE`. Raises UserError."""
    if experiment.program_file is not None:
        _check_is_the_same("program", experiment.program_file, experiment.program_digest)
        own = own_lattice(experiment.program_file, experiment.backend, experiment.seed)
        return own if isinstance(own, Lattice) else None
    S, D = experiment.num_timesteps, experiment.capsule_dim
    window, width = experiment.temporal_window, experiment.spatial_width
    assert S
    assert D
    if experiment.model == "vae":
        return None
    if experiment.lattice:
        matrix = _read_matrix(Path(experiment.lattice))
        _check_is_the_same("lattice", Path(experiment.lattice), experiment.lattice_digest)
        return lattices.from_matrix(matrix, S, D)
    assert width
    if experiment.model == "torus":
        side = round(D**0.5)
        if side * side != D:
            raise UserError(f"expected a square number for capsule_dim with model 'torus', found {D}")
        return lattices.torus(side, side, width)
    if experiment.model == "static":
        return lattices.static(S, D, width)
    assert window
    if experiment.model == "bubble":
        return lattices.stationary(S, D, window, width)
    if width > D or width % 2 == 0:
        raise UserError(
            f"expected an odd spatial_width of at most the {D} positions of a capsule with model 'tvae', whose band "
            f"has as many positions on either side, found {width}"
        )
    if width > 1 and window == 1:
        raise UserError(
            f"expected a temporal_window of at least 2 with spatial_width {width} and model 'tvae', whose band ends "
            f"with its window, found 1; name model 'static' for neighbours in space alone, or spatial_width 1"
        )
    return lattices.shifting(S, D, window, band=width // 2)


def data_of(experiment: Experiment, transforms: Sequence[str] | None = None) -> SequenceData:
    """The data set that an experiment names; with other transforms than its own, where they are given.

    Raises UserError.
    """
    trained_on = experiment.transforms
    if transforms is not None:
        given = (transforms,) if isinstance(transforms, str) else tuple(transforms)
        experiment = replace(experiment, transforms=given)
    checked = experiment.resolved()
    assert checked.transforms is not None
    data = open_data(
        checked.data,
        Path(checked.data_dir) if checked.data_dir else None,
        checked.transforms,
        # Ready sequences bring their own number, so what was only a default must not speak for the user here.
        checked.num_timesteps if checked.model == "torus" else experiment.num_timesteps,
        checked.validation_fraction,
    )
    if transforms is not None and trained_on is not None:
        wanted = replace(data, transforms=trained_on).frame_shape
        if wanted != data.frame_shape:
            raise UserError(
                f"expected transforms that give frames of {wanted[2]} channels, as in training, found "
                f"{', '.join(data.transforms)}, with {data.frame_shape[2]}; name others"
            )
    if checked.data_digest not in (None, data.source.digest):
        raise UserError(
            f"expected the data whose digest is {checked.data_digest} (data_digest) in '{checked.data}', found others; "
            f"put the former ones back, or train a new run without data_digest"
        )
    return data


def resolved_for(experiment: Experiment, data: SequenceData) -> Experiment:
    """A resolved experiment, with what its data decide. Raises UserError."""
    timesteps, transforms, digest = data.num_timesteps, data.transforms, data.source.digest
    return replace(experiment, num_timesteps=timesteps, transforms=transforms, data_digest=digest).resolved()


def renderer(experiment: Experiment) -> Callable[[Any, Any], Any]:
    """(tables, plan) -> frames (batch, time, height, width, channel) as the experiment observes them.

    Binarised or grey, in its precision.
    """

    def frames(tables: Any, plan: Any) -> Any:
        drawn = render(tables, plan, experiment.binarize)
        xp = array_namespace(drawn)
        return xp.astype(drawn, getattr(xp, experiment.precision), copy=False)

    return frames


def check_own_files(experiment: Experiment) -> None:
    """Raises UserError where the program or W of an experiment was edited since its digest was noted."""
    if experiment.program_file is not None:
        _check_is_the_same("program", experiment.program_file, experiment.program_digest)
    if experiment.lattice:
        _check_is_the_same("lattice", Path(experiment.lattice), experiment.lattice_digest)


def with_own_files_noted(experiment: Experiment) -> Experiment:
    """The experiment with the paths of its files from the root, and digests of its program and W as they are now."""
    noted: dict[str, Any] = {}
    for setting in experiment.own_files:
        noted[setting] = os.path.abspath(os.path.expanduser(getattr(experiment, setting)))
        if setting in OWN_DIGESTS:
            noted[OWN_DIGESTS[setting]] = digest(read(Path(noted[setting])) or b"")
    return replace(experiment, **noted)


def _check_is_the_same(what: str, path: Path, noted: str | None) -> None:
    """Raises UserError where the program or lattice of a run was edited since: its parameters are of another one."""
    if noted is not None and noted != digest(read(path) or b""):
        raise UserError(
            f"expected the {what} whose digest is {noted} ({what}_digest) in '{path}', found another; put the former "
            f"one back, or train a new run without {what}_digest"
        )


def _read_matrix(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive, of any number of arrays")
        return found
    except FileNotFoundError:
        raise UserError(f"expected a lattice matrix at '{path}', found no such file") from None
    except OSError as error:
        raise UserError(f"expected a lattice matrix at '{path}', found: {error.strerror}; check the path") from None
    except (ValueError, EOFError):
        raise UserError(
            f"expected a matrix saved with numpy.save at '{path}', found no such file format; save it again"
        ) from None
