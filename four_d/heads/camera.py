"""Cameras from the camera tokens, by iterative refinement (VGGT, arXiv 2503.11651 §3.3 and its released head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import vector
from four_d.errors import UserError
from four_d.geometry import decode_cameras
from four_d.layers import AttentionBackend, Block, Linear, Mlp, full_precision, full_type
from four_d.parts import CAMERA_TOKEN, EVERY_FRAME, HeadSpec, Provision, TokenShape
from four_d.types import Clip, Prediction, Tokens

ENCODING = 9
"""Length of `geometry.encode_cameras`: translation 3, quaternion wxyz 4, fov_y, fov_x."""


@dataclass(frozen=True, kw_only=True)
class CameraHeadConfig(HeadSpec):
    """Sizes of the `CameraHead`; the defaults are VGGT-1B's."""

    kind: Literal["camera"] = "camera"
    width: int | None = None
    """Channels of the trunk; None: the backbone's token width. Otherwise tokens are projected first."""
    depth: int = 4
    """Blocks of the trunk, over all frames' camera tokens. 4: VGGT's."""
    heads: int = 16
    """Attention heads of each block, which must divide the trunk's channels. 16: VGGT's."""
    mlp_ratio: float = 4.0
    """Hidden channels of the blocks' perceptrons as a multiple of the trunk's. 4: VGGT's."""
    layer_scale: float | None = 0.01
    """Initial factor of the trunk's residual branches, 0.01 in VGGT; None leaves it out. Small values learn slowly from
    scratch."""
    iterations: int = 4
    """Refinements of the cameras, each a pass through the trunk, at least 1. 4: VGGT's."""
    start: tuple[float, ...] = (0.0,) * ENCODING
    """Offset added to the raw encoding. VGGT: zeros. (0,0,0, 1,0,0,0, 1,1) starts at the identity and 57° instead of at
    zeros and at the edge of the ReLU."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal (``model.backbone.attention``)."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Cameras, and every refinement of them."""
        return "cameras", "pose_encodings"

    @property
    def requires(self) -> frozenset[Provision]:
        """A camera token of every frame."""
        return frozenset({EVERY_FRAME, CAMERA_TOKEN})

    def build(self, shape: TokenShape) -> CameraHead:
        """Build the module. UserError where sizes do not fit each other."""
        width = shape.width if self.width is None else self.width
        if width % self.heads:
            raise UserError(f"camera head: {self.heads} heads do not divide its width {width}; change one of them")
        if len(self.start) != ENCODING:
            raise UserError(f"camera head: start has {len(self.start)} numbers; give {ENCODING}")
        return CameraHead(self, shape)


class CameraHead(nn.Module):
    """Head of ``cameras`` and ``pose_encodings``: the encoding is the sum of the iterations' steps.

    Each step modulates the camera tokens by the encoding so far (adaptive LayerNorm, arXiv 2212.09748) and adds to it,
    without gradient through it: a later stage's error does not reach earlier steps, as in VGGT. Fields of view pass a
    ReLU. Always in full precision.
    """

    def __init__(self, config: CameraHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config, self.rounds = config, (shape.rounds - 1,)
        width = shape.width if config.width is None else config.width
        blocks = [
            Block(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                backend=config.attention,
            )
            for _ in range(config.depth)
        ]
        self.token_norm = nn.LayerNorm(shape.width)
        self.project = nn.Identity() if width == shape.width else Linear(shape.width, width)
        self.empty_pose = nn.Parameter(torch.zeros(1, 1, ENCODING))
        self.embed_pose = Linear(ENCODING, width)
        self.modulation = Linear(width, 3 * width)
        self.plain_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(blocks)
        self.trunk_norm = nn.LayerNorm(width)
        self.pose_branch = Mlp(width, width // 2, ENCODING)
        # Start near `start`: steps of the usual initial size would first have to be unlearned.
        nn.init.normal_(self.pose_branch.fc2.weight, std=1e-3)
        nn.init.zeros_(self.pose_branch.fc2.bias)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Decode the last iteration's cameras, and return the encodings of all."""
        height, width = clip.images.shape[-2:]
        camera_tokens = tokens.special[tokens.rounds.index(self.rounds[0])][:, :, 0]
        with full_precision(camera_tokens.device):
            encodings = self.refine(camera_tokens.to(full_type(camera_tokens.dtype)))
            cameras = decode_cameras(encodings[-1], height, width)
        return Prediction(cameras=cameras, pose_encodings=encodings)

    def refine(self, camera_tokens: Float[Tensor, "b f c"]) -> Float[Tensor, "i b f 9"]:
        """Refine iteratively: the encoding after every iteration."""
        base = self.project(self.token_norm(camera_tokens))
        plain = self.plain_norm(base)
        start = vector(self.config.start, base)
        raw = torch.zeros_like(base[..., :ENCODING])
        known = self.empty_pose.expand(*base.shape[:2], -1)
        encodings: list[Tensor] = []
        for _ in range(self.config.iterations):
            raw = raw.detach() + self.step(base, plain, known)
            known = raw.detach()
            linear = raw + start
            encodings.append(torch.cat([linear[..., :7], functional.relu(linear[..., 7:])], dim=-1))
        return torch.stack(encodings)

    def step(
        self, base: Float[Tensor, "b f c"], plain: Float[Tensor, "b f c"], known: Float[Tensor, "b f 9"]
    ) -> Float[Tensor, "b f 9"]:
        """Correction to add to the raw encoding ``known``."""
        shift, scale, gate = self.modulation(functional.silu(self.embed_pose(known))).chunk(3, dim=-1)
        x = gate * (plain * (1 + scale) + shift) + base
        for block in self.trunk:
            x = block(x)
        return self.pose_branch(self.trunk_norm(x))
