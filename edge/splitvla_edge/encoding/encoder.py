"""The vision encoder and projector: one of the edge bundle's encoders in ONNX Runtime, on hardware that was tried."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from splitvla_edge.encoding.engine_cache import EngineKey, engine_folder, user_cache_root
from splitvla_edge.encoding.folded import FoldedGraphs
from splitvla_edge.encoding.machine_names import accelerator_name
from splitvla_edge.encoding.onnx_errors import ORT_ERRORS, one_line
from splitvla_edge.encoding.onnx_graph import COEFFICIENTS, PATCHES
from splitvla_edge.encoding.providers import AUTO, PROVIDERS, TOLERANCE, Options, Session, check_choice, infer, select
from splitvla_shared.bundle import Bundle, file_sha256
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.encoders import ENCODER_FILES, EXACT_INT8_SUMS, FP16, FP32, INT8
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import FloatArray, Image
from splitvla_shared.probe import probe_image

ENCODER_FILE = ENCODER_FILES[FP32]
# Largest difference of coefficients from the embedding's product with the basis, as a share of their length: far above
# rounding, which the subtracted mean magnifies; an int8 encoder's embedding comes from another, coarser layer.
_COEFFICIENTS = {FP32: 0.05, FP16: 0.05, INT8: 0.35}


class OnnxEncoder:
    """One ONNX Runtime session, warmed up. Owned by the perception process; `embed` from one thread at a time.

    variant: the encoder's name in the bundle. selection: the provider in use, and why not others.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        variant: str = FP32,
        provider: str = AUTO,
        tables: CodecTables | None = None,
    ) -> None:
        """Load and check an encoder. threads: cores for one inference on the CPU, None for all physical cores.

        variant: fp32, or fp16 or int8 where `split` made it. provider: auto, tensorrt, cuda or cpu; whatever is not
        the CPU must first give the CPU's embedding of a test image. tables: the bundle's codec, None where it has none;
        its basis is folded into the last layer, and `coefficients` can then be asked for.
        Raises BundleError when the bundle has no such encoder, or it can't be loaded, is not this spec's, or fails;
        ConfigError on settings that make no sense and when the provider that was asked for does not work.
        """
        if threads is not None and threads < 1:
            raise ConfigError(f"encoder threads is {threads}; expected at least 1, or none for all physical cores")
        check_choice(provider)
        self.variant = variant
        self._spec = bundle.spec
        self._columns = None if tables is None else tables.columns
        self._path = bundle.path / _file(bundle, variant)
        opener = _Opener(self._path, threads, self._folded(bundle, tables), tables.sha256 if tables else "")
        self._session = self._open_on_cpu(opener)
        self._check_graph()
        size = self._spec.image_size
        self.selection = select(
            provider,
            self._session,
            ort.get_available_providers(),
            opener,
            {"tensorrt": opener.tensorrt_options},
            probe_image(size),
            TOLERANCE[variant],
        )
        self._session = self.selection.session
        # The first run allocates the arena and takes several times as long as the next: not on a moving robot.
        patches = self.embed(probe_image(size))
        if tables is not None:
            self._check_coefficients(tables.coefficients(patches))

    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim), finite.

        Raises BundleError when ONNX Runtime fails or the result is not finite: no uint8 image is to blame for that,
        only a graph whose numeric type overflows (float16) or whose weights are damaged.
        """
        return self._run(image, PATCHES)

    def coefficients(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, columns), what TransformCodec.encode takes.

        They are the embedding's tables.coefficients, in one layer instead of two. Raises what `embed`
        raises; an encoder that was opened without tables has none.
        """
        if self._columns is None:
            raise ValueError("this encoder was opened without codec tables")
        return self._run(image, COEFFICIENTS)

    def _run(self, image: Image, output: str) -> FloatArray:
        size = self._spec.image_size
        if image.shape != (size, size, 3) or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}; the encoder takes uint8 ({size}, {size}, 3)")
        try:
            found = infer(self._session, image, output)
        except ORT_ERRORS as error:
            raise BundleError(f"{self._path}: the encoder failed: {one_line(error)}") from error
        if not np.isfinite(found).all():
            raise BundleError(f"{self._path}: the embedding is not finite; split again with a float32 encoder")
        return found

    def _check_coefficients(self, expected: FloatArray) -> None:
        """Hardware that gives the right embedding may have miscompiled the other last layer."""
        found = self.coefficients(probe_image(self._spec.image_size))
        difference = float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
        if not difference <= _COEFFICIENTS[self.variant]:
            raise BundleError(
                f"{self._path}: on {self.selection.name} the codec's coefficients are off by {difference:.0%}; "
                "use --provider cpu, or calibrate again"
            )

    def _folded(self, bundle: Bundle, tables: CodecTables | None) -> FoldedGraphs | None:
        if tables is None:
            return None
        self._check_file()
        return FoldedGraphs.of(self._path, bundle.path / ENCODER_FILE, tables)

    def _check_file(self) -> None:
        if not self._path.is_file():
            raise BundleError(f"{self._path.parent} is not whole: {self._path.name} is missing; copy it again")

    def _open_on_cpu(self, opener: _Opener) -> Session:
        self._check_file()
        try:
            return opener(PROVIDERS["cpu"], {})
        except ORT_ERRORS as error:
            raise BundleError(
                f"{self._path} can't be loaded: {one_line(error)}; copy it again or split again"
            ) from error

    def _check_graph(self) -> None:
        spec = self._spec
        size = spec.image_size
        expected = {
            "inputs": [("image", "tensor(uint8)", [1, size, size, 3])],
            "outputs": [(PATCHES, "tensor(float)", [1, spec.patches, spec.embed_dim])],
        }
        if self._columns is not None:
            expected["outputs"].append((COEFFICIENTS, "tensor(float)", [1, spec.patches, self._columns]))
        found = {
            "inputs": [(node.name, node.type, node.shape) for node in self._session.get_inputs()],
            "outputs": [(node.name, node.type, node.shape) for node in self._session.get_outputs()],
        }
        for side, wanted in expected.items():
            if found[side] != wanted:
                raise BundleError(f"{self._path}: {side} are {found[side]}, spec.json says {wanted}; split again")


def encoders_of(bundle: Bundle) -> tuple[str, ...]:
    """The encoders that the manifest speaks of; a file that it does not speak of was never checked."""
    listed = bundle.extra.get("encoders")
    names = listed if isinstance(listed, dict) else {}
    return tuple(name for name in ENCODER_FILES if name == FP32 or name in names)


def _file(bundle: Bundle, variant: str) -> str:
    found = encoders_of(bundle)
    if variant not in found:
        raise BundleError(
            f"{bundle.path} has no encoder {variant!r}; it has {', '.join(found)}; split again with --encoder NAMES"
        )
    return ENCODER_FILES[variant]


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens sessions of one graph, or of the parts of a folded one; codec_sha256: of what was folded."""

    path: Path
    threads: int | None
    folded: FoldedGraphs | None
    codec_sha256: str

    def __call__(self, provider: str, options: Options) -> Session:
        if self.folded is None:
            return self._session(str(self.path), provider, options)
        return self.folded.open(lambda model: self._session(model, provider, options))

    def _session(self, model: str | bytes, provider: str, options: Options) -> Session:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads or 0
        # Spinning threads would take the cores from the control process between two frames.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry(*EXACT_INT8_SUMS)
        settings.add_session_config_entry(_OUTSIDE_WEIGHTS, str(self.path.parent))
        settings.log_severity_level = 3
        providers = [(provider, dict(options)), *_BEHIND.get(provider, ())]
        # Without enable_fallback=0 a provider that fails is replaced by the CPU, with a print for all notice.
        session: Session = ort.InferenceSession(model, settings, providers=providers, enable_fallback=0)
        return session

    def tensorrt_options(self) -> Options:
        """With an engine cache of their own. Raises ConfigError when the cache can't be trusted."""
        options = {"trt_engine_cache_enable": "True", "trt_timing_cache_enable": "True"}
        # An engine holds weights, and its name in the cache does not tell one codec's from another's.
        key = EngineKey(_graph_sha256(self.path) + self.codec_sha256, ort.__version__, options, accelerator_name())
        folder = str(engine_folder(user_cache_root(os.environ), key))
        return options | {"trt_engine_cache_path": folder, "trt_timing_cache_path": folder}


# Where the weights lie of a graph that comes as bytes.
_OUTSIDE_WEIGHTS = "session.model_external_initializers_file_folder_path"
# What runs the operators that a provider lacks.
_BEHIND: Mapping[str, tuple[Any, ...]] = {
    PROVIDERS["tensorrt"]: (PROVIDERS["cuda"], PROVIDERS["cpu"]),
    PROVIDERS["cuda"]: (PROVIDERS["cpu"],),
}


def _graph_sha256(path: Path) -> str:
    """Of the graph and, where they lie beside it, of its weights."""
    files = [path, path.with_name(path.name + ".data")]
    return hashlib.sha256("".join(file_sha256(file) for file in files if file.is_file()).encode()).hexdigest()
