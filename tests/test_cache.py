"""What JAX compiles for one command is there for the next."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_tvae import cache
from tests.small_runs import small_arguments

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's empty cache; no variable of JAX is set."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "jax"


def test_compiled_programs_are_kept_in_the_users_cache(folder):
    cache.keep_compiled_programs()
    assert os.environ[VARIABLE] == str(folder)
    assert folder.is_dir()
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_a_folder_that_the_user_names_goes_first(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, "elsewhere")
    cache.keep_compiled_programs()
    assert os.environ[VARIABLE] == "elsewhere"
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_done_without(folder):
    folder.parent.write_text("a file")
    cache.keep_compiled_programs()
    assert VARIABLE not in os.environ


def test_a_folder_that_cannot_be_written_is_done_without(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    cache.keep_compiled_programs()
    assert VARIABLE not in os.environ


COUNTED = """
import sys
from ppl_tvae.cache import keep_compiled_programs
from ppl_tvae.cli import main
keep_compiled_programs()
import jax.monitoring
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
assert main(sys.argv[1:]) == 0
print("counted:", found.count("cache_hits"), found.count("cache_misses"))
"""


@pytest.mark.slow
def test_a_second_command_compiles_nothing_anew(tmp_path):
    """The same training twice, each in a process of its own, ends at the same bits."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    counted = []
    for run in ("first", "second"):
        command = [sys.executable, "-c", COUNTED, *small_arguments(tmp_path, "numpyro", tmp_path / run, steps=2)]
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        counted.append([int(number) for number in done.stdout.partition("counted:")[2].split()])
    (_, compiled), (found, anew) = counted
    assert compiled > 20
    assert (found, anew) == (compiled + counted[0][0], 0)
    first, second = ((tmp_path / run / "parameters.safetensors").read_bytes() for run in ("first", "second"))
    assert first == second
