"""What bundles say of themselves, for tests: OpenVLA's shape of things, with what a test wants changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from splitvla_shared.spec import ModelSpec, Resize


def make_spec(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "tiny",
        "vision_sha256": "a" * 64,
        "language_sha256": "b" * 64,
        "tokenizer_sha256": "c" * 64,
        "statistics_sha256": "d" * 64,
        "patches": 256,
        "embed_dim": 96,
        "image_size": 224,
        "resize": Resize.NAIVE,
        "action_vocab_size": 32000,
        "action_bins": 256,
        "max_action_dims": 7,
        "chunk_length": 1,
        "prompt_template": "In: What action should the robot take to {instruction}?\nOut:",
        "suffix_token_id": 29871,
        "max_cameras": 1,
    }
    return ModelSpec(**(fields | changes)).sealed()


def stored_as(precision: str, bundles: Path, copy: Path) -> Path:
    """A copy of both halves whose manifest says that the backbone is stored in that precision."""
    shutil.copytree(bundles, copy)
    manifest = copy / "cloud" / "spec.json"
    stored = json.loads(manifest.read_text())
    stored["extra"]["precision"] = precision
    manifest.write_text(json.dumps(stored))
    return copy
