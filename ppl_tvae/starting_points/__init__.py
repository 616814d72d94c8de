"""Programs to edit: what `ppl-tvae new` writes out, by backend and model."""

from pathlib import Path

from ppl_tvae import catalogue
from ppl_tvae.errors import UserError, unknown_name
from ppl_tvae.files import writing_to

_IMPORT, _SIZES = "from ppl_tvae.models.lattice import shifting\n", "S, C, D = 18, 18, 18"
_MU, _LATTICE = "MU, EPSILON = 30.0, 1e-6", "LATTICE = shifting(S, D, window=13, band=1)"
# The other topographic models are the tvae with these lines changed.
_CHANGES = {
    "tvae": {},
    "bubble": {
        _IMPORT: "from ppl_tvae.models.lattice import stationary\n",
        _LATTICE: "LATTICE = stationary(S, D, temporal_window=5, spatial_width=3)",
    },
    "static": {
        _IMPORT: "from ppl_tvae.models.lattice import static\n",
        _LATTICE: "LATTICE = static(S, D, spatial_width=3)",
    },
    "torus": {
        _IMPORT: "from ppl_tvae.models.lattice import torus\n",
        _SIZES: "S, C, D = 1, 1, 324",
        _MU: "MU, EPSILON = 10.0, 1e-6",
        _LATTICE: "LATTICE = torus(18, 18, spatial_width=5)",
        " check FILE.py": " check FILE.py --transforms none --num-timesteps 1",
        " --out runs/mine": " --out runs/mine --transforms none --num-timesteps 1",
    },
}


def starting_point(model: str, backend: str, file_name: str = "FILE.py") -> str:
    """The text of a program file that exports `model` and `guide`, those of the named model. Raises UserError."""
    if backend not in catalogue.BACKENDS:
        raise unknown_name("backend", backend, catalogue.BACKENDS)
    if model not in catalogue.MODELS:
        raise unknown_name("model", model, catalogue.MODELS)
    template = Path(__file__).parent / backend / ("vae.py" if model == "vae" else "tvae.py")
    text = template.read_text(encoding="utf-8")
    for old, new in _CHANGES.get(model, {}).items():
        assert old in text, "the template and its changes belong together"
        text = text.replace(old, new)
    return text.replace("FILE.py", file_name)


def write_starting_point(model: str, path: Path, backend: str) -> None:
    """Write the program to a new file. Raises UserError, also where the file exists: it may hold somebody's edits."""
    if path.suffix != ".py":
        raise UserError(f"expected the path of a Python file, ending in .py, found '{path}'; rename it")
    text = starting_point(model, backend, path.as_posix())
    with writing_to(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UserError(f"expected a new file, found that '{path}' exists; choose another name") from None
