"""Images as an H.264 video for all players; needs the extra `video`."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.outputs import new_file

QUALITY = "18"
"""libx264's constant rate factor: 0 is lossless, 23 its default."""


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> None:
    """Stream RGB images h w 3 of one size into a file, atomically, without holding them in memory.

    An odd last row or column is repeated: H.264 stores colour for pairs of pixels.

    Raises:
        UserError: without the extra `video`, another suffix than ``.mp4``, no images, or a file that cannot be
            written.

    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"writing {path} needs PyAV; install it with: pip install 'four_d[video]'") from error
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path} cannot be the name of a video written here; end it in .mp4")
    count = 0
    with new_file(path) as partial, av.open(str(partial), "w") as container:
        # players expect rates such as 30000/1001, not fractions of a float's 53 bits
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": QUALITY}
        for frame in frames:
            even = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")
            if not count:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
            count += 1
        if not count:
            raise UserError(f"there are no frames to write to {path}; give one or more")
        container.mux(stream.encode())
