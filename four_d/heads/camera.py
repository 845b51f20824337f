"""Cameras from the camera tokens, refined in a few rounds (VGGT, arXiv 2503.11651 §3.3 and its released head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import decode_cameras
from four_d.layers import AttentionBackend, Block, Linear, Mlp, full_precision, full_type
from four_d.types import Clip, Prediction, Tokens

ENCODING = 9
"""`geometry.encode_cameras`: translation 3, quaternion wxyz 4, fov_y, fov_x."""


@dataclass(frozen=True, kw_only=True)
class CameraHeadConfig:
    """Sizes of the `CameraHead`; the defaults are VGGT-1B's."""

    kind: Literal["camera"] = "camera"
    width: int | None = None
    """Channels of the trunk; None: the backbone's token width. Otherwise tokens are projected first."""
    depth: int = 4
    heads: int = 16
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.01
    iterations: int = 4
    start: tuple[float, ...] = (0.0,) * ENCODING
    """Added to the raw encoding. VGGT: zeros. (0,0,0, 1,0,0,0, 1,1) starts at the identity and 57° instead of at
    nothing and at the edge of the ReLU."""
    attention: AttentionBackend = "sdpa"

    def build(self, *, token_width: int, rounds: int, patch_size: int) -> CameraHead:  # noqa: ARG002 - all heads' builds have one signature
        """Raises UserError where sizes do not fit each other."""
        width = token_width if self.width is None else self.width
        if width % self.heads:
            raise UserError(f"camera head: {self.heads} heads do not divide its width {width}; change one of them")
        if len(self.start) != ENCODING:
            raise UserError(f"camera head: start has {len(self.start)} numbers; give {ENCODING}")
        blocks = [
            Block(width, self.heads, mlp_ratio=self.mlp_ratio, layer_scale=self.layer_scale, backend=self.attention)
            for _ in range(self.depth)
        ]
        return CameraHead(
            token_width=token_width,
            width=width,
            blocks=blocks,
            last_round=rounds - 1,
            iterations=self.iterations,
            start=self.start,
        )


class CameraHead(nn.Module):
    """Sets ``cameras`` and ``pose_encodings``: the encoding is the sum of as many steps as there are iterations.

    Each step sees the camera tokens modulated (adaptive LayerNorm, arXiv 2212.09748) by the encoding so far, and adds
    to it, without gradient through it: a later stage's error does not reach earlier steps, as in VGGT. Fields of view
    pass a ReLU. Always in full precision.
    """

    def __init__(
        self,
        *,
        token_width: int,
        width: int,
        blocks: list[Block],
        last_round: int,
        iterations: int = 4,
        start: tuple[float, ...] = (0.0,) * ENCODING,
    ) -> None:
        super().__init__()
        self.rounds, self.queried = (last_round,), False
        self.iterations, self.start = iterations, start
        self.token_norm = nn.LayerNorm(token_width)
        self.project = nn.Identity() if width == token_width else Linear(token_width, width)
        self.empty_pose = nn.Parameter(torch.zeros(1, 1, ENCODING))
        self.embed_pose = Linear(ENCODING, width)
        self.modulation = Linear(width, 3 * width)
        self.plain_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(blocks)
        self.trunk_norm = nn.LayerNorm(width)
        self.pose_branch = Mlp(width, width // 2, ENCODING)
        # Begin near `start`: steps of the usual size would first have to be unlearned.
        nn.init.normal_(self.pose_branch.fc2.weight, std=1e-3)
        nn.init.zeros_(self.pose_branch.fc2.bias)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """The last iteration, decoded, and all of them."""
        height, width = clip.images.shape[-2:]
        camera_tokens = tokens.special[tokens.rounds.index(self.rounds[0])][:, :, 0]
        with full_precision(camera_tokens.device):
            encodings = self.refine(camera_tokens.to(full_type(camera_tokens.dtype)))
            cameras = decode_cameras(encodings[-1], height, width)
        return Prediction(cameras=cameras, pose_encodings=encodings)

    def refine(self, camera_tokens: Float[Tensor, "b f c"]) -> Float[Tensor, "i b f 9"]:
        """The encoding after every iteration."""
        base = self.project(self.token_norm(camera_tokens))
        plain = self.plain_norm(base)
        start = torch.tensor(self.start, device=base.device, dtype=base.dtype)
        raw = torch.zeros_like(base[..., :ENCODING])
        known = self.empty_pose.expand(*base.shape[:2], -1)
        encodings: list[Tensor] = []
        for _ in range(self.iterations):
            raw = raw.detach() + self.step(base, plain, known)
            known = raw.detach()
            linear = raw + start
            encodings.append(torch.cat([linear[..., :7], functional.relu(linear[..., 7:])], dim=-1))
        return torch.stack(encodings)

    def step(
        self, base: Float[Tensor, "b f c"], plain: Float[Tensor, "b f c"], known: Float[Tensor, "b f 9"]
    ) -> Float[Tensor, "b f 9"]:
        """What to add to the raw encoding ``known``."""
        shift, scale, gate = self.modulation(functional.silu(self.embed_pose(known))).chunk(3, dim=-1)
        x = gate * (plain * (1 + scale) + shift) + base
        for block in self.trunk:
            x = block(x)
        return self.pose_branch(self.trunk_norm(x))
