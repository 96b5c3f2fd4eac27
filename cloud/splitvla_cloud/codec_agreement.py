"""What each rung of a calibrated model does to its action tokens, measured where both halves are at hand.

Calibration on the robot knows bytes and errors, but runs no backbone. This does, and writes the share of tokens that
stay those of the exact embedding into the edge bundle, as the ladder's expected agreement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from splitvla_cloud.backbone import Backbone, check_loadable
from splitvla_cloud.halves import embedded, open_halves
from splitvla_cloud.precision import Precision
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.progress import Progress, counter, silent
from splitvla_shared.bundle import Bundle
from splitvla_shared.codec import decode, encode
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.codec.installed import Parcel, staged
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.replaced import exchange
from splitvla_shared.rungs import CODEC_KEY, MEASURED_SCHEMES, RungCost, read_costs, with_agreement

INSTRUCTIONS = ("pick up the object", "open the drawer")
EXACT_SCHEME = Scheme.BF16.name.lower()  # what all rungs are compared with: the ladder's top
Harm = Callable[[FloatArray], FloatArray]
_BINDING = Binding(1, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class AgreementRequest:
    """bundles: the folder with edge/ and cloud/. frames: images, at best ones that calibration did not see.

    precision: None for the cloud bundle's own, or fp32.
    """

    bundles: Path
    frames: Path
    instructions: tuple[str, ...] = INSTRUCTIONS
    precision: Precision | None = None
    device: str = "auto"
    camera_transform: str = "none"


def measure_agreement(request: AgreementRequest, report: Progress = silent) -> tuple[RungCost, ...]:
    """The costs of all rungs with their agreement, as the edge bundle then holds them; its fingerprint stays.

    Raises BundleError when the halves do not belong together or were never calibrated, ObservationError for frames that
    can't be read, ConfigError for a device or precision that there is not.
    """
    if not request.instructions:
        raise ConfigError("no instruction to measure with; name one with --instruction")
    edge, cloud = open_halves(request.bundles)
    tables, costs = read_tables(edge), read_costs(edge.extra)
    if tables is None or not costs:
        raise BundleError(f"{edge.path} has no codec; run `splitvla-edge calibrate` first")
    precision: Precision = request.precision or cloud.extra.get(PRECISION_KEY) or "fp32"
    device = check_loadable(cloud, precision, request.device)
    embeddings = embedded(edge, request.frames, request.camera_transform, report)
    tokens = _token_source(cloud, Backbone.load(cloud, precision, device), request.instructions)
    harms = dict(_harms(tables))
    advance = counter(report, "agreement", len(harms))
    said = {}
    for name, harm in harms.items():
        said[name] = [tokens(harm(patches)) for patches in embeddings]
        advance(1)
    shares = {name: _share(each, said[EXACT_SCHEME]) for name, each in said.items()}
    measured = tuple(with_agreement(cost, shares[cost.name]) if cost.name in shares else cost for cost in costs)
    _write(edge, measured)
    return measured


def _token_source(
    cloud: Bundle, backbone: Backbone, instructions: Sequence[str]
) -> Callable[[FloatArray], tuple[int, ...]]:
    """All instructions' tokens for an embedding, one after the other."""
    prompt = Prompt.load(cloud.path, cloud.spec)
    ids = [prompt.ids(text) for text in instructions]
    dims = cloud.spec.chunk_length * cloud.spec.max_action_dims

    def tokens(patches: FloatArray) -> tuple[int, ...]:
        return tuple(token for each in ids for token in backbone.full_answer(each, patches, dims))

    return tokens


def _harms(tables: CodecTables) -> Iterator[tuple[str, Harm]]:
    """What becomes of an embedding on each rung: there and back, as a key frame."""
    codec = TransformCodec(tables)

    def plain(scheme: Scheme) -> Harm:
        return lambda patches: decode(encode(patches, scheme))

    def transformed(rung: int) -> Harm:
        def harm(patches: FloatArray) -> FloatArray:
            coded = codec.encode(tables.coefficients(patches), rung, _BINDING)
            return codec.reconstruct(codec.decode(coded.data, Scheme.KLT, _BINDING))

        return harm

    yield from ((scheme.name.lower(), plain(scheme)) for scheme in MEASURED_SCHEMES)
    yield from ((rung.name, transformed(index)) for index, rung in enumerate(tables.rungs))


def _share(found: Sequence[tuple[int, ...]], exact: Sequence[tuple[int, ...]]) -> float:
    return float((np.array(found) == np.array(exact)).mean())


def _write(edge: Bundle, costs: Sequence[RungCost]) -> None:
    about = {**edge.extra[CODEC_KEY], "rungs": [dataclasses.asdict(cost) for cost in costs]}
    parcel = Parcel((edge.path / CODEC_FILE).read_bytes(), edge.spec)
    with staged(edge, parcel, {**edge.extra, CODEC_KEY: about}) as whole:
        exchange(whole, edge.path)
