"""What a fleet of robots sends, and to whom."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.end_to_end.robot import Job
from benchmarks.end_to_end.site import Site
from benchmarks.processes import ServerProcess
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.model import read_edge_model
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import encode
from splitvla_shared.nouns import Image, Scheme
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.rungs import plain_ladder

_FRAMES = 8


@contextmanager
def fleet_site(site: Site, images: Sequence[Image], instruction: str) -> Iterator[tuple[Job, int | None, str, Path]]:
    """A job without name and times, its server's process id where that runs here, the model in words, and a folder.

    The site's own server; where the servers are ours, one whose model is thin, so that it is the server that is seen.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = images[:: max(1, len(images) // _FRAMES)][:_FRAMES]
        if not site.pids:
            job = _record(site.edge_bundle, site.unnorm_key, frames, instruction, folder)
            tls = () if site.security is None else (site.security.ca, site.security.cert, site.security.key)
            job = dataclasses.replace(job, server=site.server, tls=tuple(map(str, tls)))
            yield job, None, "the model of the tables above", folder
            return
        # torch is only where the servers are
        from benchmarks.checkpoint import PRESETS, write_checkpoint
        from splitvla_cloud.split import split

        write_checkpoint(folder / "thin", sizes=PRESETS["thin"])
        split(folder / "thin", folder / "bundles")
        with ServerProcess(folder / "bundles" / "cloud", "--threads", "1") as server:
            job = _record(folder / "bundles" / "edge", "widowx_tiny", frames, instruction, folder)
            model = "openvla-7b's bytes, little arithmetic"
            yield dataclasses.replace(job, server=server.wait_ready()), server.pid, model, folder


def _record(bundle: Path, unnorm_key: str | None, frames: Sequence[Image], instruction: str, folder: Path) -> Job:
    """Embed some frames and encode them as bf16 into `folder`."""
    opened = open_bundle(bundle, "edge")
    model, spec = read_edge_model(opened, unnorm_key), opened.spec
    rung = plain_ladder(Scheme.BF16, (spec.patches, spec.embed_dim))[0]
    square = build_pipeline(model.image_pipeline, "none", spec, model.fill)
    encoder = OnnxEncoder(opened, 1)
    files = []
    for index, frame in enumerate(frames):
        file = folder / f"payload{index}"
        file.write_bytes(encode(encoder.embed(square(frame)), rung.scheme).data)
        files.append(str(file))
    return Job(
        server="",
        fingerprint=spec.fingerprint,
        instruction=instruction,
        action_dims=model.statistics.dims,
        scheme=int(rung.scheme),
        shape=(spec.patches, spec.embed_dim),
        payloads=tuple(files),
        vocab_size=spec.action_vocab_size,
        bins=spec.action_bins,
    )
