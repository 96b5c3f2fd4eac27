"""Observations as openpi-client packs them, recorded, and our replies as it unpacks them: without that package."""

from __future__ import annotations

import base64
from typing import Any

import msgpack
import numpy as np
import pytest

from splitvla_edge.policy_server.numpy_msgpack import unpack
from splitvla_edge.policy_server.openpi import Timing, metadata_message, read_observation, write_actions

# What openpi_client.msgpack_numpy.Packer (0.1.2) wrote, in base85: tuples for shapes, numpy's own numbers.
RECORDED = {
    "DROID": (
        "h1nr*VsmA3c42gBZ*DJTcywiQX>W30X>DO=WnVF0Y-MJ2gv1M9Uv6Y!a&lpLUthz-"
        "1Y}`!VZ;~!0RjUA1qKHQ2?`4g4Gs?w5fT#=6&4r71!Q!2aAl)>buq*Rb7*03Ws?E~1H5lyb7gXNVRUJ4ZZCIoX>)X6X>DO=WnXM%"
        "W^{za3twMuWMOi0VR>I)!^8w+VRT`{7z_;#4-gR&6BHE|7XSeQ0|W&I2M7rY3&aIvba`-"
        "PqkMHS#07I`VQ^)W0t5rPZ(?(0a&}>KX>V>XYHw+7bYF09b7^#GZ*GLd3twMuWMOi0VR>I)!^8w+VRT`{H~;_u0000009930RaI5"
        "RKUGy#RaI5hKL7v#0002sKUGy#RaI5xKdP##s;a8$KL7v#0002+Kg0!Oba`-"
        "PqdaCf#07I`VQ^)U2fS}$b7gXNVRUJ4ZZBtYX>f35a$j(7b7^#GZ*GLd3twMuWMOi0VR>I)!^8w+VRT`{2mk;80002sKg0!Oba`-"
        "PqdaCf#07I`VQ^)U0j6+rZ*6dNuyAQ(Yan%SAarPDAZBlJYX"
    ),
    "LIBERO": (
        "gt2d8b7gXNVRUJ4ZZBzVVP|E8#0y_vZe(F{a$$L2U&F)%WMOn+#25ep0s{mE1_uZU3JVMk4i69!5)%{^78k??WOR9OWuts`F~kLP"
        "Xkl<=lL7<-w{K!|WpZ|5bZKvHFL!cjb97&6ZDD6+gv1M9Uv6Y!a&lpLUthz-"
        "1Y}`!VZ;~!0RjUA1qKHQ2?`4g4Gs?w5fT#=6&4r71!Q!2aAl)>buq*Rb7*03Ws?E~1F>&nb7gXNVRUJ4ZZC6mVRU7L#0y_vZe(F{"
        "a$$L2U&F)%WMOn+#6SQ500000000000000000000000000000000000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IS-"
        "_WOR9OWurW1IK%~WXkl<=kqD-6a&K*Lbgyr4Wo{sJXk{Q|a$$F6as"
    ),
    "ALOHA": (
        "gQatHVRU7L#0y_vZe(F{a$$L2U&F)%WMOn+#Bcxr00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IL?m"
        "00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IL?m00000@IS-_WOR9OWurW1IK%~WXkl<="
        "kq)M5ZDD6+bAqU2VQpV%X=iAJ#0y_vZe(F{a$$L2U&F)%WMOn+#25er1_=xg5)}ai2MP@k6BYsm2n!Ao6c@w=WOR9OWuts`F~kLP"
        "Xkl<=lLG<-r(<DlUu<u8gv1M9Uv6Y!a&lpLUthz-1Y}`!VZ;~!0|p5U4-"
        "ypt1P2NY5EB*x1qcfc5fm511!Q!2aAl)>buq*Rb7*03Ws?H}1g3CuZ*6dNt#oo>ZgXa3av)=MVr2"
    ),
    "numbers": (
        "hoxz4VP|E8#0y_vZe(F{a$$L2U&F)%WMOn+#25ep0s{mE1_uZU3JVMk4i69!5)%{^78k??WOR9OWuts`F~kLPXkl<=lL7<-"
        "rf_m^ZE$p=XK$o*X>DbL#0_6xZg6L1Ze?<5V_#px!~|qvbYaUs_y7O^0002Q1!Q!2aAl)BW;CR8bY*aZ#0_6xZg6L1Ze?<5V_#px"
        "!~|qvbYTa?1!Q!2aAl)BX*i^0Z*FCS#0_6xZg6L1Ze?<5V_#px!~|qvbYa581!Q!2aAl)>Vlk&@a%pgIWpc|u&;S4c0001{b7Ns_"
        "VRD4T3twMuWMOi0VR>I)!^8w+VRT`{2mk;800008K*R-Pba`-PqdaCf#07I`VQ^)T"
    ),
}
PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
PROMPTS = {"DROID": "pick up the fork", "LIBERO": "open the drawer", "ALOHA": "transfer cube", "numbers": "go"}


def _recorded(name: str) -> bytes:
    return base64.b85decode(RECORDED[name])


def _unpack_array(obj: Any) -> Any:
    """openpi_client.msgpack_numpy.unpack_array, as it stands there."""
    if b"__ndarray__" in obj:
        return np.ndarray(buffer=obj[b"data"], dtype=np.dtype(obj[b"dtype"]), shape=obj[b"shape"])

    if b"__npgeneric__" in obj:
        return np.dtype(obj[b"dtype"]).type(obj[b"data"])

    return obj


def _unpackb(data: bytes) -> Any:
    return msgpack.unpackb(data, object_hook=_unpack_array)


@pytest.mark.parametrize("name", list(RECORDED))
def test_the_observations_that_openpi_client_packs_are_read(name: str) -> None:
    request = read_observation(_recorded(name))
    assert request.instruction == PROMPTS[name]
    (image,) = request.images
    np.testing.assert_array_equal(image, PICTURE)


def test_every_value_is_read_as_openpis_own_server_reads_it() -> None:
    for name in RECORDED:
        ours, theirs = _flat(unpack(_recorded(name))), _flat(_unpackb(_recorded(name)))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value)
            assert type(ours[key]) is type(value)
            assert np.asarray(ours[key]).dtype == np.asarray(value).dtype


def test_numpys_own_numbers_keep_their_type() -> None:
    message = unpack(_recorded("numbers"))
    found = {key: (type(value), value) for key, value in message.items() if key in ("time", "step", "done", "gripper")}
    assert found == {
        "time": (np.float32, 1.5),
        "step": (np.int64, 7),
        "done": (np.bool_, False),
        "gripper": (float, 0.25),
    }
    assert message["scalar"].shape == ()


def test_openpi_client_reads_what_is_answered() -> None:
    actions = np.array([[0.1, -1 / 3, 1e-300, 0.0, 5.0, -6.0, 1.0]] * 4)
    reply = _unpackb(write_actions(actions, Timing(12.5, 10.0, 14.0)))
    np.testing.assert_array_equal(reply["actions"], actions)
    assert reply["actions"].dtype == np.float64
    assert reply["server_timing"] == {"infer_ms": 12.5, "prev_total_ms": 14.0}
    metadata = {"model": "m", "action_dims": 7, "deadline_ms": 1000.0}
    assert _unpackb(metadata_message(metadata)) == metadata


def _flat(message: dict[Any, Any], under: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in message.items():
        found |= _flat(value, f"{under}{key}/") if isinstance(value, dict) else {f"{under}{key}": value}
    return found
