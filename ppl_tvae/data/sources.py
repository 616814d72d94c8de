"""Where images come from: public sets by name, or the user's own .npz."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppl_tvae.data.archives import read_archive
from ppl_tvae.data.downloads import fetch
from ppl_tvae.data.idx import read_idx
from ppl_tvae.data.images import Source, random_test_split
from ppl_tvae.data.sprites import SPRITES, load_sprites
from ppl_tvae.errors import UserError, unknown_name


def load_source(name_or_path: str, data_dir: Path | None = None, num_timesteps: int | None = None) -> Source:
    """The source of that name (see `catalogue`), or the one in a .npz file. Of sprites it depends on the timesteps.

    Public sets are looked for in `data_dir`, else in the folder that PPL_TVAE_DATA names, else in the user's cache,
    and downloaded if they are nowhere. Raises UserError for whatever cannot be read.
    """
    if name_or_path.endswith(".npz"):
        return read_archive(Path(name_or_path).expanduser())
    if name_or_path in SPRITES:
        return load_sprites(name_or_path, num_timesteps, data_dir)
    if name_or_path not in LOADERS:
        raise unknown_name("data set (or a path ending in .npz)", name_or_path, LOADERS | SPRITES)
    return LOADERS[name_or_path][0](data_dir)


def catalogue() -> dict[str, str]:
    """Name -> one line, for every source that can be named."""
    return {name: line for name, (_, line) in (LOADERS | SPRITES).items()} | {
        "PATH.npz": "your own 'images' (N, H, W[, channel]) or 'sequences' (N, S, H, W, channel)"
    }


def _digits(data_dir: Path | None) -> Source:
    """scikit-learn's 1797 digits, 8x8 with 17 grey levels, enlarged to 20x20 and centred in 28x28 as MNIST's are.

    The margin keeps a digit magnified 1.26 times inside the frame. 300 images are the test set. Source: E. Alpaydin,
    C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    weights = _enlargement(8, 20)
    large = weights @ (small.reshape(-1, 8, 8) * (255 / 16)) @ weights.T
    images = np.pad(np.round(large).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
    train, test = random_test_split(len(images), 300)
    return Source("digits", "images", images[..., None], labels.astype(np.int32), train, test)


def _enlargement(size: int, larger: int) -> np.ndarray:
    """(larger, size) weights of linear interpolation, pixels taken as areas; the outermost are held beyond the edge."""
    centres = np.clip((np.arange(larger) + 0.5) * size / larger - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def _idx_source(name: str) -> Callable[[Path | None], Source]:
    """Loader of four IDX files: 60,000 training images, then 10,000 test images."""

    def load(data_dir: Path | None) -> Source:
        paths = fetch(name, data_dir)
        parts = [_idx_part(paths, part) for part in ("train", "t10k")]
        images = np.concatenate([part[0] for part in parts])
        labels = np.concatenate([part[1] for part in parts]).astype(np.int32)
        number = np.arange(len(images), dtype=np.int32)
        first_test = len(parts[0][0])
        return Source(name, "images", images[..., None], labels, number[:first_test], number[first_test:])

    return load


def _idx_part(paths: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(paths[f"{part}-images-idx3-ubyte"], rank=3)
    labels = read_idx(paths[f"{part}-labels-idx1-ubyte"], rank=1)
    if len(images) != len(labels):
        raise UserError(
            f"expected a label for each of {len(images)} images, found {len(labels)} labels in "
            f"{paths[f'{part}-labels-idx1-ubyte']}; check that the files belong together."
        )
    return images, labels


LOADERS: dict[str, tuple[Callable[[Path | None], Source], str]] = {
    "digits": (_digits, "1,797 real handwritten digits of scikit-learn, enlarged to 28x28; needs no download"),
    "mnist": (_idx_source("mnist"), "70,000 handwritten digits, 28x28 grey; 11 MB are downloaded once"),
    "fashion-mnist": (_idx_source("fashion-mnist"), "70,000 garments, 28x28 grey; 30 MB are downloaded once"),
}
