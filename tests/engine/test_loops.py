"""The test loop lets go of what only training needs."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.registry import RUNNERS

from projects.sa2va.engine.start import prepare_test


def test_a_test_rounds_what_autocast_rounds_and_scores_the_same(
    experiment: Path, tmp_path: Path
) -> None:
    cfg = prepare_test(
        str(experiment),
        checkpoint=None,
        work_dir=str(tmp_path),
        cfg_options={"model.autocast": "bfloat16", "model.mllm.dtype": "bfloat16"},
    )
    runner = RUNNERS.build(cfg)

    def dtypes() -> set[torch.dtype]:
        return {p.dtype for n, p in runner.model.named_parameters() if ".lora_" in n}

    runner.optim_wrapper = "of a training that goes on in this process"
    before = runner.test()
    assert dtypes() == {torch.float32}
    runner.optim_wrapper = None
    after = runner.test_loop.run()
    assert dtypes() == {torch.bfloat16}
    assert after == before
