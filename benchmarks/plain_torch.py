"""The Topographic VAE in PyTorch alone, as one would write it without a probabilistic programming language.

The yardstick of `ppl_tvae.models.pyro`: the same networks, diagonal normal guide, binarised pixels, ELBO with analytic
KL, and Adam. Its state dict has the flat names of our parameters. It uses nothing of ppl_tvae; W is handed in.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

LOG_SCALE_BOUND = 7.0


class TVAE(nn.Module):
    """Frames (batch, S, height, width, channel) of zeros and ones; z and u have shape (batch, S, C, D)."""

    weights: Tensor

    def __init__(
        self,
        neighborhood: np.ndarray,
        shape: Sequence[int],
        hidden: Sequence[int],
        num_pixels: int,
        mu: float,
        epsilon: float,
    ) -> None:
        """neighborhood: W, (S*D, S*D); shape: (S, C, D); hidden: sizes from the frames inwards, mirrored outwards."""
        super().__init__()
        self.shape, self.epsilon = tuple(shape), epsilon
        _, capsules, positions = shape
        size = capsules * positions
        self.guide = nn.ModuleDict({name: mlp([num_pixels, *hidden, 2 * size]) for name in ("z", "u")})
        self.decoder = mlp([size, *reversed(hidden), num_pixels])
        self.mu = nn.Parameter(torch.tensor(float(mu)))
        weights = torch.tensor(np.ascontiguousarray(neighborhood.T), dtype=torch.get_default_dtype())
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, frames: Tensor, noise: Tensor) -> Tensor:
        """Minus the ELBO, nats per frame, mean over sequences; noise: (2, batch, S, C, D) standard normal, z then u."""
        pixels = frames.flatten(2)
        z, kl_z = self._draw("z", pixels, noise[0])
        u, kl_u = self._draw("u", pixels, noise[1])
        t = (z + self.mu) / torch.sqrt(self._energy(u) + self.epsilon)
        logits = self.decoder(t.flatten(2))
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
        return (cross_entropy + kl_z + kl_u) / (frames.shape[0] * frames.shape[1])

    @torch.no_grad()
    def log_weights(self, frames: Tensor, num_particles: int, chunk: int, noise: Tensor | None = None) -> Tensor:
        """log importance weights (num_particles, batch), nats per sequence; the encoders run once.

        noise: (num_particles, 2, batch, S, C, D), z then u, in place of fresh draws.
        """
        pixels = frames.flatten(2)
        posteriors = [self._posterior(name, pixels) for name in ("z", "u")]
        weights = []
        for start in range(0, num_particles, chunk):
            size = (min(chunk, num_particles - start), 2, len(pixels), *self.shape)
            drawn = torch.randn(size) if noise is None else noise[start : start + chunk]
            weights.append(self._some_log_weights(pixels, posteriors, drawn))
        return torch.cat(weights)

    def _some_log_weights(self, pixels: Tensor, posteriors: list[tuple[Tensor, Tensor]], noise: Tensor) -> Tensor:
        z, u = (loc + log_scale.exp() * noise[:, k] for k, (loc, log_scale) in enumerate(posteriors))
        t = (z + self.mu) / torch.sqrt(self._energy(u) + self.epsilon)
        logits = self.decoder(t.flatten(3))
        log_likelihood = -nn.functional.binary_cross_entropy_with_logits(
            logits, pixels.expand_as(logits), reduction="none"
        ).sum((2, 3))
        log_ratio = sum(
            log_scale + 0.5 * (noise[:, k].square() - x.square())
            for k, (x, (_, log_scale)) in enumerate(zip((z, u), posteriors, strict=True))
        )
        return log_likelihood + log_ratio.sum((2, 3, 4))

    @torch.no_grad()
    def networks(self, frames: Tensor, num_particles: int, chunk: int) -> Tensor:
        """What of it the networks are: the encoders once, the decoder for each particle's code; of no meaning."""
        pixels = frames.flatten(2)
        code = sum(network(pixels) for network in self.guide.values())[..., : self.decoder[0].in_features]
        particles = torch.arange(num_particles, dtype=code.dtype).split(chunk)
        return torch.cat([self.decoder(code + part[:, None, None, None]).sum((2, 3)) for part in particles])

    def _draw(self, name: str, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of a latent, and the KL divergence of its posterior from N(0, 1), summed over everything."""
        loc, log_scale = self._posterior(name, pixels)
        scale = torch.exp(log_scale)
        return loc + scale * noise, (0.5 * (loc**2 + scale**2 - 1) - log_scale).sum()

    def _posterior(self, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """loc and log scale of a latent, (batch, S, C, D) each."""
        _, capsules, positions = self.shape
        loc, raw = self.guide[name](pixels).unflatten(2, (2 * capsules, positions)).chunk(2, dim=2)
        return loc, LOG_SCALE_BOUND * torch.tanh(raw / (2 * LOG_SCALE_BOUND))

    def _energy(self, u: Tensor) -> Tensor:
        cells = u.square().movedim(-3, -2)
        return (cells.flatten(-2) @ self.weights).reshape(cells.shape).movedim(-2, -3)


class Trainer:
    """Adam on the loss; `advance` takes a step per batch of frames, without a host sync until the last is done."""

    def __init__(self, model: TVAE, learning_rate: float, compiled: bool = False) -> None:
        """compiled: the loss by torch.compile, and with it its gradient."""
        self.model, self.loss = model, torch.compile(model.loss) if compiled else model.loss
        on_gpu = model.mu.is_cuda
        parameters = list(model.parameters())
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True, capturable=on_gpu)

    def advance(self, batches: Iterable[Tensor]) -> np.ndarray:
        """The loss of each step, (steps,)."""
        return torch.stack([self.step(frames) for frames in batches]).numpy(force=True)

    def step(self, frames: Tensor) -> Tensor:
        """The loss, (), before the step."""
        self.optimizer.zero_grad()
        loss = self.loss(frames, torch.randn(2, len(frames), *self.model.shape))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step as a CUDA graph, as torch's documentation has it; each replay writes to the same returned tensor.

    The replay holds the step: a graph does not hold the tensors that it reads.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay(_kept: Callable[[], Tensor] = step) -> Tensor:
        graph.replay()
        return result

    return replay


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them; weights LeCun-normal, biases zero."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        linear = nn.Linear(size_in, size_out)
        nn.init.normal_(linear.weight, std=size_in**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
