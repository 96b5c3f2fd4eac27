"""The ONNX file of a local policy: what its graph and metadata must say, and running it.

The graph, with names as here and a batch of one:

    input   patches      float32 (1, patches, embed_dim)  what the bundle's encoder gives, or
            image        uint8 (1, height, width, 3)      the camera's frame as RGB, resized to that, nothing cut off
    input   instruction  int64 (1)                        index into the metadata's list; may be absent where it has one
    output  actions      float32 (1, length, dims)

Metadata (custom_metadata_map), all of it text:

    splitvla.local         "1", the version of these rules
    splitvla.actions       "normalized": in [-1, 1], as the server's tokens are; "units": as the statistics un-normalise
                           them. The robot's action transform comes after both.
    splitvla.instructions  a JSON list of the sentences that it was made for
    splitvla.fingerprint   of the model whose embeddings it reads, without a codec (calibrating a bundle does not
                           change them); needed with `patches`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from splitvla_edge.encoding.onnx_errors import ORT_ERRORS, one_line
from splitvla_shared.actions import ActionStatistics
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import ActionArray, FloatArray, Image
from splitvla_shared.spec import ModelSpec

VERSION = "1"
PATCHES, IMAGE, INSTRUCTION, ACTIONS = "patches", "image", "instruction", "actions"
PREFIX = "splitvla."
NORMALIZED, UNITS = "normalized", "units"
_MAX_LENGTH, _MAX_SIDE, _MAX_INSTRUCTIONS = 256, 4096, 4096


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file says of itself, checked. image_size: (height, width) of an image input, None: it reads patches."""

    instructions: tuple[str, ...]
    units: str
    image_size: tuple[int, int] | None
    takes_instruction: bool


class LocalPolicy:
    """One small graph on one core of the CPU. `act` from one thread at a time."""

    def __init__(self, path: Path, spec: ModelSpec, statistics: ActionStatistics) -> None:
        """Load it, check what it declares against the model, and run it once. Raises ConfigError in one line."""
        self._path, self._statistics = path, statistics
        if not path.is_file():
            raise ConfigError(f"local policy {path} is not there")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise ConfigError(f"local policy {path} can't be loaded: {one_line(error)}") from error
        try:
            self.declared = _declared(self._session, spec, statistics.dims)
        except ValueError as error:
            raise ConfigError(f"local policy {path}: {error}") from error
        self.act(np.zeros((spec.patches, spec.embed_dim), np.float32), np.zeros((8, 8, 3), np.uint8), 0)

    def index_of(self, instruction: str) -> int | None:
        """Where this sentence stands in its list; None when it was not made for it."""
        known = self.declared.instructions
        return known.index(instruction) if instruction in known else None

    def act(self, patches: FloatArray, image: Image, instruction: int) -> ActionArray:
        """Normalised actions (length, dims), finite. patches and image: of one frame; it reads what it declares.

        Raises ConfigError when the graph fails or answers something that is not finite.
        """
        feed: dict[str, Any] = {}
        if self.declared.image_size is None:
            feed[PATCHES] = patches[np.newaxis]
        else:
            height, width = self.declared.image_size
            feed[IMAGE] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[np.newaxis]
        if self.declared.takes_instruction:
            feed[INSTRUCTION] = np.array([instruction], np.int64)
        try:
            (actions,) = self._session.run([ACTIONS], feed)
        except ORT_ERRORS as error:
            raise ConfigError(f"local policy {self._path} failed: {one_line(error)}") from error
        said = np.asarray(actions[0], np.float64)
        if not np.isfinite(said).all():
            raise ConfigError(f"local policy {self._path} gave actions that are not finite")
        return said if self.declared.units == NORMALIZED else self._statistics.normalize(said)


def _declared(session: Any, spec: ModelSpec, dims: int) -> Declared:
    """Raises ValueError that says what is wrong and what is expected."""
    metadata = session.get_modelmeta().custom_metadata_map
    _one_of(metadata, "local", VERSION)
    units = _one_of(metadata, "actions", NORMALIZED, UNITS)
    instructions = _instructions(metadata.get(PREFIX + "instructions", ""))
    inputs = {node.name: (node.type, list(node.shape)) for node in session.get_inputs()}
    kinds = [name for name in (PATCHES, IMAGE) if name in inputs]
    unknown = sorted(set(inputs) - {PATCHES, IMAGE, INSTRUCTION})
    if len(kinds) != 1 or unknown:
        raise ValueError(f"its inputs are {sorted(inputs)}; expected patches or image, and instruction")
    takes_instruction = INSTRUCTION in inputs
    if takes_instruction:
        _expect(INSTRUCTION, inputs[INSTRUCTION], "tensor(int64)", [1])
    elif len(instructions) > 1:
        raise ValueError(f"it lists {len(instructions)} instructions and has no input that tells which one is meant")
    _check_output(session, dims)
    if kinds == [PATCHES]:
        _expect(PATCHES, inputs[PATCHES], "tensor(float)", [1, spec.patches, spec.embed_dim])
        fingerprint = spec.uncalibrated().fingerprint
        if metadata.get(PREFIX + "fingerprint") != fingerprint:
            raise ValueError(
                f"it was made for the embeddings of model {metadata.get(PREFIX + 'fingerprint', 'none')!r:.20}, this "
                f"bundle's is {fingerprint[:16]}; distil it again"
            )
        return Declared(instructions, units, None, takes_instruction)
    kind, shape = inputs[IMAGE]
    if len(shape) != 4 or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in shape[1:3]):
        raise ValueError(f"input image is {shape}; expected (1, height, width, 3)")
    _expect(IMAGE, (kind, shape), "tensor(uint8)", [1, *shape[1:3], 3])
    return Declared(instructions, units, (shape[1], shape[2]), takes_instruction)


def _check_output(session: Any, dims: int) -> None:
    outputs = {node.name: (node.type, list(node.shape)) for node in session.get_outputs()}
    kind, shape = outputs.get(ACTIONS, ("absent", []))
    if len(shape) != 3 or type(shape[1]) is not int or not 1 <= shape[1] <= _MAX_LENGTH:
        raise ValueError(f"output actions is {kind} {shape}; expected (1, length, {dims}), length 1..{_MAX_LENGTH}")
    _expect(ACTIONS, (kind, shape), "tensor(float)", [1, shape[1], dims])


def _expect(name: str, found: tuple[str, list[Any]], kind: str, shape: list[int]) -> None:
    if found != (kind, shape):
        raise ValueError(f"{name} is {found[0]} {found[1]}; expected {kind} {shape}")


def _one_of(metadata: Mapping[str, str], name: str, *values: str) -> str:
    found = metadata.get(PREFIX + name, "")
    if found not in values:
        raise ValueError(f"its metadata {PREFIX}{name} is {found!r:.40}; expected {' or '.join(values)}")
    return found


def _instructions(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    good = isinstance(found, list) and 1 <= len(found) <= _MAX_INSTRUCTIONS
    if not good or not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"its metadata {PREFIX}instructions is {text!r:.40}; expected a JSON list of sentences")
    return tuple(found)
