"""PAGE-4D's dynamics-aware attention (arXiv 2510.17568, as released): moving patches should not steer the cameras.

After the frame attention of one round a small head predicts which patches move. In some later rounds the camera and
register tokens attend less to moving patches: their global attention logits get a bias r·c, r a constant per query and
c a number per key. Attention between patches is unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import RankOne, full_precision, full_type

SMALLEST_STD = 1e-6


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """Rounds in which the mask is predicted and used; the defaults are the released PAGE-4D's."""

    after: int = 9
    """Round after whose frame attention the mask is predicted."""
    rounds: tuple[int, int] = (10, 19)
    """First and last round whose global attention is biased."""
    scale: float = 64.0
    """r of the camera and register queries; c is in (-½, ½), so the bias is within ± scale / 2."""
    hidden: int = 256
    """Channels between the layers of the head that predicts the mask."""
    hold: tuple[int, int] | None = (6000, 10000)
    """Training steps between which α, a factor on the bias, falls from 1 to 0 (half a cosine); None: it stays 1."""
    detach: bool = True
    """Stop the head's gradient before the tokens."""

    def build(self, width: int, rounds: int) -> Dynamics:
        """Build the module. UserError where the rounds do not fit the backbone's."""
        first, last = self.rounds
        if not 0 <= self.after < first <= last < rounds:
            raise UserError(
                f"dynamics: after {self.after} and rounds {first} to {last} do not fit the backbone's {rounds} rounds; "
                "choose 0 ≤ after < first ≤ last < backbone.rounds"
            )
        if self.hold is not None and not 0 <= self.hold[0] <= self.hold[1]:
            raise UserError(f"dynamics: hold is {list(self.hold)}; give two steps 0 ≤ start ≤ end, or null")
        return Dynamics(
            width,
            after=self.after,
            masked=range(first, last + 1),
            scale=self.scale,
            hidden=self.hidden,
            hold=self.hold,
            detach=self.detach,
        )


def schedule(step: int, hold: tuple[int, int] | None) -> float:
    """α at a training step: 1 before ``hold[0]``, 0 from ``hold[1]`` on, half a cosine between."""
    if hold is None or step < hold[0]:
        return 1.0
    if step >= hold[1]:
        return 0.0
    return (1 + math.cos(math.pi * (step - hold[0]) / (hold[1] - hold[0]))) / 2


def patch_fractions(mask: Bool[Tensor, "b f h w"], grid: tuple[int, int]) -> Float[Tensor, "b f p"]:
    """Fraction of each patch's pixels that are True, patches in row-major order."""
    size = (mask.shape[-2] // grid[0], mask.shape[-1] // grid[1])
    return functional.avg_pool2d(mask.float(), size).flatten(2)


class Dynamics(nn.Module):
    """Mask head and attention bias. ``alpha`` is a buffer: checkpoints and exports keep the schedule's state."""

    alpha: Float[Tensor, ""]

    def __init__(
        self,
        width: int,
        *,
        after: int,
        masked: range,
        scale: float = 64.0,
        hidden: int = 256,
        hold: tuple[int, int] | None = None,
        detach: bool = True,
    ) -> None:
        super().__init__()
        self.after, self.masked, self.scale, self.hold, self.detach = after, masked, scale, hold, detach
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.GELU(),
            nn.Conv2d(width, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, 1, 1),
        )
        self.register_buffer("alpha", torch.tensor(1.0))

    def at_step(self, step: int) -> None:
        """Set α for a training step."""
        self.alpha.fill_(schedule(step, self.hold))

    def forward(self, patches: Float[Tensor, "b f p c"], grid: tuple[int, int]) -> Float[Tensor, "b f p"]:
        """Logits of each patch *moving*. Its static logit is the head's output plus the tokens' mean channel, both of
        tokens standardised per channel over their frame; the latter has no gradient. In full precision.
        """
        x = patches.detach() if self.detach else patches
        with full_precision(x.device):
            x = x.to(full_type(x.dtype))
            x = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True).clamp_min(SMALLEST_STD)
            maps = x.flatten(0, 1).mT.unflatten(-1, grid)
            static = self.head(maps).flatten(1).unflatten(0, patches.shape[:2]) + x.detach().mean(-1)
        return -static

    def bias(
        self,
        logits: Float[Tensor, "b f p"],
        special: int,
        fractions: Float[Tensor, "b f p"] | None = None,
        frames_with_mask: Bool[Tensor, "b f"] | None = None,
    ) -> RankOne:
        """Rows α·scale and keys ½ − P(moving) of all tokens, ``special`` ones first in each frame (as keys 0).

        With known ``fractions`` of moving pixels α is a factor of the predicted keys instead, and the frames in
        ``frames_with_mask`` (None: all) have keys α/2 − fraction: known moving pixels are masked however far the
        predicted mask was faded out, and at α = 0 an empty mask changes nothing.
        """
        keys, fade = 0.5 - logits.sigmoid(), self.alpha
        if fractions is not None:
            masked = torch.ones_like(keys[..., 0], dtype=torch.bool) if frames_with_mask is None else frames_with_mask
            keys = torch.where(masked[..., None], fade / 2 - fractions.to(keys.dtype), fade * keys)
            fade = torch.ones_like(fade)
        rows = functional.pad(torch.zeros_like(keys), (special, 0), value=self.scale) * fade
        return rows.flatten(1), functional.pad(keys, (special, 0)).flatten(1)
