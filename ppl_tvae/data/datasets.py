"""A data set of sequences: a source, what moves in it, and which images train, validate and test."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ppl_tvae.data.images import Source
from ppl_tvae.data.motions import moving_sprite_factors, split_motions
from ppl_tvae.data.plans import Plan, fixed_plan, training_plans
from ppl_tvae.data.rendering import (
    FactorTables,
    ImageTables,
    SequenceTables,
    Tables,
    factor_indices,
    factor_tables,
    image_tables,
    plain_tables,
)
from ppl_tvae.data.sources import load_source
from ppl_tvae.data.sprites import MOVING
from ppl_tvae.data.transforms import FACTORS, PLAIN, factor_values, in_perspective, moving_factors
from ppl_tvae.errors import UserError, unknown_name

# Fixes the splits and the order of the validation and test sequences; never the user's seed.
SPLIT_SEED = 2109_01394
LARGEST_TABLE = 2**30  # bytes

SPLITS = ("train", "validation", "test")


def check_split(name: object) -> None:
    """Raises UserError unless it is the name of a split."""
    if name not in SPLITS:
        raise unknown_name("split", str(name), SPLITS)


@dataclass(frozen=True)
class SequenceData:
    """Sequences of `num_timesteps` frames, described by plans and drawn on the device by `render(data.tables, plan)`.

    train, validation, test: int32 indices into the source's first axis, of sprites items of `motions`; they do not
        depend on any seed.
    """

    source: Source
    transforms: tuple[str, ...]
    num_timesteps: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a frame. Moving factors colour the images, so they give 3 channels."""
        height, width, channels = self.source.pixels.shape[-3:]
        if self.source.kind == "factors":
            return width, 8 * channels, 1  # packed: (N, H, W/8)
        return height, width, channels if self.transforms == PLAIN else 3

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32 class of every image of the source, -1 where unknown: `data.labels[plan.image]`."""
        return self.source.labels

    @cached_property
    def tables(self) -> Tables:
        """What `render` reads, as NumPy arrays; move them to the device once."""
        if self.source.kind == "sequences":
            return SequenceTables(self.source.pixels)
        if self.source.kind == "factors":
            moves = moving_sprite_factors(self.transforms, tuple(self.source.factors))
            sizes = tuple(map(len, self.source.factors.values()))
            return factor_tables(self.source.pixels, sizes, moves, self.num_timesteps)
        if self.transforms == PLAIN:
            return plain_tables(self.source.pixels, self.num_timesteps)
        return image_tables(self.source.pixels, self.transforms, self.num_timesteps)

    @property
    def factors(self) -> Mapping[str, np.ndarray]:
        """Each factor's values, in the order of `factor_indices`; none where nothing is known to move."""
        if self.source.kind == "factors":
            return self.source.factors
        return factor_values(self.num_timesteps) if isinstance(self.tables, ImageTables) else {}

    def factor_indices(self, plan: Plan) -> np.ndarray:
        """(B, S, F) int32, which of its values each factor has in every frame: the true factors of a sequence.

        Raises UserError for ready sequences, and for images that do not move.
        """
        if not isinstance(self.tables, ImageTables | FactorTables):
            raise UserError(f"expected data with factors that move, found {self.source.name} without any.")
        return factor_indices(self.tables, plan)

    def moving_indices(self, plan: Plan) -> np.ndarray:
        """(B, S) int32, which of its values the moving factor has in every frame; of several that move, the first.

        Raises as `factor_indices`. The factor is the first one that `data.transforms[plan.transform]` names in the
        order of `data.factors`.
        """
        indices = self.factor_indices(plan)
        assert isinstance(self.tables, ImageTables | FactorTables)  # others were refused
        moving = np.argmax(self.tables.moves[plan.transform], axis=1)
        return np.take_along_axis(indices, moving[:, None, None], axis=2)[..., 0]

    def train_plans(self, seed: int, first_step: int, num_steps: int, batch_size: int) -> Plan:
        """Plans of consecutive training steps, fields with leading axes (num_steps, batch_size)."""
        return self._with_motions(
            training_plans(
                self.train, seed, first_step, num_steps, batch_size, len(self.transforms), self.num_timesteps
            )
        )

    def _with_motions(self, plan: Plan) -> Plan:
        """Of sprites a plan of items: their transform and image, whose own factors are the phase and what is fixed."""
        if self.source.kind != "factors":
            return plan
        transform, image = np.divmod(plan.image, np.int32(len(self.source.pixels)))
        plan = plan._replace(transform=transform, image=image)
        flat = plan.map(lambda field: field.reshape(-1, *field.shape[plan.image.ndim :]))
        return plan._replace(phase=self.moving_indices(flat)[:, 0].reshape(image.shape))

    def plan(self, split: str, limit: int) -> Plan:
        """The first `limit` fixed sequences of a split, one per image in a fixed random order. Raises UserError."""
        return self._fixed_plan(getattr(self, split), split, limit)

    def validation_plan(self, limit: int | None = None) -> Plan:
        """As `plan` of "validation"; all of it without a limit."""
        return self._fixed_plan(self.validation, "validation", limit)

    def test_plan(self, limit: int | None = None) -> Plan:
        """As `plan` of "test"; all of it without a limit."""
        return self._fixed_plan(self.test, "test", limit)

    def _fixed_plan(self, indices: np.ndarray, split: str, limit: int | None) -> Plan:
        if limit is not None and limit < 1:
            raise UserError(f"expected a limit of at least 1 {split} sequence, found {limit}; raise it.")
        if not len(indices):
            raise UserError(
                f"expected {split} sequences, found none in {self.source.name}; hold more of its images or sequences "
                f"out, for validation by a larger validation_fraction."
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(indices)
        plan = fixed_plan(order, split, len(self.transforms), self.num_timesteps)
        return self._with_motions(plan.at(slice(limit)))


def open_data(
    name: str,
    data_dir: Path | None = None,
    transforms: tuple[str, ...] | None = None,
    num_timesteps: int | None = None,
    validation_fraction: float = 0.2,
) -> SequenceData:
    """The data set of a source (`sources.catalogue`, or a path ending in .npz) under the given transforms.

    Every frame is rotated, scaled and coloured. In each sequence one of `transforms`, drawn at random, moves cyclically
    through its values; the factors that are not in it stand still at random values. "rotation+hue" moves both
    with one phase. ("none",) leaves images as they are, grey or colour, S copies of each. Of sprites, a transform is
    one of their factors, or several joined by "+".
    transforms: rotation, scale and hue by default; of sprites scale, orientation, posX and posY.
    num_timesteps: S, 18 by default, 15 of sprites; ready sequences bring their own S and are not transformed.
    validation_fraction: fixed random part of the training images that is kept for validation (paper: 20 %); of sprites,
        of the motions of the factor that has the fewest.
    Raises UserError for unknown names, unreadable files and settings that do not fit the source.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"expected a validation fraction in [0, 1), found {validation_fraction}; change it.")
    source = load_source(name, data_dir, num_timesteps)
    if source.kind == "factors":
        return _sprites(source, MOVING if transforms is None else tuple(transforms), validation_fraction)
    transforms = FACTORS if transforms is None else tuple(transforms)
    if source.kind == "sequences":
        transforms, num_timesteps = PLAIN, _own_timesteps(source, transforms, num_timesteps)
    else:
        num_timesteps = 18 if num_timesteps is None else num_timesteps
        _check_settings(source, transforms, num_timesteps)
    order = np.random.default_rng(SPLIT_SEED).permutation(source.train)
    num_validation = round(validation_fraction * len(order))
    if num_validation == len(order):
        raise UserError(
            f"expected a validation fraction that leaves some of the {len(order)} training images, found "
            f"{validation_fraction}; lower it."
        )
    train, validation = np.sort(order[num_validation:]), np.sort(order[:num_validation])
    return SequenceData(source, transforms, num_timesteps, train, validation, source.test)


def _sprites(source: Source, transforms: tuple[str, ...], validation_fraction: float) -> SequenceData:
    moves = moving_sprite_factors(transforms, tuple(source.factors))
    sizes = tuple(map(len, source.factors.values()))
    splits = split_motions(transforms, moves, sizes, _first_alike(source.pixels), validation_fraction, SPLIT_SEED)
    return SequenceData(source, transforms, len(source.factors["orientation"]), *splits)


def _first_alike(pixels: np.ndarray) -> np.ndarray:
    """(N,) the index of the first of the images that each one is the same as."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(image.tobytes(), index) for index, image in enumerate(pixels)])


def _check_settings(source: Source, transforms: tuple[str, ...], num_timesteps: int) -> None:
    moving = transforms != PLAIN
    if moving:
        moving_factors(transforms)
    fewest = 2 if moving else 1
    if num_timesteps < fewest:
        raise UserError(f"expected at least {fewest} timesteps, found {num_timesteps}; raise the number.")
    height, width = source.pixels.shape[1:3]
    kinds = len(set(in_perspective(transforms)))
    size = 8 * kinds * num_timesteps**2 * height * width  # two int32 per pixel of every rotation at every scale
    if moving and size > LARGEST_TABLE:
        raise UserError(
            f"expected fewer timesteps, found {num_timesteps}, for which the rotations and scales of {height}x{width} "
            f"pixels take {size / 2**30:.1f} GiB; lower the number or shrink the images."
        )


def _own_timesteps(source: Source, transforms: tuple[str, ...], num_timesteps: int | None) -> int:
    own = source.pixels.shape[1]
    if transforms not in (FACTORS, PLAIN):
        raise UserError(
            f"expected no transforms of ready sequences, found {', '.join(transforms)} for {source.name}; "
            "use 'none', or give images."
        )
    if num_timesteps not in (None, own):
        raise UserError(
            f"expected {own} timesteps, the length of the sequences in {source.name}, found {num_timesteps}; "
            f"leave it out or give {own}."
        )
    return own
