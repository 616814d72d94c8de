"""Experiment: everything that determines a training run, as one frozen dataclass; TOML in, TOML out.

The command line's options are made from its fields, so a setting is described in one place. Fields that are None
depend on the model and are filled in by `resolved`; a run directory holds the resolved experiment.
"""

import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ppl_tvae import catalogue
from ppl_tvae.errors import LARGEST_COUNT, UserError, unknown_name

# Sets whose default sizes are the paper's for dSprites, and what moves in them; `data.sprites` makes them.
SPRITES = ("dsprites", "sprites", "sprites-cyclic")
SPRITE_TRANSFORMS = ("scale", "orientation", "posX", "posY")


DEVICES = ("auto", "cpu", "cuda")


def _setting(default: Any, description: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": description, **metadata})


# Where the digests of the user's own files are noted, by the setting that names a file.
OWN_DIGESTS = {"model": "program_digest", "lattice": "lattice_digest"}
# What only `train` follows: a loop of the user's own has its own ways (`trained_by`).
OF_TRAINING = (
    "objective", "num_particles", "alpha", "kl_warmup_steps", "steps", "optimizer", "learning_rate", "momentum",
    "adam_epsilon", "schedule", "warmup_steps", "clip_norm", "log_every", "evaluate_every", "validation_sequences",
    "patience", "devices", "matmul",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and how. Raises UserError from `resolved` where settings do not fit together."""

    backend: str = _setting("numpyro", "the probabilistic programming language", kind="backend")
    model: str = _setting("tvae", "tvae, static, bubble, torus, vae, or the path of your own program, PATH.py")
    guide: str = _setting("mean-field", "the guide of a named model", kind="guide")
    prior: str = _setting("normal", "the prior of the latents of a named model", kind="prior")
    prior_z: str | None = _setting(None, "the prior of z, where it is another than --prior", kind="prior")
    prior_u: str | None = _setting(None, "the prior of u, where it is another than --prior", kind="prior")
    likelihood: str = _setting("bernoulli", "what the pixels are observed as", kind="likelihood")
    objective: str = _setting("elbo", "the bound that is trained", kind="objective")
    num_particles: int | None = _setting(None, "draws from the guide per bound, K, in training (elbo 1; others 10)")
    alpha: float | None = _setting(None, "order of the renyi bound: 0 is iwae, 1 is elbo (0.5)")
    kl_warmup_steps: int = _setting(0, "of elbo: steps over which the weight of the KL part rises from 0 to 1")

    data: str = _setting(
        "digits", "digits, mnist, fashion-mnist, sprites, sprites-cyclic, dsprites, or your own, PATH.npz"
    )
    data_dir: str = _setting("", "folder that holds the data files (else PPL_TVAE_DATA, else a cache folder)")
    program_digest: str | None = _setting(
        None, "of your own program: which it was, noted by a run directory", noted=True
    )
    lattice_digest: str | None = _setting(None, "of your own W: which it was, noted by a run directory", noted=True)
    data_digest: str | None = _setting(None, "of your own data: which they were, noted by a run directory", noted=True)
    trained_by: str | None = _setting(
        None, "what found the parameters, where it was a loop of your own: noted by a run directory", noted=True
    )
    transforms: tuple[str, ...] | None = _setting(
        None,
        "what moves, one per sequence: rotation, scale, hue, or none; of sprites scale, orientation, posX, posY",
    )
    num_timesteps: int | None = _setting(None, "frames in a sequence, S (18; sprites 15; torus 1)")
    validation_fraction: float = _setting(0.2, "share of the training images held out to choose the best parameters")

    num_capsules: int | None = _setting(None, "capsules, C (18; sprites 15; torus 1)")
    capsule_dim: int | None = _setting(None, "positions in a capsule, D (18; sprites 15; torus 324, a square)")
    hidden: tuple[int, ...] | None = _setting(
        None, "hidden layers of the encoders, mirrored by the decoder (972,648; sprites 675,450)"
    )
    temporal_window: int | None = _setting(None, "frames that share variance (tvae 13/18 of S, sprites 2/3; bubble 5)")
    spatial_width: int | None = _setting(
        None, "positions that share variance at one time, K (3; sprites: tvae 1, bubble 5; torus 5)"
    )
    lattice: str = _setting("", "your own W instead: PATH.npy, a matrix of (S*D, S*D)")
    lattice_weights: str = _setting(
        "fixed", "of W: fixed, or a learned positive factor each", choices=("fixed", "learned")
    )
    mu: float | None = _setting(None, "initial value of mu (30; torus 10)")
    mu_per: str = _setting("model", "one mu per model, capsule or cell", choices=("model", "capsule", "cell"))
    epsilon: float = _setting(1e-6, "added to W u**2 before the root")

    steps: int = _setting(2000, "training steps")
    batch_size: int = _setting(8, "sequences in a batch")
    optimizer: str = _setting("adam", "how parameters are updated", kind="optimizer")
    learning_rate: float | None = _setting(None, "step size (adam 1e-3, sgd 1e-4)")
    momentum: float = _setting(0.9, "momentum of sgd; the first decay rate of adam")
    adam_epsilon: float = _setting(1e-8, "added by adam to the root of its second moment")
    schedule: str = _setting("constant", "how the learning rate changes", kind="schedule")
    warmup_steps: int = _setting(0, "steps over which the learning rate rises linearly from zero")
    clip_norm: float = _setting(0.0, "largest global norm of the gradient; 0 leaves it as it is")
    log_every: int = _setting(50, "steps per row of metrics.csv")
    evaluate_every: int = _setting(500, "steps between held-out ELBOs; also between checkpoints")
    validation_sequences: int = _setting(200, "sequences in the held-out ELBO while training, in whole batches")
    patience: int = _setting(0, "stop after so many held-out ELBOs without a new best; 0 never stops early")

    seed: int = _setting(0, "seed of parameters, batches and noise")
    device: str = _setting("auto", "auto, cpu or cuda", choices=DEVICES)
    devices: int = _setting(1, "devices that share each batch, a whole number of sequences each (NumPyro)")
    precision: str = _setting("float32", "float32 or float64", choices=("float32", "float64"), flag="float")
    matmul: str = _setting(
        "tf32",
        "of float32 products in training: tf32 (of GPUs; CPUs compute float32), float32, or bfloat16 (numpyro; pyro on "
        "CPUs with AMX)",
        choices=("tf32", "float32", "bfloat16"),
    )

    @property
    def program_file(self) -> Path | None:
        """The user's own program, where `model` is a path."""
        return Path(self.model) if self.model.endswith(".py") else None

    @property
    def own_files(self) -> tuple[str, ...]:
        """The settings that are paths here, to the user's own files and folders."""
        paths = {
            "model": self.model.endswith(".py"),
            "data": self.data.endswith(".npz"),
            "data_dir": bool(self.data_dir),
            "lattice": bool(self.lattice),
        }
        return tuple(name for name, is_path in paths.items() if is_path)

    @property
    def priors(self) -> dict[str, str]:
        """The prior of each latent of a named model; the plain VAE has no u."""
        of_z = {"z": self.prior_z or self.prior}
        return of_z if self.model == "vae" else of_z | {"u": self.prior_u or self.prior}

    @property
    def binarize(self) -> bool:
        """Whether frames are binarised: a Bernoulli observes zeros and ones."""
        return self.likelihood == "bernoulli"

    def resolved(self) -> "Experiment":
        """Every name and number checked, and the fields that depend on the model filled in. Raises UserError."""
        checked = experiment_from(_without_none(asdict(self)))
        _check_names(checked)
        _check_numbers(checked)
        defaults = _defaults_for(checked)
        given = {name: value for name in defaults if (value := getattr(checked, name)) is not None}
        resolved = replace(checked, **{**defaults, **given})
        _check_fit(checked, resolved)
        return resolved

    @property
    def unused(self) -> tuple[str, ...]:
        """The settings that mean nothing with this model, such as the guide of your own program, which brings one."""
        return (*self._unused_by_model, *(OF_TRAINING if self.trained_by is not None else ()))

    @property
    def _unused_by_model(self) -> tuple[str, ...]:
        sizes, windows = ("num_capsules", "capsule_dim", "hidden"), ("temporal_window", "spatial_width")
        of_lattice = ("lattice", "lattice_digest", "lattice_weights", "mu", "mu_per", "epsilon", "prior_u")
        if self.program_file is not None:
            return (*sizes, *windows, *of_lattice, "guide", "prior", "prior_z")
        if self.model == "vae":
            return (*windows, *of_lattice, "program_digest")
        if self.lattice:
            return (*windows, "program_digest")
        without_window = ("temporal_window",) if self.model in ("static", "torus") else ()
        return (*without_window, "lattice_digest", "program_digest")

    def check_uses(self, names: Collection[str]) -> None:
        """Raises UserError if one of the settings means nothing with this model."""
        for name in self.unused:
            if name in names:
                drawn = self.lattice and name in ("temporal_window", "spatial_width")
                which = f"lattice = '{self.lattice}'" if drawn else f"model '{self.model}'"
                which = f"a loop of your own (trained_by '{self.trained_by}')" if name in OF_TRAINING else which
                found = getattr(self, name)
                raise UserError(f"expected no {name} with {which}, which does not use it; found {found}")

    def to_mapping(self) -> dict[str, Any]:
        """The settings as TOML can hold them; None, and what this model does not use, is left out."""
        values = {name: value for name, value in _without_none(asdict(self)).items() if name not in self.unused}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def setting_type(setting: Field[Any]) -> tuple[Any, bool]:
    """The plain type of a field's values (int, float, str) and whether it holds several of them."""
    hint = get_type_hints(Experiment)[setting.name]
    options = [option for option in (get_args(hint) or (hint,)) if option not in (NoneType, Ellipsis)]
    if get_origin(options[0]) is tuple:
        return get_args(options[0])[0], True
    return options[0], False


def experiment_from(settings: Mapping[str, Any]) -> Experiment:
    """An experiment from TOML or JSON values, each checked for its type. Raises UserError."""
    known = {setting.name: setting for setting in fields(Experiment)}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            flags = {flag: setting.name for setting in known.values() if (flag := setting.metadata.get("flag"))}
            if name in flags:
                raise UserError(
                    f"expected the name of a setting, found '{name}'; --{name} is the setting '{flags[name]}'"
                )
            raise unknown_name("setting", name, known)
        values[name] = _of_its_type(known[name], value)
    return Experiment(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """What is written in a TOML file, unchecked. Raises UserError if there is none or it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"expected an experiment in TOML at '{path}', found: {error.strerror}; check it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"expected TOML in '{path}', found a mistake: {error}; mend it") from None


def read_toml(path: Path) -> Experiment:
    """The experiment in a TOML file; files that it names lie relative to it. Raises UserError."""
    experiment = experiment_from(read_settings(path))
    moved = {name: str(path.parent / Path(getattr(experiment, name)).expanduser()) for name in experiment.own_files}
    return experiment_from(_without_none(asdict(experiment)) | moved)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _of_its_type(setting: Field[Any], value: Any) -> Any:
    kind, several = setting_type(setting)
    listed = isinstance(value, list | tuple)
    if listed != several or not all(_is_a(part, kind) for part in (value if several else [value])):
        expected = f"a list of {kind.__name__}" if several else kind.__name__
        raise UserError(f"expected {expected} for the setting '{setting.name}', found {value!r}")
    return tuple(kind(part) for part in value) if several else kind(value)


def _is_a(value: Any, kind: type) -> bool:
    """Numbers of NumPy are numbers too; no setting is true or false."""
    if isinstance(value, bool):
        return False
    abstract: dict[type, Any] = {float: Real, int: Integral}
    return isinstance(value, abstract.get(kind, kind))


def _check_names(experiment: Experiment) -> None:
    for setting in fields(Experiment):
        value = getattr(experiment, setting.name)
        kind = setting.metadata.get("kind")
        if kind and value is not None and value not in catalogue.KINDS[kind]:
            raise unknown_name(kind, value, catalogue.KINDS[kind])
        if (choices := setting.metadata.get("choices")) and value not in choices:
            raise unknown_name(setting.metadata.get("flag", setting.name), value, choices)
    if experiment.program_file is None and experiment.model not in catalogue.MODELS:
        raise unknown_name("model", experiment.model, catalogue.MODELS)


_AT_LEAST = {
    "num_timesteps": 1, "num_capsules": 1, "capsule_dim": 1, "temporal_window": 1, "spatial_width": 1, "steps": 1,
    "batch_size": 1, "warmup_steps": 0, "log_every": 1, "evaluate_every": 1, "validation_sequences": 1, "patience": 0,
    "momentum": 0, "clip_norm": 0, "epsilon": 0, "num_particles": 1, "kl_warmup_steps": 0,
    "devices": 1,
}  # fmt: skip


_LARGEST = {"float32": 3.4e38, "float64": 1.7e308}
_SMALLEST = {"float32": 1.2e-38, "float64": 2.3e-308}  # below, numbers count as zero
# Seeds beyond 32 bits are cut down by some generators, so that two of them would be one.
_LARGEST_SEED = 2**32 - 1


def check_seed(seed: int) -> None:
    """Raises UserError unless every generator in use tells this seed from all others."""
    if not isinstance(seed, Integral) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"expected a seed between 0 and {_LARGEST_SEED}, found {seed}")


def _check_numbers(experiment: Experiment) -> None:
    check_seed(experiment.seed)
    for name, value in _without_none(asdict(experiment)).items():
        if isinstance(value, float) and not abs(value) <= _LARGEST[experiment.precision]:
            raise UserError(f"expected {name} to be finite in {experiment.precision}, found {value}")
        counts = value if isinstance(value, tuple) else () if name == "seed" else (value,)
        if any(isinstance(count, int) and count > LARGEST_COUNT for count in counts):
            raise UserError(f"expected {name} of at most {LARGEST_COUNT}, found {value}; lower it")
    for name, least in _AT_LEAST.items():
        value = getattr(experiment, name)
        if value is not None and not value >= least:
            raise UserError(f"expected {name} of at least {least}, found {value}")
    if not 0 < experiment.validation_fraction < 1:
        raise UserError(f"expected validation_fraction between 0 and 1, found {experiment.validation_fraction}")
    if not experiment.adam_epsilon > _SMALLEST[experiment.precision]:
        raise UserError(
            f"expected adam_epsilon above {_SMALLEST[experiment.precision]} in {experiment.precision}, without which "
            f"adam divides zero gradients by zero, found {experiment.adam_epsilon}"
        )
    if not experiment.momentum < 1:
        raise UserError(f"expected momentum below 1, found {experiment.momentum}")
    if experiment.learning_rate is not None and not experiment.learning_rate > 0:
        raise UserError(f"expected a positive learning_rate, found {experiment.learning_rate}")
    if any(width < 1 for width in experiment.hidden or ()):
        raise UserError(f"expected hidden layers of at least one unit, found {experiment.hidden}")


def _defaults_for(experiment: Experiment) -> dict[str, Any]:
    """What the fields that are None stand for."""
    torus, sprites = experiment.model == "torus", experiment.data in SPRITES
    size = 15 if sprites else 18
    timesteps = experiment.num_timesteps or (1 if torus else size)
    moving = SPRITE_TRANSFORMS if sprites else ("rotation", "scale", "hue")
    defaults: dict[str, Any] = {
        "transforms": ("none",) if torus else moving,
        "num_timesteps": timesteps,
    }
    if experiment.trained_by is None:
        defaults["learning_rate"] = {"adam": 1e-3, "sgd": 1e-4}[experiment.optimizer]
        defaults["num_particles"] = 1 if experiment.objective == "elbo" else 10
        if experiment.objective == "renyi":
            defaults["alpha"] = 0.5
    if experiment.program_file is not None:
        return defaults
    defaults |= {"num_capsules": 1 if torus else size, "capsule_dim": 324 if torus else size}
    defaults["hidden"] = (675, 450) if sprites else (972, 648)
    if experiment.model != "vae":
        defaults["mu"] = 10.0 if torus else 30.0
        if not experiment.lattice:
            capsule_dim = experiment.capsule_dim or defaults["capsule_dim"]
            defaults |= _default_windows(experiment.model, sprites, timesteps, capsule_dim)
    return defaults


def _default_windows(model: str, sprites: bool, timesteps: int, capsule_dim: int) -> dict[str, int]:
    """Over how many timesteps and positions cells share variance in a named lattice."""
    if model == "torus":
        return {"spatial_width": min(math.isqrt(capsule_dim), 5)}
    width = min(capsule_dim, {"tvae": 1, "bubble": 5}.get(model, 3) if sprites else 3)
    if model == "static":
        return {"spatial_width": width}
    if model == "bubble":
        return {"temporal_window": min(timesteps, 5), "spatial_width": width}
    share = 2 / 3 if sprites else 13 / 18  # the paper's L = 1/3 and 13/36 of S, which count one side
    window = min(capsule_dim, timesteps, max(2, round(timesteps * share)))
    return {"temporal_window": window, "spatial_width": width - 1 + width % 2}  # odd


def _check_fit(given: Experiment, resolved: Experiment) -> None:
    """Settings that this model would not use are refused, not ignored."""
    given.check_uses([s.name for s in fields(Experiment) if getattr(given, s.name) != s.default])
    if given.trained_by is not None and not (given.trained_by.strip() and given.trained_by.isprintable()):
        raise UserError(
            f"expected a line of words that say what trained the parameters (trained_by), found {given.trained_by!r}"
        )
    if given.model == "torus" and resolved.num_timesteps != 1:
        raise UserError(f"expected num_timesteps 1 with model 'torus' (single frames), found {resolved.num_timesteps}")
    if given.optimizer != "adam" and given.adam_epsilon != Experiment().adam_epsilon:
        raise UserError(f"expected adam_epsilon only with optimizer 'adam', found it with '{given.optimizer}'")
    if given.program_file is None and given.likelihood in catalogue.OWN_LIKELIHOODS:
        raise UserError(
            f"expected the likelihood of a named model, one of {', '.join(catalogue.LIKELIHOODS)}, found "
            f"'{given.likelihood}', which an own program writes; name one, or write a program (ppl-tvae new)"
        )
    _check_swaps(resolved)
    _check_objective(resolved)
    _check_devices(resolved)
    if resolved.warmup_steps >= resolved.steps:
        raise UserError(f"expected fewer warmup_steps than the {resolved.steps} steps, found {resolved.warmup_steps}")


def _check_swaps(resolved: Experiment) -> None:
    spherical = "hyperspherical" in resolved.priors.values()
    if spherical and resolved.guide != "mean-field":
        raise UserError(
            f"expected guide 'mean-field' with prior 'hyperspherical', whose posterior is power spherical, found "
            f"'{resolved.guide}'"
        )
    if spherical and resolved.capsule_dim == 1:
        raise UserError("expected capsule_dim of at least 2 with prior 'hyperspherical', found 1")


def _check_objective(resolved: Experiment) -> None:
    objective, steps = resolved.objective, resolved.steps
    if resolved.alpha is not None and objective != "renyi":
        raise UserError(f"expected alpha only with objective 'renyi', found {resolved.alpha} with '{objective}'")
    if resolved.kl_warmup_steps and objective != "elbo":
        raise UserError(
            f"expected kl_warmup_steps only with objective 'elbo', whose bound has a KL part of its own, "
            f"found {resolved.kl_warmup_steps} with '{objective}'"
        )
    if resolved.kl_warmup_steps >= steps:
        raise UserError(f"expected fewer kl_warmup_steps than the {steps} steps, found {resolved.kl_warmup_steps}")


def _check_devices(resolved: Experiment) -> None:
    if resolved.devices > 1 and resolved.backend == "pyro":
        raise UserError(
            f"expected one device with backend 'pyro', where each device has a process of its own, found "
            f"{resolved.devices}; start them with torchrun --nproc-per-node {resolved.devices} -m ppl_tvae.cli train"
        )
    if resolved.batch_size % resolved.devices:
        raise UserError(
            f"expected a batch_size that is a multiple of the {resolved.devices} devices, found {resolved.batch_size}"
        )
