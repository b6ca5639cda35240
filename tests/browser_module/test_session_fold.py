"""The browser's fold makes of a session's events what the Python one makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from streamkeep.client.sessions import SessionFold, as_json
from tests import node
from tests.browser_module.test_in_node import scripts
from tests.sessions.session_rows import Author, Row, recorded_session, row, turn
from tests.sessions.test_fold import BAD, EVENTS, nested

__all__ = ["scripts"]

Case = dict[str, Any]


def generated(count: int) -> list[Case]:
    """Sessions as hypothesis makes them up, each in batches of some sizes."""
    found: list[Case] = []

    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate])
    @given(st.lists(EVENTS, max_size=40), st.lists(st.integers(0, 7), max_size=8))
    def collect(events: list[object], sizes: list[int]) -> None:
        found.append({"events": events, "sizes": sizes})

    collect()
    return found


NUMBERS = [0, 1.0, 1, 2.0, 2.5, -1, 3, None, True, "4", 10**6, 1e6, 2**53 - 1, 2**53, 2**60, 1e300, -1e300, 10**400]


def numbered(number: object) -> Row:
    """A row whose numbers may be none."""
    usage = {"promptTokens": number, "total_tokens": number}
    call = {"id": "c", "function": {"name": "f", "arguments": '["1e999", 1e-999, 1.0e+05]'}}
    made = row("a", {"type": "tool_call", "toolCall": call, "index": number, "usage": usage}, role="assistant")
    return made | {"value": made["value"] | {"seq": number}}


def folded(case: Case) -> dict[str, Any]:
    fold, at, changes = SessionFold(), 0, []
    for size in (*case["sizes"], len(case["events"])):
        end = min(at + size, len(case["events"]))
        changes.append(as_json(fold.apply(case["events"][at:end], f"{end:04d}")))
        at = end
    views = {
        "messages": fold.messages,
        "toolCalls": fold.tool_calls,
        "toolResults": fold.tool_results,
        "approvals": fold.approvals,
        "activeGenerations": fold.active_generations,
        "agents": fold.agents,
        "presence": fold.presence,
        "participants": fold.participants,
        "turns": fold.turns,
        "pendingTurns": fold.pending_turns,
        "session": fold.session,
        "statistics": fold.statistics,
        "position": fold.position,
        "offset": fold.offset,
    }
    return {**{name: as_json(view) for name, view in views.items()}, "changes": changes, "areSame": True}


async def test_both_folds_agree(scripts: Path, tmp_path: Path) -> None:
    recorded = recorded_session()
    cases: list[Case] = [
        {"events": recorded, "sizes": [1, 5]},
        {"events": [*BAD, *recorded, *BAD, *recorded], "sizes": [3]},
        {"events": [row("a", nested(depth), seq=depth) for depth in (99, 100, 101)], "sizes": []},
        {"events": [Author(f"a{depth}").call("c", "[" * depth + "]" * depth) for depth in (100, 101)], "sizes": []},
        {"events": [Author(f"a{digits}").call("c", f"[{'9' * digits}e99]") for digits in (209, 210, 211)], "sizes": []},
        {
            "events": [
                *map(numbered, NUMBERS),
                *(turn(f"t{at}", f"m{at}", depth=one) for at, one in enumerate(NUMBERS)),
            ],
            "sizes": [],
        },
        *generated(400),
    ]
    path = tmp_path / "sessions.json"
    path.write_text(json.dumps(cases))
    status, output = await node.run(scripts, "session_fold.mjs", str(path), timeout_seconds=60)
    assert status == 0, output
    for case, found in zip(cases, json.loads(output), strict=True):
        assert found == folded(case), case
