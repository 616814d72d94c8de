"""A training step computed as the authors' released code computes it, for the comparison that users care about.

The released code (akandykeller/TopographicVAE) needs CUDA, torchvision and kornia. This is not it: it repeats, in our
words and in PyTorch alone, the operations that decide its speed. Frames are drawn one at a time, for each sequence by
itself (affine grid, bilinear sampling, hue through HSV); the networks are convolutions over the whole image; W is a
circularly padded transposed 3-D convolution; the equivariance error is computed at every step; SGD with momentum; grey
pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppl_tvae.data.transforms import hue_degrees, rotation_degrees, scales

LEARNING_RATE, MOMENTUM = 1e-4, 0.9


class Released(nn.Module):
    """Frames (batch * S, channel, height, width), grey; z, u and t have shape (batch * S, C * D, 1, 1)."""

    def __init__(
        self, num_timesteps: int, capsules: int, positions: int, window: int, width: int, size: int, mu: float
    ) -> None:
        """window: frames that share variance, odd; width: positions that do, odd; size: height and width of a frame."""
        super().__init__()
        cells = capsules * positions
        self.shape = (num_timesteps, capsules, positions)
        self.encoder_z, self.encoder_u = _encoder(cells, size), _encoder(cells, size)
        self.decoder = _decoder(cells, size)
        self.mu, self.reach = nn.Parameter(torch.tensor(float(mu))), window // 2
        self.sum_of_neighbours = nn.ConvTranspose3d(
            1, 1, (window, window, 1), padding=(2 * self.reach, 2 * self.reach, 0), bias=False
        )
        band = torch.triu(torch.ones(window, window), -(width // 2))
        self.sum_of_neighbours.weight.data[0, 0, :, :, 0] = band * band.T
        self.sum_of_neighbours.weight.requires_grad = False

    def loss(self, frames: Tensor) -> Tensor:
        """Minus the ELBO, nats per frame, mean over frames."""
        z, kl_z = _drawn(self.encoder_z(frames))
        u, kl_u = _drawn(self.encoder_u(frames))
        t = (z + self.mu) / torch.sqrt(self.energy(u) + 1e-6)
        cross_entropy = functional.binary_cross_entropy(torch.sigmoid(self.decoder(t)), frames, reduction="sum")
        self.equivariance_error(t.detach())
        return (cross_entropy + kl_z + kl_u) / len(frames)

    def energy(self, u: Tensor) -> Tensor:
        """W u**2, of u's shape."""
        num_timesteps, capsules, positions = self.shape
        squares = u.reshape(-1, num_timesteps, capsules, positions).transpose(1, 2) ** 2
        padded = functional.pad(
            squares.reshape(-1, 1, num_timesteps, positions, 1), (0, 0, *(self.reach,) * 4), mode="circular"
        )
        summed = self.sum_of_neighbours(padded).reshape(-1, capsules, num_timesteps, positions)
        return summed.transpose(1, 2).reshape(u.shape)

    def equivariance_error(self, t: Tensor) -> Tensor:
        """E_eq, averaged over sequences."""
        codes = t.reshape(-1, *self.shape)
        codes = codes / codes.norm(dim=-1, keepdim=True)
        shifts = range(1, self.shape[0])
        return sum((codes.roll((k, k), (1, -1)) - codes).abs().sum() for k in shifts) / (2 * len(codes))


class Trainer:
    """SGD on the loss; `advance` draws its sequences from uint8 images (N, height, width) and takes steps."""

    def __init__(self, model: Released, images: np.ndarray, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.images = torch.as_tensor(images, device=torch.get_default_device())
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learned, lr=LEARNING_RATE, momentum=MOMENTUM)

    def advance(self, num_steps: int) -> None:
        """Take so many steps."""
        for _ in range(num_steps):
            chosen = torch.randint(len(self.images), (self.batch_size,))
            frames = torch.stack([sequence(self.images[index] / 255, self.model.shape[0]) for index in chosen])
            self.optimizer.zero_grad()
            self.model.loss(frames.flatten(0, 1)).backward()
            self.optimizer.step()


def sequence(image: Tensor, num_timesteps: int) -> Tensor:
    """(S, 3, height, width): a red image of which rotation, scale or hue moves, drawn frame by frame."""
    values = (rotation_degrees(num_timesteps), scales(num_timesteps), hue_degrees(num_timesteps))
    moving, phases = int(torch.randint(3, ())), torch.randint(num_timesteps, (3,)).tolist()
    red = torch.zeros(1, 3, *image.shape)
    red[0, 0] = image
    frames = []
    for step in range(num_timesteps):
        indices = [(phase + step * (factor == moving)) % num_timesteps for factor, phase in enumerate(phases)]
        degrees, scale, hue = (float(own[index]) for own, index in zip(values, indices, strict=True))
        frames.append(_hue_turned(_turned(red, degrees, scale), hue))
    return torch.cat(frames)


def _turned(image: Tensor, degrees: float, scale: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack([cosine, -sine, torch.zeros(()), sine, cosine, torch.zeros(())]).reshape(1, 2, 3)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=True)
    return functional.grid_sample(image, grid, align_corners=True)


def _hue_turned(image: Tensor, degrees: float) -> Tensor:
    """To hue, saturation and value, and back."""
    value, channel = image.max(dim=1, keepdim=True)
    chroma = value - image.min(dim=1, keepdim=True).values
    red, green, blue = image.split(1, dim=1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    candidates = torch.cat([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    hue = candidates.gather(1, channel) + degrees / 60
    return torch.cat([value - chroma * _below((hue + offset) % 6) for offset in (5.0, 3.0, 1.0)], dim=1)


def _below(sixth: Tensor) -> Tensor:
    return torch.minimum(sixth, 4 - sixth).clamp(0, 1)


def _drawn(both: Tensor) -> tuple[Tensor, Tensor]:
    """A draw from the guide, and its KL divergence from N(0, 1), summed over everything."""
    loc, log_variance = both.chunk(2, dim=1)
    scale = torch.exp(log_variance / 2)
    posterior, prior = torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
    return posterior.rsample(), torch.distributions.kl_divergence(posterior, prior).sum()


def _encoder(cells: int, size: int) -> nn.Sequential:
    widths, kernels = (3, 3 * cells, 2 * cells, 2 * cells), (size, 1, 1)
    return _stack(nn.Conv2d, widths, kernels)


def _decoder(cells: int, size: int) -> nn.Sequential:
    widths, kernels = (cells, 2 * cells, 3 * cells, 3), (1, 1, size)
    return _stack(nn.ConvTranspose2d, widths, kernels)


def _stack(layer: type[nn.Module], widths: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out, kernel in zip(widths[:-1], widths[1:], kernels, strict=True):
        layers += [layer(size_in, size_out, kernel_size=kernel), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
