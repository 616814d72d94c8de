"""Whether frames have an order: on dependence that is known by hand, and on programs of both hosts."""

import numpy as np
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch

from ppl_tvae.errors import UserError
from ppl_tvae.inference.order import MOST_COPIES, Look, check_order
from ppl_tvae.program import Program
from tests.inference.test_checks import HOSTS

SHAPE = (3, 5, 2, 2, 1)  # 3 sequences of 5 frames


def check_graph(weights, prior=0.0):
    """A model of Gaussian pixels whose means are weights @ the pixels of their sequence; prior: the same of latents."""
    size = weights.shape[0]
    sequences = np.repeat(np.random.default_rng(0).random((1, size, 1, 1, 1)), 3, axis=0)

    def look(shown, simulated):
        flat = shown.reshape(3, size)
        latents = np.random.default_rng(1).normal(size=3) + (flat * prior).sum(-1) * simulated
        means = flat @ weights.T + latents[:, None]
        densities = -((sequences.reshape(3, size) - means) ** 2).reshape(sequences.shape)
        log_prior = -((latents - (flat * prior).sum(-1)) ** 2)
        return Look(densities, np.ones(sequences.shape, bool), log_prior)

    check_order(sequences, 1 - sequences, look)


@pytest.mark.parametrize("seed", range(5))
def test_a_graph_with_an_order_passes_and_one_edge_back_is_found(seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(7)
    weights = np.zeros((7, 7))
    weights[np.ix_(order, order)] = np.tril(rng.random((7, 7)) + 0.1, -1)
    check_graph(weights)
    first, last = order[1], order[5]
    weights[first, last] = 0.3
    with pytest.raises(UserError, match=r"an order of the frames.* frames \d and \d depend on each other"):
        check_graph(weights)


def test_a_cycle_of_many_and_a_frame_of_its_own():
    check_graph(np.zeros((6, 6)))
    with pytest.raises(UserError, match="frames 0 and 1 depend on each other"):
        check_graph(np.roll(np.eye(6), 1, axis=0))
    for own in range(6):
        with pytest.raises(UserError, match=f"not to depend on that pixel.* at frame {own}"):
            check_graph(np.diag(np.arange(6) == own).astype(float))


def test_a_prior_that_sees_what_it_explains():
    with pytest.raises(UserError, match="by latents whose prior is computed from frames"):
        check_graph(np.zeros((4, 4)), prior=np.eye(4)[0] + np.eye(4)[3])
    with pytest.raises(UserError, match=r"not to depend on that pixel.* at frame 0"):
        check_graph(np.zeros((1, 1)), prior=np.ones(1))


def seen_by(kind, xp, frames):
    """What the distributions of frames are computed from, or of latents, shaped as the frames."""
    before = xp.concatenate([xp.zeros_like(frames[:, :1]), frames[:, :-1]], 1)
    if kind == "both ways":
        return before + xp.concatenate([frames[:, 1:], xp.zeros_like(frames[:, :1])], 1)
    if kind == "ring":
        return xp.roll(frames, 1, 1)
    if kind == "first":
        return xp.concatenate([frames[:, :1], frames[:, :-1]], 1)
    return {"before": before, "itself": frames, "none": xp.zeros_like(frames)}[kind]


def program(host, frames_see="none", prior_sees="none", latent="Normal", covariate=False):
    """z of a positive or real number for each frame: priors and frames may see frames."""
    ppl, dist, xp, _ = HOSTS[host]

    def draws(seen):
        level = seen.mean((2, 3, 4))
        if latent == "Gamma":
            return dist.Gamma(1.0 + level, xp.ones(level.shape)).to_event(1)
        return dist.Normal(level, 1.0).to_event(1)

    def model(frames):
        with ppl.plate("sequences", frames.shape[0]):
            condition = frames[..., 1:] if covariate else frames
            z = ppl.sample("z", draws(seen_by(prior_sees, xp, condition)))
            loc = z.reshape(*z.shape, 1, 1, 1) + seen_by(frames_see, xp, frames)
            pixels = dist.Normal(loc, 1.0)
            if covariate:
                pixels = pixels.mask(xp.asarray([True, False]))
            ppl.sample("x", pixels.to_event(4), obs=frames)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", draws(frames[..., :1]))

    return Program(model, guide)


def frames_of(host, channels=1, count=SHAPE[0]):
    shape = (count, *SHAPE[1:-1], channels)
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    return HOSTS[host][2].asarray(values)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"frames_see": "before"},
        {"prior_sees": "before"},
        {"frames_see": "before", "prior_sees": "before", "latent": "Gamma"},
        {"prior_sees": "before", "latent": "Gamma"},
    ],
)
def test_what_looks_back_passes(host, settings):
    HOSTS[host][3](program(host, **settings), frames_of(host))


@pytest.mark.parametrize("host", HOSTS)
def test_a_channel_that_is_given_and_not_observed_may_be_seen_by_all(host):
    HOSTS[host][3](program(host, prior_sees="itself", covariate=True), frames_of(host, channels=2))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("seen", ["first", "itself", "ring", "both ways"])
@pytest.mark.parametrize("part", ["frames_see", "prior_sees"])
def test_what_sees_itself_in_whatever_way_is_refused(host, part, seen):
    words = {"ring": "frames 0 and 1 depend", "both ways": "frames 0 and 1 depend"}
    with pytest.raises(UserError, match=words.get(seen, "not to depend on that pixel.* at frame")):
        HOSTS[host][3](program(host, **{part: seen}), frames_of(host))


def test_every_frame_of_a_long_sequence_is_looked_at():
    weights = np.tril(np.ones((70, 70)), -1)
    check_graph(weights)
    with pytest.raises(UserError, match="frames 0 and 49 depend on each other"):
        check_graph(np.eye(50)[::-1] * (np.arange(50) % 49 == 0))
    for back in (np.roll(np.eye(70), 1, axis=0), np.eye(70, k=1) + np.eye(70, k=-1)):
        with pytest.raises(UserError, match="frames 0 and 1 depend on each other"):
            check_graph(back)


@pytest.mark.parametrize("shape", [(4, 3, 2), (48, 40, 1)])
def test_pixels_that_each_see_the_row_before_them_see_themselves_where_the_first_sees_the_last(shape):
    sequences = np.repeat(np.random.default_rng(0).random((1, 2, *shape)), 16, axis=0)

    def check(seen):
        def look(shown, simulated):
            return Look(-((sequences - seen(shown)) ** 2), np.ones(sequences.shape, bool), np.zeros(16))

        check_order(sequences, 1 - sequences, look)

    check(lambda shown: np.concatenate([0 * shown[:, :, :1], shown[:, :, :-1]], axis=2))
    for axis in (2, 3):
        with pytest.raises(UserError, match=r"not to depend on that pixel.* at frame 0"):
            check(lambda shown, axis=axis: np.roll(shown, 1, axis))


def hidden(host, seen):
    """Frames, or z for part "prior", see frames through a weight that starts at zero."""
    ppl, dist, xp, _ = HOSTS[host]
    part, kind = seen

    def model(frames):
        weight = ppl.param("weight", xp.zeros(1))
        see = weight * seen_by(kind, xp, frames)
        with ppl.plate("sequences", frames.shape[0]):
            level = see.mean((2, 3, 4)) if part == "prior" else xp.zeros(frames.shape[:2])
            z = ppl.sample("z", dist.Normal(level, 1.0).to_event(1))
            loc = z.reshape(*z.shape, 1, 1, 1) + (see if part == "frames" else 0.0)
            ppl.sample("x", dist.Normal(loc, xp.ones(frames.shape)).to_event(4), obs=frames)

    def guide(frames):
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", dist.Normal(frames.mean((2, 3, 4)), 1.0).to_event(1))

    return Program(model, guide)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("part", ["frames", "prior"])
def test_what_a_weight_of_zero_hides_is_seen_and_the_weight_stays(host, part):
    check = HOSTS[host][3]
    check(hidden(host, (part, "before")), frames_of(host))
    with pytest.raises(UserError, match="frames 0 and 1 depend on each other"):
        check(hidden(host, (part, "ring")), frames_of(host))


def test_a_module_has_its_own_values_again_after_it_was_looked_at():
    linear = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(linear.weight)
    plain = program("pyro")

    def model(frames):
        pyro.module("linear", linear)(frames[..., :1])
        plain.model(frames)

    before = {name: value.clone() for name, value in linear.state_dict().items()}
    HOSTS["pyro"][3](Program(model, plain.guide), frames_of("pyro"))
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())


def mixed(host, over, kind):
    """A mixture of two that see frames as kind says: over the pixels of a sequence, of a frame or of a place."""
    ppl, dist, xp, _ = HOSTS[host]
    event = {"sequence": 4, "frame": 3, "place": 1}[over]

    def model(frames):
        if kind == "channels":
            see = xp.concatenate([xp.zeros_like(frames[..., :1]), frames[..., :-1]], -1)
        else:
            see = seen_by(kind, xp, frames)
        with ppl.plate("sequences", frames.shape[0]):
            z = ppl.sample("z", dist.Normal(xp.zeros(frames.shape[1]), 1.0).to_event(1))
            level = z.reshape(*z.shape, 1, 1, 1)
            loc = xp.stack([level + see, level - see], 5 - event)
            parts = dist.Categorical(logits=xp.zeros(loc.shape[: 6 - event]))
            pixels = dist.MixtureSameFamily(parts, dist.Normal(loc, xp.ones(loc.shape)).to_event(event))
            ppl.sample("x", pixels.to_event(4 - event), obs=frames)

    return Program(model, program(host).guide)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("over", ["sequence", "frame", "place"])
def test_of_what_has_one_density_together_the_last_is_seen_by_nothing(host, over):
    """As in PixelCNN++, whose channels are a mixture in which green sees red; and in mixtures of such programs."""
    check = HOSTS[host][3]
    check(mixed(host, over, "before"), frames_of(host, channels=3))
    if over != "sequence":
        check(mixed(host, over, "channels"), frames_of(host, channels=3))
    with pytest.raises(UserError, match="depend"):
        check(mixed(host, over, "itself"), frames_of(host, channels=3))
    with pytest.raises(UserError, match="frames 0 and 1 depend on each other"):
        check(mixed(host, over, "ring"), frames_of(host, channels=3))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", ["before", "itself"])
def test_draws_by_rejection_have_noise_of_their_own_wherever_time_is(host, kind):
    """Time last: the frames that a changed draw comes before in memory are not after it."""
    ppl, dist, xp, check = HOSTS[host]

    def model(frames):
        level = 0.3 + seen_by(kind, xp, frames).mean((3, 4)).swapaxes(1, 2)  # (B, height, S)
        with ppl.plate("sequences", frames.shape[0]):
            z = ppl.sample("z", dist.Gamma(level, xp.ones(level.shape)).to_event(2))
            loc = z.swapaxes(1, 2)[..., None, None] + xp.zeros(frames.shape)
            ppl.sample("x", dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        level = 0.5 + frames.mean((3, 4)).swapaxes(1, 2)
        with ppl.plate("sequences", frames.shape[0]):
            ppl.sample("z", dist.Gamma(level, xp.ones(level.shape)).to_event(2))

    if kind == "before":
        check(Program(model, guide), frames_of(host))
    else:
        with pytest.raises(UserError, match="not to depend on that pixel"):
            check(Program(model, guide), frames_of(host))


@pytest.mark.parametrize("host", HOSTS)
def test_a_large_batch_is_looked_at_in_a_few_copies_that_find_the_same(host):
    frames, sizes = frames_of(host, count=100), []

    def model(frames):
        sizes.append(len(frames))
        return looking_back.model(frames)

    looking_back = program(host, frames_see="before")
    HOSTS[host][3](looking_back._replace(model=model), frames)
    assert sizes.count(MOST_COPIES) > 1
    assert set(sizes) == {50, 100, MOST_COPIES}
    with pytest.raises(UserError, match="frames 0 and 1 depend"):
        HOSTS[host][3](program(host, frames_see="ring"), frames)


def test_torch_may_compute_in_a_precision_that_numpy_has_not():
    def model(frames):
        with pyro.plate("sequences", len(frames)):
            half = torch.zeros(5, dtype=torch.bfloat16)
            z = pyro.sample("z", pyro_dist.Normal(half, half + 1).to_event(1))
            loc = z.float()[..., None, None, None] + torch.zeros(SHAPE[1:])
            pyro.sample("x", pyro_dist.Normal(loc, 1.0).to_event(4), obs=frames)

    def guide(frames):
        with pyro.plate("sequences", len(frames)):
            half = torch.zeros(5, dtype=torch.bfloat16)
            pyro.sample("z", pyro_dist.Normal(half, half + 1).to_event(1))

    HOSTS["pyro"][3](Program(model, guide), frames_of("pyro"))
