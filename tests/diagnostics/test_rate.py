"""The rate against the closed form for normals, and what is said where latents are not used."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from ppl_tvae.diagnostics.rate import ALL, as_text, rates, signs_of_collapse

DRAWS, SEQUENCES, TIMES = 4000, 6, 3
DIMS = ("chain", "draw", "sequence")


def tree_of(shift, scale):
    """z of the prior's own scale and shifted, u of another scale; standard normal priors, one latent a sequence."""
    rng, groups = np.random.default_rng(0), {"log_guide": {}, "log_prior": {}}
    for name, guide in (("z", stats.norm(shift, 1.0)), ("u", stats.norm(0.0, scale))):
        drawn = guide.rvs((1, DRAWS, SEQUENCES), random_state=rng)
        groups["log_guide"][name] = (DIMS, guide.logpdf(drawn))
        groups["log_prior"][name] = (DIMS, stats.norm.logpdf(drawn))
    observed = xr.Dataset({"x": (("sequence", "time"), np.zeros((SEQUENCES, TIMES)))})
    groups = {name: xr.Dataset(variables) for name, variables in groups.items()}
    return xr.DataTree.from_dict({**groups, "observed_data": observed})


def test_rates_are_the_divergences_of_normals_by_frame():
    found = {record["latent"]: record for record in rates(tree_of(2.0, 0.5))}
    expected = {"z": 2.0**2 / 2, "u": 0.5**2 / 2 - 0.5 - np.log(0.5)}
    expected[ALL] = sum(expected.values())
    assert list(found) == ["z", "u", ALL]
    for name, nats in expected.items():
        assert abs(found[name]["value"] - nats / TIMES) < 5 * found[name]["standard_error"]
        assert found[name]["standard_error"] < 0.02
    line = as_text(list(found.values()))
    assert f"z {found['z']['value']:.3g} +- " in line
    assert line.endswith("nats per frame")


def test_a_guide_that_is_the_prior_is_called_collapsed():
    assert not signs_of_collapse({"rates": rates(tree_of(2.0, 0.5))})
    (sentence,) = signs_of_collapse({"rates": rates(tree_of(0.0, 1.0))})
    assert sentence.startswith("posterior collapse")


@pytest.mark.parametrize(("reconstruction", "unused"), [(0.05, False), (0.1, True), (0.11, True)])
def test_codes_that_show_the_mean_frame_are_called_unused(reconstruction, unused):
    errors = {"image_error_reconstruction": reconstruction, "image_error_mean_frame": 0.1}
    found = signs_of_collapse({"equivariance": [{"metric": name, "value": value} for name, value in errors.items()]})
    assert [sentence.startswith("the codes are not used") for sentence in found] == [True] * unused
