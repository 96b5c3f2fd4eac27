"""ModelSpec: everything about a split model that the two machines must agree on, and its fingerprint."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitvla_shared.errors import BundleError

INSTRUCTION_SLOT = "{instruction}"
# Far above any model of today; they bound what a damaged file or a hostile peer can make us allocate.
_MAX_PATCHES, _MAX_DIM, _MAX_ACTION_DIMS, _MAX_CHUNK, _MAX_CAMERAS = 4096, 65536, 64, 256, 8


class Resize(enum.IntEnum):
    """How a camera frame becomes a square; the values are those of `Resize` in proto/inference.proto."""

    NAIVE = 1
    LETTERBOX = 2


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """See `ModelSpec` in proto/inference.proto for what each field means. Build with `sealed`.

    codec_sha256: of the codec tables that both halves hold; empty before calibration, and then left out of spec.json
    and fingerprint, so that bundles made before there was a codec keep theirs.
    """

    name: str
    vision_sha256: str
    language_sha256: str
    tokenizer_sha256: str
    statistics_sha256: str
    patches: int
    embed_dim: int
    image_size: int
    resize: Resize
    action_vocab_size: int
    action_bins: int
    max_action_dims: int
    chunk_length: int
    prompt_template: str
    suffix_token_id: int
    max_cameras: int
    fingerprint: str = ""
    codec_sha256: str = ""

    def __post_init__(self) -> None:
        for field, low, high in (
            ("patches", 1, _MAX_PATCHES),
            ("embed_dim", 1, _MAX_DIM),
            ("image_size", 1, 4096),
            ("action_bins", 2, 65536),
            ("action_vocab_size", self.action_bins, 1 << 24),
            ("max_action_dims", 1, _MAX_ACTION_DIMS),
            ("chunk_length", 1, _MAX_CHUNK),
            ("suffix_token_id", 0, 1 << 24),
            ("max_cameras", 1, _MAX_CAMERAS),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise BundleError(f"spec: {field} is {value}, expected {low}..{high}; run `splitvla-cloud split` again")
        if self.prompt_template.count(INSTRUCTION_SLOT) != 1:
            raise BundleError(f"spec: prompt_template {self.prompt_template!r} must hold {INSTRUCTION_SLOT} once")

    def computed_fingerprint(self) -> str:
        """Hex SHA-256 over the canonical JSON of all other fields but the name: a folder may be renamed."""
        fields = self._written()
        del fields["fingerprint"], fields["name"]
        canonical = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def sealed(self) -> ModelSpec:
        """The same spec with its fingerprint filled in."""
        return dataclasses.replace(self, fingerprint=self.computed_fingerprint())

    def uncalibrated(self) -> ModelSpec:
        """The same model as it was split, without a codec: what a local policy and its recordings are made for."""
        return dataclasses.replace(self, codec_sha256="").sealed()

    def differences(self, other: ModelSpec) -> list[str]:
        """One line for each field but the name that differs: "embed_dim: 4096 here, 896 there"."""
        lines = []
        for field in dataclasses.fields(self):
            if field.name == "name":
                continue
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                lines.append(f"{field.name}: {mine!r} here, {theirs!r} there")
        return lines

    def to_json(self) -> dict[str, Any]:
        return self._written() | {"resize": self.resize.name}

    def _written(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if not self.codec_sha256:
            del fields["codec_sha256"]
        return fields

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote. Raises BundleError on unknown or missing fields and on a wrong fingerprint."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        if set(data) | {"codec_sha256"} != set(known):
            odd = sorted((set(data) | {"codec_sha256"}) ^ set(known))
            raise BundleError(f"spec: fields {odd} are missing or unknown; made by another version of splitvla?")
        values: dict[str, Any] = {"codec_sha256": "", **data}
        for name, field in known.items():
            expected = int if field.type == "int" else str
            if not isinstance(values[name], expected) or isinstance(values[name], bool):
                raise BundleError(f"spec: {name} is {values[name]!r}, expected {expected.__name__}")
        try:
            values["resize"] = Resize[values["resize"]]
        except KeyError:
            names = [member.name for member in Resize]
            raise BundleError(f"spec: resize is {values['resize']!r}, expected one of {names}") from None
        spec = cls(**values)
        if spec.fingerprint != spec.computed_fingerprint():
            raise BundleError("spec: the fingerprint does not match the fields: spec.json was edited; split again")
        return spec
