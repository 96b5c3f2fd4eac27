"""Where a point of the world appears in the picture: the pinhole model of the world's fixed camera."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from splitvla_edge.robots.metaworld.rendering import AZIMUTH_DEG, DISTANCE_M, ELEVATION_DEG, IMAGE_SIZE, LOOK_AT

Points = npt.NDArray[np.float64]
_FIELD_OF_VIEW_DEG = 45.0  # vertical; MuJoCo's default, which Meta-World leaves as it is


def project(points: Points) -> Points:
    """World points (..., 3) in metres to pixels (..., 2), x to the right and y down. NaN stays NaN."""
    azimuth, elevation = math.radians(AZIMUTH_DEG), math.radians(ELEVATION_DEG)
    forward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    up = np.cross(right, forward)
    relative = points - (np.array(LOOK_AT) - DISTANCE_M * forward)
    depth = relative @ forward
    focal = IMAGE_SIZE / 2 / math.tan(math.radians(_FIELD_OF_VIEW_DEG) / 2)
    return np.stack(
        [IMAGE_SIZE / 2 + focal * (relative @ right) / depth, IMAGE_SIZE / 2 - focal * (relative @ up) / depth],
        axis=-1,
    )
