"""The robot's half of a model as its bundle describes it, and whether a server holds the other half."""

from __future__ import annotations

import json
from dataclasses import dataclass

from splitvla_edge.link.calls import ServerDescription
from splitvla_shared.actions import ActionStatistics, parse_statistics, select_statistics
from splitvla_shared.bundle import Bundle
from splitvla_shared.codec.bundled import read_tables
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError, ConfigError, SpecMismatch
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.nouns import Scheme
from splitvla_shared.preprocess.image_pipelines import read_fill, read_pipeline
from splitvla_shared.preprocess.images import GRAY, Fill
from splitvla_shared.rungs import Rung, ladder_from, read_costs
from splitvla_shared.spec import ModelSpec

STATISTICS_FILE = "statistics.json"
_SHOWN_DIFFERENCES = 3


@dataclass(frozen=True, slots=True)
class EdgeModel:
    """What the edge bundle says, read once: the agreed spec, the chosen statistics, how a frame becomes a square."""

    spec: ModelSpec
    statistics: ActionStatistics
    fill: Fill = GRAY
    image_pipeline: ImagePipeline = ImagePipeline.HF


def read_edge_model(bundle: Bundle, unnorm_key: str | None) -> EdgeModel:
    """Spec, statistics and image preparation of an edge bundle. Raises BundleError; ObservationError: unknown key."""
    file = bundle.path / STATISTICS_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}; copy the bundle again or split again") from error
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); split again") from error
    if not isinstance(data, dict):
        raise BundleError(f"{file} holds no table of datasets; split again")
    statistics = select_statistics(parse_statistics(data), unnorm_key)
    return EdgeModel(bundle.spec, statistics, read_fill(bundle), read_pipeline(bundle))


def read_ladder(bundle: Bundle, start: Scheme | str) -> tuple[CodecTables | None, tuple[Rung, ...]]:
    """The bundle's codec, None where it was never calibrated, and its payload ladder from `start` down.

    start: a scheme, or the name of a scheme or rung. Raises BundleError; ConfigError that names the rungs.
    """
    tables = read_tables(bundle)
    shape = (bundle.spec.patches, bundle.spec.embed_dim)
    return tables, ladder_from(start, shape, tables, read_costs(bundle.extra))


def check_same_model(here: ModelSpec, there: ModelSpec) -> None:
    """Raises SpecMismatch that names the fields that differ; the fingerprint only where nothing else explains it."""
    lines = here.differences(there)
    if not lines:
        return
    telling = [line for line in lines if not line.startswith("fingerprint:")] or lines
    more = len(telling) - _SHOWN_DIFFERENCES
    shown = "; ".join(line[:200] for line in telling[:_SHOWN_DIFFERENCES]) + (f"; {more} more" if more > 0 else "")
    if all(line.startswith("codec_sha256:") for line in telling):
        remedy = "give both the same calibration (`splitvla-cloud adopt-codec`), and restart the server"
    else:
        remedy = "use the edge/ and cloud/ folders that one `splitvla-cloud split` wrote"
    raise SpecMismatch(f"the server holds another model than this bundle: {shown}; {remedy}")


def check_accepted(scheme: Scheme, server: ServerDescription) -> None:
    """Raises ConfigError when the server does not accept payloads of this scheme."""
    if scheme not in server.schemes:
        names = ", ".join(known.name.lower() for known in server.schemes) or "none that this version knows"
        raise ConfigError(f"the server does not accept payload scheme {scheme.name.lower()}; it accepts {names}")
