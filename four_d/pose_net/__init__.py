"""PoseNet: the pose of one known object in pictures and videos of it, the first stage of PAD3R."""

from four_d.pose_net.follow import FollowConfig, ObjectPath, follow_object, place_object
from four_d.pose_net.model import PoseNet, PoseNetConfig, PosePrediction

__all__ = [
    "FollowConfig",
    "ObjectPath",
    "PoseNet",
    "PoseNetConfig",
    "PosePrediction",
    "follow_object",
    "place_object",
]
