"""Names and skeletons of keypoints: names as bytes, bones, and what to ask a model for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.constants import vector
from four_d.types import Keypoints

NAME_BYTES = 32
"""Bytes of a name."""
NEIGHBOURS = 4
"""Neighbours of a point where no skeleton is published (`knn_edges`)."""
LETTERS = 3
"""Letters of a group (`letter_groups`)."""
MIX = 2654435761
"""Multiplier of the hash (Knuth's: 2³² over the golden ratio)."""
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|\d+|[^A-Za-z\d]+")
"""Words of a name, also where only their capitals tell them apart, and all that is between them."""


def encode_names(names: Sequence[str]) -> Int[Tensor, "n letters"]:
    """Encode names as UTF-8, zero padded to `NAME_BYTES`. ValueError for one that is empty or too long."""
    rows = torch.zeros(len(names), NAME_BYTES, dtype=torch.int64)
    for row, name in zip(rows, names, strict=True):
        data = name.encode()
        if not data or b"\0" in data or len(data) > NAME_BYTES:
            raise ValueError(
                f"keypoint name {name!r} is of {len(data)} bytes; choose one of 1 to {NAME_BYTES}, none of them zero"
            )
        row[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))
    return rows


def decode_names(names: Int[Tensor, "n letters"]) -> list[str]:
    """Invert `encode_names`; padding gives empty names."""
    rows = names.cpu().clamp(0, 255).to(torch.uint8).numpy()
    return [row.tobytes().split(b"\0")[0].decode(errors="replace") for row in rows]


def named(names: Int[Tensor, "*b n letters"]) -> Bool[Tensor, "*b n"]:
    """True for entries that have a name; those without are padding."""
    return names[..., 0] > 0


def letter_groups(names: Int[Tensor, "*b n letters"], rows: int) -> Int[Tensor, "*b n letters"]:
    """Hash the group of `LETTERS` around each letter of a name to one of ``rows``; different ones may share a row.

    Capitals count as small letters, spaces and hyphens as underscores, and start and end as zeros.
    """
    letters = names.long()
    letters = torch.where((letters >= ord("A")) & (letters <= ord("Z")), letters + ord("a") - ord("A"), letters)
    letters = torch.where((letters == ord(" ")) | (letters == ord("-")), ord("_"), letters)
    groups = functional.pad(letters, (LETTERS // 2, LETTERS // 2)).unfold(-1, LETTERS, 1)
    codes = (groups[..., 0] * 256 + groups[..., 1]) * 256 + groups[..., 2]
    return (codes * MIX % 2**32 >> 8) % rows


def mirrored_names(names: Int[Tensor, "*b n letters"]) -> Int[Tensor, "*b n letters"]:
    """Swap left and right in names, as words: ``left_paw``, ``paw_l``, ``LeftPaw`` and ``lPaw``, but not ``cleft``.

    A single letter beside a digit is no side, nor is one in a name of single letters and numbers alone: ``L5`` and
    ``l_5`` are a vertebra. ValueError for a name that becomes too long.
    """
    rows = names.reshape(-1, names.shape[-1]).clone()
    for index, name in enumerate(decode_names(rows)):
        if (mirrored := _mirrored(name)) != name:
            rows[index] = encode_names([mirrored])[0, : rows.shape[-1]].to(rows)
    return rows.view(names.shape)


def _mirrored(name: str) -> str:
    words = _WORDS.findall(name)
    between = ["", *words, ""]
    numbered = any(word.isdigit() for word in words) and not any(len(word) > 1 and word.isalpha() for word in words)
    digits = [numbered or before.isdigit() or after.isdigit() for before, after in zip(between, between[2:])]
    return "".join(word if len(word) == 1 and digit else _other_side(word) for word, digit in zip(words, digits))


def _other_side(word: str) -> str:
    other = _SIDES.get(word.lower(), word)
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() and other != word else other


def check_edges(edges: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Raise ValueError for a bone that is none: not of two points, out of range, of a point alone, or there twice."""
    seen: set[frozenset[int]] = set()
    for number, edge in enumerate(edges):
        if len(edge) != 2:
            raise ValueError(f"bone {number} is {list(edge)}; give the indices of its two keypoints")
        wrong = [end for end in edge if not 0 <= end < len(names)]
        if wrong:
            raise ValueError(
                f"bone {number} ends at keypoint {wrong[0]}, and there are {len(names)}, counted from 0; "
                f"give indices from 0 to {len(names) - 1} (subtract 1 if they are counted from 1)"
            )
        ends = " and ".join(repr(names[end]) for end in edge)
        if edge[0] == edge[1]:
            raise ValueError(f"bone {number} joins {names[edge[0]]!r} with itself; remove it, or correct one end")
        if frozenset(edge) in seen:
            raise ValueError(f"bone {number} joins {ends}, as an earlier one does; remove one of them")
        seen.add(frozenset(edge))


def check_skeleton(
    names: Sequence[str], instances: Sequence[int], edges: Sequence[Sequence[int]], rigid: Sequence[bool]
) -> None:
    """Raise ValueError for names, instances and bones that make no skeleton: `encode_names`, `check_edges`, lists of
    different lengths, two points of one name within one instance.
    """
    for name in names:
        encode_names([name])
        if len(_mirrored(name).encode()) > NAME_BYTES:
            raise ValueError(f"keypoint name {name!r} mirrored is longer than {NAME_BYTES} bytes; shorten it")
    if len(instances) != len(names):
        raise ValueError(f"{len(instances)} instances for {len(names)} keypoints; give one number for each keypoint")
    if len(rigid) != len(edges):
        raise ValueError(f"rigid has {len(rigid)} entries for {len(edges)} bones; give one for each bone")
    for (first, name), (second, other) in pairwise(sorted(zip(instances, names))):
        if (first, name) == (second, other):
            raise ValueError(f"instance {first} has two keypoints {name!r}; rename one, or give it another instance")
    check_edges(edges, names)


def knn_edges(points: Float[Tensor, "f n c"], valid: Bool[Tensor, "f n"], k: int = NEIGHBOURS) -> Int[Tensor, "e 2"]:
    """Join each point with its ``k`` nearest, by the mean distance over the frames in which both are valid.

    Each bone once, ascending, whichever end it is nearest to. A point that is never valid with another gets none.
    """
    found = nearest_pairs(points, valid, k)
    return found[found[:, 0] != found[:, 1]]


def nearest_pairs(points: Float[Tensor, "f n c"], valid: Bool[Tensor, "f n"], k: int) -> Int[Tensor, "e 2"]:
    """Edges of `knn_edges`, then (0, 0) up to n · k of them: so the host need not know how many there are."""
    both = valid[:, :, None] & valid[:, None]
    between = (points[:, :, None] - points[:, None]).norm(dim=-1)
    total = torch.where(both, between, 0).sum(0)
    distance = torch.where(both.any(0), total / both.sum(0).clamp_min(1), torch.inf)
    distance.fill_diagonal_(torch.inf)
    near = distance.topk(min(k, max(len(distance) - 1, 0)), largest=False)
    chosen, count = torch.zeros_like(distance, dtype=torch.bool), len(distance)
    chosen = chosen.scatter(1, near.indices, near.values.isfinite())
    one = torch.arange(count, device=points.device)[:, None].expand_as(near.indices)
    again = chosen.gather(1, near.indices) & chosen.mT.gather(1, near.indices) & (one > near.indices)
    keys = torch.minimum(one, near.indices) * count + torch.maximum(one, near.indices)
    keys = keys.masked_fill(again | ~near.values.isfinite(), count * count).flatten().sort().values
    pairs = torch.stack([keys // max(count, 1), keys % max(count, 1)], dim=-1)
    return pairs.masked_fill((keys == count * count)[:, None], 0)


def queries_of(
    keypoints: Keypoints, size: tuple[int, int]
) -> tuple[Int[Tensor, "*b n letters"], Float[Tensor, "*b n 2 2"]]:
    """Names and boxes that ask for these keypoints in their order, of images of ``size`` (rows, columns).

    A box has the least and the greatest corner (x, y) of the instance's known pixels in the first frame, inside the
    image; without any it is the whole image.
    """
    limit = vector([size[1], size[0]], keypoints.pixels)
    pixels, known = keypoints.pixels[..., 0, :, :], keypoints.pixels_valid[..., 0, :] & named(keypoints.names)
    alike = (keypoints.instances[..., :, None] == keypoints.instances[..., None, :]) & known[..., None, :]
    own = alike[..., None]
    least = torch.where(own, pixels[..., None, :, :], torch.inf).amin(-2) if pixels.shape[-2] else pixels
    most = torch.where(own, pixels[..., None, :, :], -torch.inf).amax(-2) if pixels.shape[-2] else pixels
    some = alike.any(-1)[..., None]
    least = torch.where(some, least, 0).clamp_min(0).minimum(limit)
    most = torch.where(some, most, limit).clamp_min(0).minimum(limit)
    return keypoints.names, torch.stack([least, most], dim=-2)


def inside_image(keypoints: Keypoints, size: tuple[int, int]) -> Bool[Tensor, "*b f n"]:
    """True for keypoints whose known pixel is inside an image of ``size`` (rows, columns), seen or not.

    Losses and metrics count these alone, and take boxes of these (`box_sides`).
    """
    limit = vector([size[1], size[0]], keypoints.pixels)
    return keypoints.pixels_valid & ((keypoints.pixels >= 0) & (keypoints.pixels < limit)).all(-1)


def box_sides(keypoints: Keypoints, known: Bool[Tensor, "*b f n"]) -> Float[Tensor, "*b f n"]:
    """Longer side in pixels of the box of the ``known`` points of each point's instance, in each frame.

    0 where no two of them are known.
    """
    alike = keypoints.instances[..., :, None] == keypoints.instances[..., None, :]
    known = known & named(keypoints.names)[..., None, :]
    own = (alike[..., None, :, :] & known[..., None, :])[..., None]  # *b f n others 1
    pixels = keypoints.pixels[..., None, :, :]
    most, least = torch.where(own, pixels, -torch.inf), torch.where(own, pixels, torch.inf)
    if not pixels.shape[-2]:
        return torch.zeros_like(keypoints.pixels[..., 0])
    return (most.amax(-2) - least.amin(-2)).amax(-1).clamp_min(0)
