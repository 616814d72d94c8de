"""The user's cache folder: what can be fetched or compiled again."""

import os
from pathlib import Path

_JAX_FOLDER = "JAX_COMPILATION_CACHE_DIR"


def cache_folder() -> Path:
    """Where the operating system has a user's caches; downloads go there, and what JAX compiles."""
    from platformdirs import user_cache_path  # not needed to say what the commands are

    return user_cache_path("ppl-tvae")


def keep_compiled_programs() -> None:
    """Have JAX, imported later in this process, keep what it compiles, for later commands with the same shapes.

    JAX's own variables go first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false
    does without. Where the folder cannot be written, nothing is kept.
    """
    if _JAX_FOLDER in os.environ:
        return
    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):  # else JAX would warn at every program
        os.environ[_JAX_FOLDER] = str(folder)
        # By default JAX keeps what took a second. Here hundreds of small programs take the time.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
