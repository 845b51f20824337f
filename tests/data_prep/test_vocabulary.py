from __future__ import annotations

import pytest

from data_prep.importers.vocabulary import Vocabulary, canonical


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (["left_eye", "L_Eye", "L_eye", "Left Eye", "Eye Left", "LEye", "left-eye", "eye_l"], "left_eye"),
        (["L_F_Paw", "left-front paw", "Paw Front Left", "left_front_paw"], "left_front_paw"),
        (["R_B_Paw", "right back paw", "right_hind_paw", "Right Rear Paw"], "right_back_paw"),
        (["Nose", "nose"], "nose"),
        (["Root of tail", "root_of_tail", "RootOfTail"], "root_of_tail"),
        (["Paw Back Right Tip"], "right_back_paw_tip"),
        (["L5"], "l_5"),
        (["B"], "b"),
        (["left_to_right_line"], "left_to_right_line"),
        (["Head_Mid_Top"], "head_mid_top"),
        (["kpt 3", "kpt_3", "kpt3"], "kpt_3"),
        (["鼻"], "鼻"),
    ],
)
def test_one_thing_has_one_name(spellings: list[str], expected: str) -> None:
    assert {canonical(name) for name in spellings} == {expected}


def test_a_name_stays_what_it_became() -> None:
    for name in ("L_F_Paw", "Root of tail", "LShoulder", "L5", "back_left", "neck"):
        assert canonical(canonical(name)) == canonical(name)


def test_sources_are_counted_in_one_vocabulary() -> None:
    found = Vocabulary()
    found.add("ap10k", ["L_Eye", "Nose"], [True, True])
    found.add("ap10k", ["L_Eye", "Nose"], [False, True])
    found.add("coco", ["left_eye", "left_ear"], [True, False])
    assert found.to_dict() == {
        "keypoints": {
            "left_eye": {"count": 2, "sources": {"ap10k": 1, "coco": 1}, "spellings": ["L_Eye", "left_eye"]},
            "nose": {"count": 2, "sources": {"ap10k": 2}, "spellings": ["Nose"]},
            "left_ear": {"count": 0, "sources": {"coco": 0}, "spellings": ["left_ear"]},
        },
        "instances": {"count": 3, "sources": {"ap10k": 2, "coco": 1}},
    }
