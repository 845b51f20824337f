from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from four_d.errors import UserError
from four_d.formats.keypoints import FrameKeypoints, KeypointTable, read_keypoints, write_keypoints


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keypoints.json"
    frame = FrameKeypoints(time=0.5, camera=1, pixels=np.array([[1.5, 2.5]]))
    write_keypoints(path, KeypointTable(names=["nose"], instances=[0], unit="metres", frames=[frame]))
    found = read_keypoints(path).frames[0]
    assert (found.time, found.camera, found.pixels.tolist(), found.depth) == (0.5, 1, [[1.5, 2.5]], None)
    text = path.read_text()
    for wrong in (text.replace('"format": 1', '"format": 2'), text.replace('"unit"', '"units"'), text[:-5], "[1]"):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"keypoints.json is not a keypoints.json of four_d"):
            read_keypoints(path)
    with pytest.raises(UserError, match=r"No such file"):
        read_keypoints(tmp_path / "none.json")
