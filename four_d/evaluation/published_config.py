"""Settings of an evaluation under a published protocol."""

from __future__ import annotations

from dataclasses import dataclass

from four_d.devices import Precision
from four_d.errors import UserError
from four_d.evaluation.published_rigs import RigSettings
from four_d.evaluation.published_tracks import TrackSettings
from four_d.evaluation.published_views import ViewSettings
from four_d.metrics.renders import lpips_at
from four_d.protocols.table import PROTOCOLS
from four_d.similarity import LPIPS_WEIGHTS
from four_d.windows.cut import Cut


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Settings of ``four-d eval … protocol=NAME``."""

    protocol: str
    """Name of one of `PROTOCOLS`."""
    root: str
    """Folder of the data set, laid out as downloaded."""
    sequences: tuple[str, ...] | None = None
    """Names of the videos to score; None = those of the protocol."""
    tasks: tuple[str, ...] | None = None
    """Tasks of the protocol to score; None = all."""
    long_side: int | None = None
    """Longest side of the model's input, in pixels; None = that of its training images."""
    window: tuple[int, int] | None = None
    """Frames and stride of the windows in which the model sees a video, joined as ``four-d infer`` joins them; None =
    the whole video in one pass, and for ``views`` the windows of ``four-d infer``."""
    lpips_weights: str | None = LPIPS_WEIGHTS
    """File or folder of LPIPS weights to score renders with, if it holds any; None: no LPIPS."""
    max_points: int = 500_000
    """Maximum number of points of a point map to compare, evenly spaced; published code takes all."""
    frames: int | None = None
    """Number of a clip's first frames that the model sees in ``tracks``; None = the protocol's, in one pass."""
    scaling: str | None = None
    """Alignment of predictions in ``tracks``; None = the first of the protocol."""
    intrinsics: bool = False
    """Give the model the true intrinsics in ``tracks``, which it must accept."""
    device: str = "auto"
    """Device of the model (`devices.usable`)."""
    precision: Precision = "fp32"
    """Precision of the model's arithmetic in ``four-d eval`` (`LoadedModel.to`), recorded in the note."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol is {self.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        offered = PROTOCOLS[self.protocol].tasks
        wrong = [task for task in self.tasks or () if task not in offered]
        if wrong or self.tasks == ():
            raise UserError(f"tasks is {list(self.tasks or ())}; {self.protocol} has {', '.join(offered)}")
        if min(self.max_points, 14 if self.long_side is None else self.long_side) < 4:
            raise UserError("max_points and long_side must be at least 4")
        self._check_tracks()
        _ = self.cut

    @property
    def cut(self) -> Cut | None:
        """`Cut` of ``window``; None without one."""
        return None if self.window is None else Cut.strided(self.window)

    def _check_tracks(self) -> None:
        scalings = PROTOCOLS[self.protocol].scalings
        if not scalings and (self.frames, self.scaling, self.intrinsics) != (None, None, False):
            names = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.scalings)
            raise UserError(
                f"frames, scaling and intrinsics are for protocols with tracks ({names}), not {self.protocol}; leave "
                "them out"
            )
        if self.scaling is not None and self.scaling not in scalings:
            raise UserError(f"scaling is {self.scaling!r}; {self.protocol} has {', '.join(scalings)}")
        if self.frames is not None and self.frames < 2:
            raise UserError(f"frames is {self.frames}; a track needs 2 at least")

    @property
    def aligned(self) -> str:
        """Alignment of predicted tracks."""
        return self.scaling or PROTOCOLS[self.protocol].scalings[0]

    def views(self) -> ViewSettings | None:
        """Settings for held-out views; None if the protocol has none."""
        if "views" not in PROTOCOLS[self.protocol].tasks:
            return None
        return ViewSettings(window=self.cut, lpips=lpips_at(self.lpips_weights, self.device), device=self.device)

    def tracks(self) -> TrackSettings | None:
        """Settings for tracks; None if the protocol has none."""
        protocol = PROTOCOLS[self.protocol]
        if protocol.tracks is None:
            return None
        return TrackSettings(
            protocol=protocol.tracks,
            scaling=self.aligned,
            frames=self.frames,
            window=self.cut,
            intrinsics=self.intrinsics,
            device=self.device,
        )

    def rigs(self) -> RigSettings | None:
        """Settings for tracks in the world of several cameras; None if the protocol has none."""
        thresholds = PROTOCOLS[self.protocol].rig
        if thresholds is None:
            return None
        return RigSettings(
            thresholds=thresholds,
            scaling=self.aligned,
            frames=self.frames,
            window=self.cut,
            intrinsics=self.intrinsics,
            device=self.device,
        )
