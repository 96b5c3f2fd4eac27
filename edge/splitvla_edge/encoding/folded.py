"""An encoder that gives patch embeddings or, cheaper, codec coefficients: one trunk in memory, two last layers.

The codec's basis is folded into a copy of the projector's last layer when the encoder is opened. ONNX Runtime computes
every output of a graph, whichever is asked for, and two sessions of the whole graph would hold its weights twice: so
the graph is cut before that layer, and each last layer is a small session of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitvla_edge.encoding.onnx_graph import COEFFICIENTS, FEATURES, PATCHES, CutGraph, cut, last_linear, linear_graph
from splitvla_edge.encoding.providers import Session
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError


@dataclass(frozen=True, slots=True, eq=False)
class FoldedGraphs:
    """The three models of an encoder with codec: bytes for ONNX Runtime, whose outside weights lie in `folder`."""

    folder: Path
    parts: CutGraph
    coefficients: bytes

    @classmethod
    def of(cls, path: Path, exact: Path, tables: CodecTables) -> FoldedGraphs:
        """path: the encoder to run. exact: the float32 one, whose last layer the basis is folded into.

        Raises BundleError when the graph can't be cut or is of another width than the tables.
        """
        patches, dim = tables.shape
        layer = last_linear(exact)
        if layer.bias.shape != (dim,) or layer.weight.shape[1] != dim:
            raise BundleError(f"{exact} gives {len(layer.bias)} numbers a patch, the codec tables are for {dim}")
        parts = cut(path, patches, len(layer.weight))
        folded = layer.folded(tables.channel_mean, tables.analysis)
        return cls(path.parent, parts, linear_graph(parts.head, folded, patches))

    def open(self, opener: Callable[[bytes], Session]) -> FoldedSession:
        """Any error of ONNX Runtime's."""
        heads = {PATCHES: opener(self.parts.head), COEFFICIENTS: opener(self.coefficients)}
        return FoldedSession(opener(self.parts.trunk), heads)


@dataclass(frozen=True, slots=True, eq=False)
class FoldedSession:
    """Runs the trunk, and of the heads only those that are asked for. heads: by the name of their output."""

    trunk: Session
    heads: Mapping[str, Session]

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        (features,) = self.trunk.run([FEATURES], inputs)
        return [self.heads[name].run([name], {FEATURES: features})[0] for name in outputs]

    def get_providers(self) -> list[str]:
        return self.trunk.get_providers()

    def get_inputs(self) -> list[Any]:
        return self.trunk.get_inputs()

    def get_outputs(self) -> list[Any]:
        return [output for head in self.heads.values() for output in head.get_outputs()]
