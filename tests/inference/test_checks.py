"""Invalid programs, each named in one sentence; and that the valid ones pass. Both hosts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae.assembly import assemble
from ppl_tvae.errors import UserError
from ppl_tvae.inference.numpyro.checks import check_program as check_numpyro
from ppl_tvae.inference.numpyro.tracing import parameters_of
from ppl_tvae.inference.pyro.checks import check_program as check_pyro
from ppl_tvae.program import Program
from tests.small import EVERY_PROGRAM, EVERY_SWAP, FRAME, small_experiment

HOSTS = {"numpyro": (numpyro, numpyro_dist, jnp, check_numpyro), "pyro": (pyro, pyro_dist, torch, check_pyro)}
SHAPE = (3, 2, 2, 2, 1)


def program(host, mistake=None):
    """z ~ Normal, x ~ Normal(mean of z) over frames; `mistake` breaks it in one way."""
    ppl, dist, xp, _ = HOSTS[host]

    def normal(scale=1.0, size=2):
        return dist.Normal(xp.zeros(size), scale * xp.ones(size)).to_event(0 if mistake == "event" else 1)

    def prior():
        if mistake in ("within", "above"):
            return dist.LogNormal(xp.zeros(2), xp.ones(2)).to_event(1)
        if mistake == "widest":
            return dist.Uniform(-999.0 * xp.ones(2), 999.0 * xp.ones(2)).to_event(1)
        if mistake == "wider":  # than which the guide seldom draws
            return dist.Uniform(-9.0 * xp.ones(2), 9.0 * xp.ones(2)).to_event(1)
        return dist.Normal(xp.zeros(2), xp.ones(2)).mask(mistake != "unmasked").to_event(1) if masked else normal()

    def posterior(scale, frames):
        if mistake == "point":
            return dist.Delta(xp.zeros(2) + ppl.param("z.loc", xp.zeros(2))).to_event(1)
        if mistake == "moved":
            return dist.TransformedDistribution(
                dist.Delta(xp.zeros(2)), [dist.transforms.AffineTransform(0.0, 2.0)]
            ).to_event(1)
        if mistake == "above":  # so far that no draw shows where it does not fit
            return dist.Normal(9.0 * xp.ones(2), 0.1 * xp.ones(2)).to_event(1)
        if mistake == "early":
            scale = scale + frames[:1].mean()
        if masked:
            return dist.Normal(xp.zeros(2), scale * xp.ones(2)).mask(mistake == "unmasked").to_event(1)
        return normal(size=3) if mistake == "sizes" else normal(scale)

    masked = mistake in ("masked", "unmasked")

    def noise(size):
        return jax.random.normal(numpyro.prng_key(), (size,)) if host == "numpyro" else torch.randn(size)

    def further_sites():
        """Of model and guide alike."""
        if mistake == "inner":
            with ppl.plate("rows", 4, dim=-2):
                ppl.sample("h", dist.Normal(xp.zeros(()), 1.0))
        if mistake == "phase":
            ppl.sample("phase", normal())
        if mistake == "discrete":
            ppl.sample("k", dist.Bernoulli(logits=xp.zeros(2)).to_event(1))

    def model(frames):
        if mistake == "global":
            ppl.sample("theta", dist.Normal(xp.zeros(()), 1.0))
        if mistake == "clash":
            ppl.param("weight", xp.zeros(2))
        if mistake == "batched":
            ppl.param("offset", xp.zeros(frames.shape[0]))
        if mistake == "borrowed":
            ppl.param("z", xp.zeros(2))
        with ppl.plate("batch" if mistake == "plate" else "sequences", frames.shape[0]):
            z = ppl.sample("z", prior())
            if mistake == "twice":
                ppl.sample("z", normal())
            if mistake == "unguided":
                ppl.sample("w", normal())
            if mistake == "factor":
                ppl.factor("f", -z.sum(-1))
            further_sites()
            if mistake == "parted":
                ppl.sample("a/b", normal())
            z = z - z.mean(0) if mistake == "centred" else z
            z = z.cumsum(0) if mistake == "summed" else z
            z = z + xp.arange(frames.shape[0])[:, None] if mistake == "placed" else z
            z = z + noise(2) if mistake == "chance" else z
            loc = xp.zeros(SHAPE[1:]) + z.mean(-1).reshape(-1, 1, 1, 1, 1)
            loc = loc + frames[:1] if mistake == "template" else loc
            loc = loc * frames.shape[0] if mistake == "counted" else loc
            loc = loc + frames if mistake == "peeking" else loc
            loc = loc[:, :1, :1] if mistake == "shape" else loc
            loc = loc + 1e30 if mistake == "finite" else loc
            if mistake == "namesake":
                loc = ppl.deterministic("loc", loc)
            if mistake == "watched":
                ppl.sample("y", normal(), obs=xp.zeros((SHAPE[0], 2)))
            x = dist.Bernoulli(logits=loc) if mistake == "support" else dist.Normal(loc, 1.0)
            handlers = ppl.handlers if host == "numpyro" else ppl.poutine
            with handlers.scale(scale=0.5 if mistake == "scaled" else 1.0):
                seen = {"drawn": None, "others": 1 - frames, "first": frames[..., :1, :]}.get(mistake, frames)
                ppl.sample("pixels" if mistake == "renamed" else "x", x.to_event(4), obs=seen)

    def guide(frames):
        if mistake == "global":
            ppl.sample("theta", dist.Normal(xp.zeros(()), 1.0))
        if mistake == "clash":
            ppl.param("weight", xp.zeros(3))
        if mistake == "batched guide":
            ppl.param("offset", xp.zeros(frames.shape[0]))
        with ppl.plate("sequences", frames.shape[0]):
            further_sites()
            scale = 0.5 + abs(noise(2)) if mistake == "dropout" else 0.5
            scale = scale + frames.mean() if mistake == "pooled" else scale
            ppl.sample("Z" if mistake == "misspelt" else "z", posterior(scale, frames))
            if mistake == "parted":
                ppl.sample("a/b", normal())
            if mistake == "unmodelled":
                ppl.sample("v", normal())
            if mistake == "told":
                ppl.sample("y", normal(), obs=xp.zeros((SHAPE[0], 2)))
            if mistake == "namesake":
                ppl.param("loc", xp.zeros(2))

    if mistake == "cover":  # a guide on the positive half of what the prior draws
        return Program(program(host).model, lambda frames: _positive(host, frames))
    return Program(model, guide)


def _positive(host, frames):
    ppl, dist, xp, _ = HOSTS[host]
    with ppl.plate("sequences", frames.shape[0]):
        ppl.sample("z", dist.LogNormal(xp.zeros(2), xp.ones(2)).to_event(1))


MISTAKES = {
    "renamed": "observe the frames at the site \"x\", found 'pixels'",
    "drawn": 'observe the frames at the site "x", found that it draws them; give the site obs=frames',
    "others": 'site "x" to observe the frames as they are.* found other values',
    "first": r'site "x" to observe the frames as they are.* found other values, of shape \(3, 2, 2, 1, 1\)',
    "called": "probabilities of zeros and ones at site 'x' with likelihood 'bernoulli', found Normal",
    "factor": "distributions at the sites of the model, found the factor 'f'",
    "centred": "no other sequence of its batch",
    "pooled": r"log q\(z \| x\) of a sequence to depend on no other sequence of its batch.*mend the guide",
    "watched": "no observed site but 'x' of the model, found 'y' in the model",
    "told": "no observed site but 'x' of the model, found 'y' in the guide",
    "namesake": "a name of its own for each site and parameter, found 'loc' for both",
    "chance": "the model to give the same log p.*such as dropout, may draw outside of sites",
    "dropout": "the guide to give the same log q.*such as dropout, may draw outside of sites",
    "inner": r"'sequences' on the first axis of site 'h' of the model, found another axis of \(4, 3\)",
    "phase": "sites by other names than the dimensions and coordinates .*found 'phase'",
    "discrete": "reparameterised distribution at the guide's site 'k', found Bernoulli",
    "unguided": "every latent of the model, found no site 'w'",
    "misspelt": "found no site 'z' in it; add it, or rename its site 'Z', which the model has not",
    "unmodelled": "every site of the guide, found no site 'v'",
    "sizes": r"'z' to have one shape in model and guide, found .*2.* in the model and .*3",
    "plate": "'z' inside the plate 'sequences', found it outside",
    "global": "'theta' inside the plate 'sequences', found it outside",
    "shape": '\'?"?x"? to have the shape of the frames',
    "support": 'within the support of site "x".*values outside',
    "finite": "a finite log-probability at site 'x' of the model",
    "clash": r"'weight' to be one in model and guide, found shape \(2,\) in the model and \(3,\) in the guide",
    "twice": "a name of its own for each site and parameter of the model, found: .*z",
    "borrowed": "a name of its own for each site and parameter.* found.*z",
    "cover": "cover the prior of site 'z'",
    "within": "guide's draws of site 'z' within the support of its prior",
    "wider": "guide's draws of site 'z' within the support of its prior",
    "above": "guide's draws of site 'z' within the support of its prior",
    "widest": "guide's draws of site 'z' within the support of its prior",
    "moved": "with a density at the sites of the guide, found the point mass Delta at 'z'",
    "point": "with a density at the sites of the guide, found the point mass Delta at 'z'",
    "masked": "entries of site 'z' masked alike in model and guide",
    "unmasked": "entries of site 'z' masked alike in model and guide",
    "summed": r"log p\(x, z\) of a sequence to depend on no other sequence of its batch",
    "placed": r"log p\(x, z\) of a sequence to depend on no other sequence of its batch",
    "template": r"log p\(x, z\) of a sequence to depend on no other sequence of its batch.* for the last one",
    "counted": r"log p\(x, z\) of a sequence to depend on no other sequence of its batch.* among half as many",
    "early": r"log q\(z \| x\) of a sequence to depend on no other sequence of its batch.* for the last one",
    "peeking": 'the distribution of a pixel at site "x" not to depend on that pixel',
    "parted": "no '/' in the names of sites.*found 'a/b'",
    "batched": r"the same shapes whatever the number of sequences, found 'offset' of shape \(3,\) and.* \(1,\)",
    "batched guide": r"the same shapes whatever the number of sequences, found 'offset' of shape \(3,\) and.* \(1,\)",
    "scaled": "no scale at site 'x' of the model but that of the plate 'sequences', found 0.5",
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_valid_program_passes(host):
    HOSTS[host][3](program(host), HOSTS[host][2].full(SHAPE, 0.3))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_sentence(host, mistake):
    _, _, xp, check = HOSTS[host]
    frames = xp.linspace(0.1, 0.9, 24).reshape(SHAPE)
    with pytest.raises(UserError, match=MISTAKES[mistake]) as raised:
        check(program(host, mistake), frames, "bernoulli" if mistake == "called" else "")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_without_latents_is_refused(host):
    ppl, dist, xp, check = HOSTS[host]

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("x", dist.Normal(xp.zeros(SHAPE[1:]), 1.0).to_event(4), obs=frames)

    with pytest.raises(UserError, match="a model with latents to infer, found none"):
        check(Program(model, lambda frames: None), xp.full(SHAPE, 0.3))


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_of_one_sequence_is_told_of_the_plate(host):
    """Without it the shapes of all sites are those of a single sequence, and right."""
    ppl, dist, xp, check = HOSTS[host]

    def model(frames):
        z = ppl.sample("z", dist.Normal(xp.zeros(2), 1.0).to_event(1))
        ppl.sample("x", dist.Normal(z.sum() + xp.zeros(SHAPE[1:]), 1.0).to_event(4), obs=frames)

    def guide(frames):
        ppl.sample("z", dist.Normal(xp.zeros(2), 1.0).to_event(1))

    with pytest.raises(UserError, match=r'in a plate "sequences" of frames.shape\[0\], found that site "x" is in none'):
        check(Program(model, guide), xp.full(SHAPE, 0.3))


@pytest.mark.parametrize("host", HOSTS)
def test_masks_that_are_alike_and_frames_that_look_back_pass(host):
    """A pixel may depend on any other that comes before it, in time or in its frame."""
    ppl, dist, xp, check = HOSTS[host]

    def latent():
        return dist.Normal(xp.zeros(2), 0.5).mask(xp.asarray([True, False])).to_event(1)

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            z = ppl.sample("z", latent())
            before = frames.reshape(len(frames), -1).cumsum(-1).reshape(frames.shape) - frames
            loc = before + z.mean(-1).reshape(-1, 1, 1, 1, 1)
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", latent())

    check(Program(model, guide), xp.linspace(0.1, 0.9, 24).reshape(SHAPE))


def test_a_flow_that_is_inverted_passes():
    """Pyro remembers what its draws were transformed from; copies of them are inverted, to other last digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = pyro_dist.transforms.spline_coupling(18, hidden_dims=[20], bound=3.0)
        weight = torch.randn(8, 18) / 8**0.5

    def model(frames):
        with pyro.plate("sequences", frames.shape[0]):
            z = pyro.sample("z", pyro_dist.Normal(torch.zeros(18), 1.0).to_event(1))
            loc = z.mean(-1).reshape(-1, 1, 1, 1, 1) + torch.zeros(SHAPE[1:])
            pyro.sample("x", pyro_dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        pyro.module("flow", flow)
        with pyro.plate("sequences", frames.shape[0]):
            normal = pyro_dist.Normal(frames.reshape(len(frames), -1) @ weight, 1.0).to_event(1)
            pyro.sample("z", pyro_dist.TransformedDistribution(normal, [flow]))

    for _ in range(6):
        check_pyro(Program(model, guide), torch.linspace(0.1, 0.9, 64).reshape(8, *SHAPE[1:]))


@pytest.mark.parametrize("host", HOSTS)
def test_pixels_in_whole_numbers_pass(host):
    ppl, dist, xp, check = HOSTS[host]
    whole = {"numpyro": lambda frames: frames.astype(int), "pyro": lambda frames: frames.long()}[host]

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            z = ppl.sample("z", dist.Normal(xp.zeros(2), 1.0).to_event(1))
            logits = z[:, None, None, None, None] + xp.zeros((*SHAPE[1:], 2))
            ppl.sample("x", dist.Categorical(logits=logits).to_event(4), obs=whole(frames))

    frames = xp.asarray((xp.linspace(0.1, 0.9, 24).reshape(SHAPE) > 0.5) * 1.0)
    check(Program(model, program(host).guide), frames, "bernoulli")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("pixel", [(1, 1, 1, 0), (2, 2, 2, 1)])
def test_a_single_pixel_that_looks_at_itself_is_found_unless_a_mask_leaves_it_out(host, pixel):
    """In the middle of the first channel, and the last of all."""
    ppl, dist, xp, check = HOSTS[host]
    shape = (2, 3, 3, 3, 2)
    places = xp.arange(54).reshape(shape[1:])
    here = places == places[pixel]

    def program_with(counts):
        def model(frames):
            with ppl.plate("sequences", frames.shape[0]):
                z = ppl.sample("z", dist.Normal(xp.zeros(2), xp.ones(2)).to_event(1))
                loc = 0.01 * z.mean(-1).reshape(-1, 1, 1, 1, 1) + frames * here
                ppl.sample("x", dist.Normal(loc, 1.0).mask(counts).to_event(4), obs=frames)

        return Program(model, program(host).guide)

    frames = xp.linspace(0.1, 0.9, 108).reshape(shape)
    check(program_with(~here), frames)
    with pytest.raises(UserError, match="not to depend on that pixel"):
        check(program_with(here | ~here), frames)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("family", ["LogNormal", "Uniform"])
def test_a_guide_with_the_support_of_its_prior_passes(host, family):
    """Which is not the whole line."""
    ppl, dist, xp, check = HOSTS[host]

    def latent(frames):
        return ppl.sample("z", getattr(dist, family)(xp.zeros(2), xp.ones(2)).to_event(1))

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            loc = latent(frames).mean(-1).reshape(-1, 1, 1, 1, 1) + xp.zeros(SHAPE[1:])
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            latent(frames)

    check(Program(model, guide), xp.full(SHAPE, 0.3))


@pytest.mark.parametrize("host", HOSTS)
def test_a_plate_of_more_sequences_than_the_batch_passes(host):
    """Three of ten: the hosts scale what is in the plate by ten thirds."""
    ppl, dist, xp, check = HOSTS[host]

    def model(frames):
        with ppl.plate("sequences", 10, subsample_size=len(frames)):
            z = ppl.sample("z", dist.Normal(xp.zeros(2), xp.ones(2)).to_event(1))
            loc = z.mean(-1).reshape(-1, 1, 1, 1, 1) + xp.zeros(SHAPE[1:])
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    check(Program(model, program(host).guide), xp.full(SHAPE, 0.3))


def test_torch_has_the_random_stream_and_the_parameters_that_it_had_before_the_check():
    before = torch.random.get_rng_state(), dict(pyro.get_param_store().named_parameters())

    def guide(frames):
        pyro.param("guide.loc", torch.zeros(2))
        program("pyro").guide(frames)

    check_pyro(Program(program("pyro").model, guide), torch.full(SHAPE, 0.3))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert dict(pyro.get_param_store().named_parameters()).keys() == before[1].keys()


@pytest.mark.parametrize("host", HOSTS)
def test_a_batch_of_one_sequence_hides_no_neighbours(host):
    _, _, xp, check = HOSTS[host]
    one = xp.linspace(0.1, 0.9, 8).reshape(1, *SHAPE[1:])
    check(program(host), one)
    with pytest.raises(UserError, match="no other sequence of its batch"):
        check(program(host, "centred"), one)


def test_densities_of_angles_that_repeat_are_refused():
    zero, one = torch.zeros(()), torch.ones(())

    def model(frames):
        with pyro.plate("sequences", frames.shape[0]):
            angle = pyro.sample("angle", pyro_dist.VonMises(zero, one))
            loc = angle.reshape(-1, 1, 1, 1, 1) + torch.zeros(SHAPE[1:])
            pyro.sample("x", pyro_dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with pyro.plate("sequences", frames.shape[0]):
            pyro.sample("angle", pyro_dist.Normal(zero, one))

    with pytest.raises(UserError, match="site 'angle' with one density in all, found VonMises"):
        check_pyro(Program(model, guide), torch.full(SHAPE, 0.3))


def test_angles_and_points_within_mixtures_are_refused():
    weights = pyro_dist.Categorical(logits=torch.zeros(2))
    angles = pyro_dist.MixtureSameFamily(weights, pyro_dist.VonMises(torch.zeros(2), torch.ones(2)))
    with pytest.raises(UserError, match="with one density in all, found VonMises"):
        check_pyro(_of_one_latent("pyro", angles, pyro_dist.Normal(torch.zeros(()), 1.0)), torch.full(SHAPE, 0.3))
    parts = [numpyro_dist.Delta(0.0), numpyro_dist.Normal(0.0, 1.0)]
    spike = numpyro_dist.MixtureGeneral(
        numpyro_dist.Categorical(logits=jnp.zeros(2)), parts, support=numpyro_dist.constraints.real
    )
    with pytest.raises(UserError, match="the point mass Delta at 'z'"):
        check_numpyro(_of_one_latent("numpyro", spike, parts[1]), jnp.full(SHAPE, 0.3))


def _of_one_latent(host, prior, posterior):
    ppl, dist, xp, _ = HOSTS[host]

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            z = ppl.sample("z", prior)
            loc = z.reshape(-1, 1, 1, 1, 1) + xp.zeros(SHAPE[1:])
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", posterior)

    return Program(model, guide)


def test_running_statistics_are_refused():
    """What `flax_module` keeps for them; torch's are found by what they do to log p(x, z)."""

    def guide(frames):
        numpyro.primitives.mutable("network$state", {"mean": jnp.zeros(2)})
        program("numpyro").guide(frames)

    with pytest.raises(UserError, match=r"mutable site 'network\$state'; take layers without running"):
        check_numpyro(Program(program("numpyro").model, guide), jnp.full(SHAPE, 0.3))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("likelihood", ["normal", "continuous-bernoulli", "bernoulli-grey", "own-density"])
def test_a_density_may_be_called_one(host, likelihood):
    HOSTS[host][3](program(host), HOSTS[host][2].full(SHAPE, 0.3), likelihood)


@pytest.mark.parametrize("host", HOSTS)
def test_probabilities_called_a_density_are_refused(host):
    """On frames of zeros and ones, where the support would not tell."""
    _, _, xp, check = HOSTS[host]
    with pytest.raises(UserError, match="a density at site 'x' with likelihood 'normal', found Bernoulli"):
        check(program(host, "support"), xp.ones(SHAPE), "normal")
    with pytest.raises(UserError, match=r"found Bernoulli\w*; name the likelihood that it is: bernoulli, or own-prob"):
        check(program(host, "support"), xp.ones(SHAPE), "own-density")
    check(program(host, "support"), xp.ones(SHAPE), "bernoulli")
    check(program(host, "support"), xp.ones(SHAPE), "own-probability")


@pytest.mark.parametrize("host", HOSTS)
def test_a_density_above_one_is_no_probability(host):
    ppl, dist, xp, check = HOSTS[host]

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", dist.Normal(xp.zeros(2), xp.ones(2)).to_event(1))
            ppl.sample("x", dist.Normal(xp.full(SHAPE[1:], 0.3), 0.1 * xp.ones(SHAPE[1:])).to_event(4), obs=frames)

    with pytest.raises(UserError, match=r"expected probabilities .* found Normal, a density above 1; name it own-den"):
        check(Program(model, program(host).guide), xp.full(SHAPE, 0.3), "own-probability")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("model", "likelihood"), EVERY_PROGRAM)
def test_named_programs_pass(host, model, likelihood):
    experiment = small_experiment(model, likelihood)
    value = 1.0 if likelihood == "bernoulli" else 0.3
    frames = HOSTS[host][2].full((2, experiment.num_timesteps, *FRAME), value)
    HOSTS[host][3](assemble(experiment, host), frames, experiment.likelihood)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "settings",
    [
        *({"model": model, "guide": guide, "prior": prior} for model, guide, prior in EVERY_SWAP),
        {"lattice_weights": "learned", "mu_per": "cell"},
        {"model": "bubble", "mu_per": "capsule"},
    ],
)
def test_named_programs_pass_with_every_part(host, settings):
    """Training does not look at them again."""
    experiment = small_experiment(**settings)
    rng = np.random.default_rng(0)
    frames = HOSTS[host][2].asarray((rng.random((4, experiment.num_timesteps, *FRAME)) > 0.5).astype(np.float32))
    HOSTS[host][3](assemble(experiment, host), frames, experiment.likelihood)


@pytest.mark.parametrize("host", HOSTS)
def test_a_parameter_that_two_parts_of_the_guide_share_is_no_chance(host):
    """Each place has an initial value of its own, drawn at random; in training both have one."""
    ppl, dist, xp, check = HOSTS[host]

    def shared():
        initial = (lambda key: jax.random.normal(key, (2,))) if host == "numpyro" else (lambda: torch.randn(2))
        return ppl.param("shared", initial)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", dist.Normal(shared() + 2 * shared(), xp.ones(2)).to_event(1))

    check(Program(program(host).model, guide), xp.full(SHAPE, 0.3))


def test_a_parameter_may_begin_as_a_number_of_python():
    ppl, dist, xp, check = HOSTS["numpyro"]

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            scale = ppl.param("scale", 2.0, constraint=dist.constraints.positive) + ppl.param("more", 0.0)
            z = ppl.sample("z", dist.Normal(xp.zeros(2), scale).to_event(1))
            loc = z.mean(-1).reshape(-1, 1, 1, 1, 1) + xp.zeros(SHAPE[1:])
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    frames, values = xp.full(SHAPE, 0.3), {"scale": xp.asarray(3.0), "more": xp.asarray(0.5)}
    check(Program(model, program("numpyro").guide), frames)
    assert parameters_of(Program(model, program("numpyro").guide), values, frames) == values


def test_what_no_gradient_and_no_compiler_can_pass_is_found_before_training():
    ppl, dist, xp, check = HOSTS["numpyro"]

    def model_with(mean):
        def model(frames):
            with ppl.plate("sequences", frames.shape[0]):
                z = ppl.sample("z", dist.Normal(xp.zeros(2), 1.0).to_event(1))
                ppl.sample("x", dist.Normal(mean(z) + 0 * frames, 1.0).to_event(4), obs=frames)

        return Program(model, program("numpyro").guide)

    frames = xp.full(SHAPE, 0.3)
    with pytest.raises(UserError, match=r"the parameter 'w' in floating point.* found int32; write its"):
        check(model_with(lambda z: ppl.param("w", xp.asarray(30))), frames)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        check(model_with(lambda z: 1.0 if z.sum() > 0 else 2.0), frames)
