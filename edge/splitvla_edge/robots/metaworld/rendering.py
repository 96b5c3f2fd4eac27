"""Pictures of a MuJoCo world without a screen: which GL library draws them, and a renderer that is fast in software.

MuJoCo chooses its GL library when it is imported, so `choose_gl` has to run before that.
"""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from splitvla_edge.robots.metaworld.tasks import Colour, Position
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Image

if TYPE_CHECKING:
    import mujoco

IMAGE_SIZE = 224
# The camera, as MuJoCo's free camera describes it: from the side, so that the arm never hides the table.
LOOK_AT, DISTANCE_M, AZIMUTH_DEG, ELEVATION_DEG = (0.0, 0.7, 0.12), 1.0, 180.0, -40.0
GL_LIBRARIES: Mapping[str, str] = MappingProxyType({"egl": "EGL", "osmesa": "OSMesa"})
_REMEDY = (
    "install one with `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` (MUJOCO_GL=egl)"
    " or `apt-get install libosmesa6` (MUJOCO_GL=osmesa)"
)


def choose_gl(
    environ: MutableMapping[str, str] = os.environ, find: Callable[[str], str | None] = ctypes.util.find_library
) -> str:
    """Set MUJOCO_GL to the first library that is here, unless it is set; returns it. Raises ConfigError."""
    if chosen := environ.get("MUJOCO_GL"):
        if chosen not in ("glfw", *GL_LIBRARIES):  # MuJoCo itself would answer with a traceback
            raise ConfigError(f"metaworld: MUJOCO_GL is {chosen!r}; one of {', '.join(GL_LIBRARIES)}, glfw")
        return chosen
    found = next((name for name, library in GL_LIBRARIES.items() if find(library)), None)
    if found is None:
        raise ConfigError(f"metaworld: no GL library that draws without a screen; {_REMEDY}")
    environ["MUJOCO_GL"] = found
    return found


@dataclass(frozen=True, slots=True)
class Marker:
    """Something drawn that the physics knows nothing of: a ball, or with flat=True a disc on the table."""

    position: Position
    radius_m: float
    colour: Colour
    flat: bool = False


class Renderer:
    """One fixed camera on one model. Mutable state: the scene, which every picture is laid out in anew."""

    def __init__(self, model: mujoco.MjModel) -> None:
        """Raises ConfigError where the GL library is there but can't draw."""
        import mujoco

        self._mujoco: Any = mujoco
        # Shadows, reflections and multisampling are what makes drawing in software slow.
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        try:
            self._renderer = mujoco.Renderer(model, IMAGE_SIZE, IMAGE_SIZE)
        except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
            raise ConfigError(f"metaworld: {os.environ.get('MUJOCO_GL')} can't draw ({error}); {_REMEDY}") from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.lookat[:] = LOOK_AT
        self._camera.distance, self._camera.azimuth, self._camera.elevation = DISTANCE_M, AZIMUTH_DEG, ELEVATION_DEG
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # Meta-World draws the goal as a site, which would give the answer away

    def draw(self, data: mujoco.MjData, markers: Sequence[Marker]) -> Image:
        """uint8 (224, 224, 3), a new array."""
        self._renderer.update_scene(data, self._camera, self._options)
        for marker in markers:
            self._add(marker)
        image: Image = self._renderer.render()
        return image.copy()

    def _add(self, marker: Marker) -> None:
        scene, kinds = self._renderer.scene, self._mujoco.mjtGeom
        kind, height = (kinds.mjGEOM_CYLINDER, 0.002) if marker.flat else (kinds.mjGEOM_SPHERE, marker.radius_m)
        size = np.array([marker.radius_m, marker.radius_m if not marker.flat else height, height])
        rgba = np.array([*marker.colour, 1.0], dtype=np.float32)
        geom = scene.geoms[scene.ngeom]
        self._mujoco.mjv_initGeom(geom, kind, size, marker.position, np.eye(3).ravel(), rgba)
        scene.ngeom += 1

    def close(self) -> None:
        self._renderer.close()
