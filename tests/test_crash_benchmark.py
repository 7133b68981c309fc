"""benchmarks/crash counts what is planted in the books, meets all contenders with the same, and our own contender comes through it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.crash.__main__ import main
from benchmarks.crash.contenders import CONTENDERS, PEERS
from benchmarks.crash.counting import Row, count_orders
from benchmarks.crash.environment import REQUIREMENTS
from benchmarks.crash.gateway import Served
from benchmarks.crash.schedule import LONGEST_WAIT_S, draw_kills
from benchmarks.crash.supervisor import Plan, run

from groundstate.demo.mischief import Trick, choose_treatment, is_card_declined


def entry(number: int, order: int, outcome: str = "charged") -> dict[str, Any]:
    return {"id": f"ch_{number}", "key": f"order-{order}", "order": order, "amount": 1, "outcome": outcome}


LEDGER = [entry(1, 1), entry(2, 2), entry(3, 2), entry(4, 4), entry(5, 5), entry(6, 6, "declined"), entry(7, 8, "declined")]
ROWS = {
    1: Row("paid", "ch_1"),  # right
    2: Row("paid", "ch_2"),  # doubled: ch_3 as well, which nobody knows
    3: Row("placed", None),  # lost: no charge, and nobody will make one
    4: Row("placed", None),  # stuck: charged, and listed
    5: Row("placed", None),  # charged, and neither the table nor a tool says so
    6: Row("declined", None),  # right
    7: Row("placed", None),  # stuck, and not charged: that is not lost
    8: Row("placed", None),  # the card was refused and nobody will tell the customer: lost
}
LISTED = {4: "doing", 7: "failed"}


def test_planted_books_are_counted_as_planted() -> None:
    counts = count_orders(ROWS, LEDGER, LISTED)
    assert (counts.orders, counts.right, counts.doubled, counts.lost, counts.stuck, counts.unlisted) == (8, 2, 1, 2, 2, 2)
    assert counts.stuck_as == {"doing": 1, "failed": 1}


def test_books_in_which_all_is_well_count_nothing_else() -> None:
    counts = count_orders({1: ROWS[1], 6: ROWS[6]}, [LEDGER[0], LEDGER[5]], {})
    assert (counts.right, counts.doubled, counts.lost, counts.stuck, counts.unlisted) == (2, 0, 0, 0, 0)


def test_a_row_that_says_paid_without_a_charge_is_not_right() -> None:
    counts = count_orders({1: Row("paid", "ch_9")}, [], {})
    assert (counts.right, counts.lost) == (0, 1)


def test_a_charge_without_any_order_is_unlisted() -> None:
    assert count_orders({}, [entry(1, 1)], {}).unlisted == 1


def test_a_doubled_order_that_a_tool_lists_is_doubled_and_not_unlisted() -> None:
    counts = count_orders({2: ROWS[2]}, LEDGER[1:3], {2: "held"})
    assert (counts.doubled, counts.stuck, counts.unlisted) == (1, 1, 0)


def test_the_schedule_is_the_same_for_the_same_seed() -> None:
    kills = draw_kills(7, 30, 300)
    assert kills == draw_kills(7, 30, 300)
    assert kills != draw_kills(8, 30, 300)
    assert len({kill.after for kill in kills}) == 30
    assert kills == sorted(kills, key=lambda kill: kill.after)
    assert all(1 <= kill.after <= 240 and 0 <= kill.wait_s <= LONGEST_WAIT_S for kill in kills)


def test_more_kills_than_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="30 kills need at least 38 orders"):
        draw_kills(1, 30, 20)


@pytest.mark.parametrize(("kind", "charges"), [("keys", 1), ("find", 2)])
def test_a_gateway_of_kind_keys_alone_charges_a_key_once(kind: str, charges: int, tmp_path: Path) -> None:
    prompt = {Trick.PROMPT, Trick.SLOW}
    order = next(
        n for n in range(1, 999) if not is_card_declined(1, n) and all(choose_treatment(1, n, number).trick in prompt for number in (1, 2))
    )
    asked: dict[str, Any] = {"key": f"order-{order}", "order": order, "amount": 1}
    with Served(tmp_path / "ledger", 1, kind=kind) as served:
        answers = [httpx.post(f"{served.url}/charges", json=asked).json()["id"] for _ in range(2)]
        can_be_asked = httpx.get(f"{served.url}/charges", params={"key": f"order-{order}"}).status_code != 405
        assert len(served.read_entries()) == len(set(answers)) == charges
        assert served.bank.charges_asked == 2
    assert can_be_asked == (kind == "find")


def test_ours_comes_through_its_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    given = ["--only", "ours-sqlite", "--gateway", "find", "--orders", "40", "--kills", "3", "--json", str(file)]
    assert main(given) == 0
    [result] = json.loads(file.read_text())["results"]
    assert (result["contender"], result["kind"], result["kills"]) == ("groundstate, sqlite", "find", 3)
    books = {name: result["counts"][name] for name in ("right", "doubled", "lost", "stuck", "unlisted")}
    assert books == {"right": 40, "doubled": 0, "lost": 0, "stuck": 0, "unlisted": 0}
    assert "groundstate, sqlite" in capsys.readouterr().out


def test_a_contender_that_does_not_work_is_no_figure(tmp_path: Path) -> None:
    idle = replace(CONTENDERS["ours-sqlite"], work=(sys.executable, "-c", "import time; time.sleep(60)"))
    plan = Plan(orders=5, seed=1, kills=draw_kills(1, 1, 5), venv=tmp_path, folder=tmp_path / "run", quiet_s=1)
    with pytest.raises(RuntimeError, match=r"right=0.*stuck=5.*1 kills left"):
        run(idle, "keys", plan, None)


def test_each_peer_is_pinned_and_says_which_settings_are_not_its_docs() -> None:
    pinned = {line.partition("==")[0].partition("[")[0] for line in REQUIREMENTS.read_text().splitlines() if "==" in line}
    peers = [contender for contender in CONTENDERS.values() if not contender.is_ours]
    assert {package for contender in peers for package in contender.packages} <= pinned
    assert all(contender.settings for contender in CONTENDERS.values())
    assert all((PEERS / f"{contender.packages[0]}_shop.py").exists() for contender in peers)
