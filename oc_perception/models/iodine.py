# SPDX-License-Identifier: Apache-2.0
"""IODINE: Iterative Object Decomposition Inference Network (Greff et al. 2019, arXiv 1903.00450).

Generative story: each of K slots draws z_k ~ N(0, I); a shared spatial broadcast decoder turns it
into an appearance mu_k and a mask logit; a pixel is a mixture over slots of N(mu_k, sigma^2 I).
Inference: there is no encoder. All slots start from one learned posterior and differ by the noise
in z only; a refinement network looks at picture, decoding and the gradients of the ELBO, and
corrects each slot's posterior, T times. Given one frame per iteration it tracks (App. A.1).

Shapes: frames `(B, 3, H, W)` in [0, 1], posteriors `(B, K, 2 D)` as mean and pre-softplus
variance, means `(B, K, 3, H, W)`, masks and logits `(B, K, 1, H, W)` inside, `(B, K, H, W)` at
the surface.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oc_perception.configuration import from_mapping
from oc_perception.models.blocks import broadcast_convolution, coordinate_grid
from oc_perception.models.pixel_likelihood import DENSITIES, LIKELIHOODS, score_pixels
from oc_perception.models.registry import register_model
from oc_perception.types import Decomposition

_UNIT_VARIANCE = math.log(math.e - 1)  # softplus of it is 1
_HYPOTHESIS_SEED = 1_000_003  # apart from any frame of a short stream; only 32 bits count


@dataclass(frozen=True)
class IodineConfig:
    """The paper's CLEVR network at 64x64 unless told otherwise.

    `likelihood` is `mixture` (eq. 1) or `composite` (one density around the mask-weighted mean, as
    in EfficientMORL); `density` is `gaussian` with standard deviation `sigma` or `logistic` with
    scale `sigma`. Inference takes the best by ELBO of `num_hypotheses` starts. In training T grows
    from `first_iterations` (0: no growth) to `num_iterations` over the first half, and
    `first_sigma` (0: no change) shrinks to `sigma` until the end.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_slots: int = 7
    num_iterations: int = 5
    first_iterations: int = 0
    num_hypotheses: int = 1
    tracking_iterations: int = 1
    latent_size: int = 64
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    kernel_size: int = 3
    encoder_hidden: int = 256
    recurrent_size: int = 256
    likelihood: str = "mixture"
    density: str = "gaussian"
    sigma: float = 0.1
    first_sigma: float = 0.0
    scene_cut_nats: float = 0.5

    def __post_init__(self) -> None:
        for name, known in (("likelihood", LIKELIHOODS), ("density", DENSITIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        counts = ("num_slots", "num_iterations", "num_hypotheses", "tracking_iterations")
        if min(getattr(self, name) for name in counts) < 1:
            raise ValueError(f"{', '.join(counts)} must be at least 1")
        if not (self.decoder_channels and self.encoder_channels and self.kernel_size % 2):
            raise ValueError("decoder and encoder need a layer, kernel_size must be odd")
        if self.sigma <= 0 or self.first_sigma < 0:
            raise ValueError("sigma must be positive, first_sigma not negative")


@dataclass(frozen=True)
class Draw:
    """Latents `(B, K, D)` from the posterior by the noise `eps`, and what the decoder makes of
    them. In inference `z` is a leaf, so that gradients reach no further.
    """

    eps: Tensor
    z: Tensor
    means: Tensor
    logits: Tensor


@dataclass(frozen=True)
class IodineState:
    """What is carried from frame to frame: posterior, LSTM state, frames so far, the negative
    log-likelihood `(B,)` of the frame in which inference last began, and the last draw, against
    which the next frame is scored (App. A.1): one decoding per iteration.
    """

    posterior: Tensor
    memory: tuple[Tensor, Tensor] | None = None
    frames: int = 0
    nll: Tensor | None = None
    draw: Draw | None = None


@dataclass(frozen=True)
class Iteration:
    """One decoding on the way: `nll` and `kl` `(B,)`, summed over pixels, slots and latents;
    `draw` only inside the model.
    """

    decomposition: Decomposition
    nll: Tensor
    kl: Tensor
    draw: Draw | None = None

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound `(B,)`, nats per image."""
        return -(self.nll + self.kl)


def _full_precision(x: Tensor) -> Tensor:
    """At least float32: what autocast has made of bfloat16 ends here."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Decoder(nn.Module):
    """Spatial broadcast decoder (App. C): `(N, D)` to means `(N, 3, H, W)`, logits
    `(N, 1, H, W)`.
    """

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        widths = (config.latent_size + 2, *config.decoder_channels, 4)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, config.kernel_size, padding=config.kernel_size // 2)
            for before, after in itertools.pairwise(widths)
        )
        self.register_buffer("grid", coordinate_grid(*config.frame_size), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, *hidden, last = self.layers
        x = F.elu(broadcast_convolution(first, z, self.grid))
        for layer in hidden:
            x = F.elu(layer(x), inplace=True)
        return _full_precision(last(x)).split((3, 1), 1)


class Refinement(nn.Module):
    """Corrects each slot's posterior by what App. C lists, slots in the batch dimension."""

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        widths = (17, *config.encoder_channels)
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, config.kernel_size, 2, config.kernel_size // 2),
                nn.ELU(inplace=True),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.mlp = nn.Sequential(nn.Linear(widths[-1], config.encoder_hidden), nn.ELU())
        self.colour_norm = nn.GroupNorm(1, 3)  # layer norm over the whole map, gains per channel
        self.pixel_norm = nn.GroupNorm(3, 3)
        self.gradient_norm = nn.LayerNorm(2 * config.latent_size)
        size = config.encoder_hidden + 4 * config.latent_size
        self.lstm = nn.LSTMCell(size, config.recurrent_size) if config.recurrent_size else None
        self.head = nn.Linear(config.recurrent_size or size, 2 * config.latent_size)
        self.register_buffer("grid", coordinate_grid(*config.frame_size), persistent=False)

    def forward(
        self,
        maps: Sequence[Tensor],
        colour_gradient: Tensor,
        pixel_maps: Tensor,
        posterior: Tensor,
        gradient: Tensor,
        memory: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Additive update `(N, 2 D)` and new LSTM state. `maps` `(N, ., H, W)` pass as they are,
        `colour_gradient` `(N, 3, H, W)`, `pixel_maps` `(N, 3, H, W)` and `gradient` `(N, 2 D)`
        are normalised.
        """
        grid = self.grid.expand(len(posterior), -1, -1, -1)
        # Contiguous: group norm of so few channels-last channels crashes in its backward on CPUs.
        normed = [
            self.colour_norm(colour_gradient.contiguous()),
            self.pixel_norm(pixel_maps.contiguous()),
        ]
        features = self.convolutions(torch.cat([*maps, *normed, grid], 1)).mean((2, 3))
        features = self.mlp(features)
        features = torch.cat(
            [_full_precision(features), posterior, self.gradient_norm(gradient)], 1
        )
        if self.lstm is None:
            return _full_precision(self.head(features)), None
        memory = self.lstm(features, memory)
        return _full_precision(self.head(memory[0])), memory


class Iodine(nn.Module):
    """Decoder and refinement; `num_slots` and `num_iterations` may be changed at test time."""

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.num_slots = config.num_slots
        self.num_iterations = config.num_iterations
        self.sigma = config.sigma
        self.decoder = Decoder(config)
        self.refinement = Refinement(config)
        start = torch.zeros(2, config.latent_size)
        start[1] = _UNIT_VARIANCE  # inference starts at the prior
        self.first_posterior = nn.Parameter(start.flatten())
        self.apply(_initialise)

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log masks `(B, K, H, W)` and means `(B, K, 3, H, W)` of latents `(B, K, D)`."""
        means, logits = self._decode(latents)
        return logits.log_softmax(1).squeeze(2), means

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        means, logits = self.decoder(z.flatten(0, 1))
        return means.unflatten(0, z.shape[:2]), logits.unflatten(0, z.shape[:2])

    @torch.enable_grad()  # inference needs the gradient by z, and no other
    def _draw(self, posterior: Tensor, eps: Tensor) -> Draw:
        mean, raw = posterior.chunk(2, -1)
        z = mean + F.softplus(raw).sqrt() * eps
        if not self.training:
            z = z.detach().requires_grad_()
        return Draw(eps, z, *self._decode(z))

    def _iterate(
        self,
        frames: Sequence[Tensor],
        posterior: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        noise: Callable[[], Tensor],
        draw: Draw | None = None,
    ) -> Iterator[tuple[Iteration, Tensor, tuple[Tensor, Tensor] | None]]:
        """Decode and score against `frames[t]`, then refine: an `Iteration` per frame, with the
        posterior and the LSTM state it was decoded from. `draw`: of `posterior`, if made before.

        While training the graph runs through all iterations; otherwise it is cut at each.
        """
        config, is_shared = self.config, draw is not None  # the caller may use it again
        for index, frame in enumerate(frames):
            mean, raw = posterior.chunk(2, -1)
            variance = F.softplus(raw)
            draw = draw or self._draw(posterior, noise())
            means, logits = draw.means, draw.logits
            if not self.training:
                means, logits = means.detach(), logits.detach()
            scores = score_pixels(
                config.likelihood, config.density, self.sigma, frame.unsqueeze(1), means, logits
            )
            kl = 0.5 * (variance + mean**2 - 1 - variance.log()).sum((1, 2))
            decomposition = Decomposition(scores.log_masks.squeeze(2), means, mean)
            nll = -scores.log_pixel.sum((1, 2, 3, 4))
            yield Iteration(decomposition, nll, kl, draw), posterior, memory
            if index == len(frames) - 1:
                return
            (dz,) = torch.autograd.grad(
                (draw.means, draw.logits),
                draw.z,
                (scores.d_means, scores.d_logits),
                retain_graph=self.training or is_shared,
            )
            with torch.no_grad():  # closed form from here: no second pass, no double derivatives
                slope = raw.sigmoid()
                d_raw = dz * draw.eps * slope / (2 * variance.sqrt())
                d_raw = d_raw + 0.5 * slope * (1 - 1 / variance)
                gradient = torch.cat([dz + mean, d_raw], -1)
            maps = [
                frame.unsqueeze(1).expand_as(means),
                means,
                scores.log_masks.exp(),
                logits,
                scores.mask_posterior,
            ]
            with torch.set_grad_enabled(self.training):
                update, memory = self.refinement(
                    [m.flatten(0, 1) for m in maps],
                    scores.d_means.flatten(0, 1),
                    scores.pixel_maps.flatten(0, 1),
                    posterior.flatten(0, 1),
                    gradient.flatten(0, 1),
                    memory,
                )
                posterior = posterior + update.view_as(posterior)
            draw, is_shared = None, False

    def _start(self, batch_size: int) -> Tensor:
        return self.first_posterior.expand(batch_size, self.num_slots, -1)

    def loss(
        self, frames: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Eq. 4, averaged over the batch: iteration t of 0 ... T weighs t / T.

        `frames` `(B, 3, H, W)`, or `(B, T + 1, 3, H, W)` for one frame per iteration. `progress`
        in [0, 1] is the share of training done.
        """
        config = self.config
        first = config.first_sigma or config.sigma
        self.sigma = first ** (1 - progress) * config.sigma**progress
        if frames.dim() == 5:
            images = frames.unbind(1)
        else:
            low = config.first_iterations or config.num_iterations
            count = low + round((config.num_iterations - low) * min(1.0, 2 * progress))
            images = [frames] * (count + 1)
        noise, total = self._free_noise(len(frames), generator), 0.0
        for index, (iteration, _, _) in enumerate(
            self._iterate(images, self._start(len(frames)), None, noise)
        ):
            total = total - index / (len(images) - 1) * iteration.elbo.mean()
        return {"loss": total, "nll": iteration.nll.mean(), "latent_kl": iteration.kl.mean()}

    @torch.inference_mode(False)
    def refine(
        self,
        frames: Tensor,
        num_iterations: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Iteration]:
        """The decodings 0 ... T of `frames` `(B, 3, H, W)`.

        Without a `generator` the noise is that of `step`; with one, every call may find another
        grouping, to be compared by `elbo` (section 4.4).
        """
        count = self.num_iterations if num_iterations is None else num_iterations
        if self.training:
            raise ValueError("refine() is for inference: call eval() first.")
        noise = self._noise(0) if generator is None else self._free_noise(len(frames), generator)
        start = self._start(len(frames)).detach()
        found = self._iterate([frames] * (count + 1), start, None, noise)
        return [dataclasses.replace(iteration, draw=None) for iteration, _, _ in found]

    def _free_noise(self, batch: int, generator: torch.Generator) -> Callable[[], Tensor]:
        shape, device = (batch, self.num_slots, self.config.latent_size), generator.device
        return lambda: torch.randn(shape, generator=generator, device=device)

    def _noise(self, frames: int, hypothesis: int = 0) -> Callable[[], Tensor]:
        """Noise `(1, K, D)` shared by all images, so that none depends on its batch, and the same
        each time the frame with this number is seen.
        """
        generator = torch.Generator().manual_seed(frames + _HYPOTHESIS_SEED * hypothesis)
        shape, device = (1, self.num_slots, self.config.latent_size), self.first_posterior.device
        return lambda: torch.randn(shape, generator=generator).to(device)

    def initial_state(self, batch_size: int) -> IodineState:
        """Nothing seen: every slot at the learned first posterior."""
        return IodineState(self._start(batch_size).detach())

    @torch.inference_mode(False)
    def step(
        self, state: IodineState, frame: Tensor | None, decode: bool = True
    ) -> tuple[IodineState, Decomposition | None]:
        """Decompose `frame` `(B, 3, H, W)`; no frame, no decomposition and the slots stay.

        The first frame takes the best by ELBO of `num_hypotheses` runs of `num_iterations`, later
        ones `tracking_iterations` from where the slots were. Where the picture has become less
        likely by `scene_cut_nats` per pixel, because the scene was cut or refinement drifts, as
        it does in the long run, inference begins anew. Masks come from the decoder; without
        `decode` only `means` is left out.
        """
        if frame is None:
            return state, None
        if state.nll is None:
            settled = self._begin(frame)
        else:
            settled = self._settle(state, frame, self.config.tracking_iterations)
            worse = settled[0].nll - state.nll
            cut = ~(worse <= self.config.scene_cut_nats * frame[0, 0].numel())  # NaN: diverged
            settled = dataclasses.replace(settled[0], nll=state.nll), settled[1]
            if cut.any():
                settled = self._choose(cut, self._begin(frame), settled)
        after, found = settled[0], settled[1].decomposition
        if not decode:
            found = Decomposition(found.log_masks, None, found.embeddings)
        return dataclasses.replace(after, frames=state.frames + 1), found

    def _begin(self, frame: Tensor) -> tuple[IodineState, Iteration]:
        """The best of all hypotheses for a frame without a past."""
        start, count = self.initial_state(len(frame)), self.num_iterations
        best = self._settle(start, frame, count)
        for number in range(1, self.config.num_hypotheses):
            other = self._settle(start, frame, count, number)
            best = self._choose(other[1].elbo > best[1].elbo, other, best)
        return best

    def _settle(
        self, state: IodineState, frame: Tensor, count: int, hypothesis: int = 0
    ) -> tuple[IodineState, Iteration]:
        """What is left after `count` iterations on one frame, and the last of them."""
        frames, noise = [frame] * (count + 1), self._noise(state.frames, hypothesis)
        for found in self._iterate(frames, state.posterior, state.memory, noise, state.draw):
            last, posterior, memory = found
        return IodineState(posterior, memory, state.frames, last.nll, last.draw), last

    def _choose(
        self,
        where: Tensor,
        new: tuple[IodineState, Iteration],
        old: tuple[IodineState, Iteration],
    ) -> tuple[IodineState, Iteration]:
        """`new` for the images where `where` `(B,)`, else `old`, of what `_settle` returns."""

        def pick(a: Tensor, b: Tensor) -> Tensor:
            fold = where.repeat_interleave(len(a) // len(where))  # LSTM: slots in the batch
            return torch.where(fold.view(-1, *(1,) * (a.dim() - 1)), a, b)

        (a, last_a), (b, last_b) = new, old
        found_a, found_b = last_a.decomposition, last_b.decomposition
        posterior = pick(a.posterior, b.posterior)
        memory = None
        if a.memory is not None:
            memory = tuple(pick(x, y) for x, y in zip(a.memory, b.memory, strict=True))
        size = (len(where), -1, -1)
        draw = self._draw(posterior, pick(a.draw.eps.expand(size), b.draw.eps.expand(size)))
        decomposition = Decomposition(
            pick(found_a.log_masks, found_b.log_masks),
            pick(found_a.means, found_b.means),
            pick(found_a.embeddings, found_b.embeddings),
        )
        nll, kl = pick(last_a.nll, last_b.nll), pick(last_a.kl, last_b.kl)
        state = IodineState(posterior, memory, b.frames, pick(a.nll, b.nll), draw)
        return state, Iteration(decomposition, nll, kl, draw)


def _initialise(module: nn.Module) -> None:
    """As the authors' library does: truncated normal of deviation 1 / sqrt(fan in), zero biases;
    an LSTM starts by remembering.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        fan_in = module.weight[0].numel()
        deviation = fan_in**-0.5
        nn.init.trunc_normal_(module.weight, 0, deviation, -2 * deviation, 2 * deviation)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTMCell):
        size = module.hidden_size
        nn.init.zeros_(module.bias_hh)
        nn.init.zeros_(module.bias_ih)
        nn.init.ones_(module.bias_ih[size : 2 * size])


@register_model
def iodine(**config: object) -> Iodine:
    """IODINE with the sizes of its paper unless told otherwise."""
    return Iodine(from_mapping(IodineConfig, config))
