"""The codec tables as they lie in a bundle: one file, the same bytes in the edge and in the cloud half."""

from __future__ import annotations

from splitvla_shared.bundle import Bundle
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError

CODEC_FILE = "codec.npz"


def read_tables(bundle: Bundle) -> CodecTables | None:
    """The tables that `bundle.spec` speaks of; None where it was never calibrated.

    Raises BundleError when the file is missing, is not the one that the fingerprint names, or is of another shape.
    """
    spec, file = bundle.spec, bundle.path / CODEC_FILE
    if not spec.codec_sha256:
        return None
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}; copy the bundle again or calibrate again") from error
    tables = CodecTables.from_bytes(data)
    if tables.sha256 != spec.codec_sha256:
        raise BundleError(
            f"{file} has SHA-256 {tables.sha256[:12]}, spec.json says {spec.codec_sha256[:12]}; "
            "copy both halves of one calibration"
        )
    if tables.shape != (spec.patches, spec.embed_dim):
        raise BundleError(
            f"{file} is for embeddings of {tables.shape}, this model's are {(spec.patches, spec.embed_dim)}; "
            "calibrate with this bundle"
        )
    return tables
