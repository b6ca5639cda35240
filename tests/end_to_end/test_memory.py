"""The short form of `make memory`, which takes some three minutes; `pytest -rP` shows what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.memory import SHORT, run


@pytest.mark.slow
async def test_a_process_stays_within_its_budgets_though_nobody_takes_anything(tmp_path: Path) -> None:
    """On two busy cores the short form grew by 46 to 54 MiB of 73.5 and the long one, with 1.6 GB sent, by 47 of 99. Where
    nothing slows upstreams down, the short one grows by 235."""
    assert await run(SHORT, tmp_path)
