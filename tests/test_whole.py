"""The whole model with our engines has the draft that the split has: what is compared differs in the split alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.end_to_end.whole import EngineSettings, SplitWhole
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.engine.interface import Tokens
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_shared.errors import EarlyStop


def test_the_last_answer_is_the_draft_of_the_next_unless_it_was_none_or_no_action(
    tiny_checkpoint: Path, tiny_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = Checkpoint.open(tiny_checkpoint).action_vocab_size
    action, no_action = tuple(range(top - 7, top)), (*range(top - 6, top), 5)
    answers: list[tuple[int, ...] | None] = [action, None, action, no_action, action]
    drafts: list[tuple[int, ...]] = []

    def infer(self: Backbone, ids: Any, patches: Any, dims: int, draft: Sequence[int] = ()) -> Tokens:
        drafts.append(tuple(draft))
        said = answers[len(drafts) - 1]
        if said is None:
            raise EarlyStop("as asked")
        return Tokens(said, 1.0, 1.0)

    monkeypatch.setattr(Backbone, "infer", infer)
    whole = SplitWhole(EngineSettings("split", tiny_checkpoint, tiny_bundles, "widowx_tiny", device="cpu"))
    image = np.zeros((224, 224, 3), np.uint8)
    for said in answers:
        if said is None:
            with pytest.raises(EarlyStop):
                whole.act(image, "lift the cup")
        else:
            assert whole.act(image, "lift the cup").tokens == said
    assert drafts == [(), action, (), action, ()]
