"""A rolling deploy: workers of the new code run beside those of the old one, forward and back, while calls are in doubt.

It changes a call's service and policy, a reaction's occurrence, or a condition; see the variants in shop.py.
"""

from __future__ import annotations

from tools.torture.deploy import DIFFERS, REDECLARED
from tools.torture.hands import Operator
from tools.torture.shop import THANKED_OF

_BEGUN = (
    "SELECT a.reaction, a.record, a.occurrence, w.pid FROM groundstate_attempt AS a JOIN groundstate_worker AS w ON w.id = a.worker"
    " WHERE a.state = 'begun' AND a.call_no > 0"
)
_TO_BE_LEFT = (
    "SELECT id FROM orders WHERE status = 'done' AND thanked IS NULL AND id % :all = :half AND NOT EXISTS"
    " (SELECT 1 FROM groundstate_attempt AS a WHERE a.reaction = 'thanked' AND a.record = CAST(orders.id AS TEXT))"
)
Begun = tuple[str, str, str, int]  # reaction, record, occurrence, pid


class Rolls:
    """Rolling deploys from one variant of the shop's code to another."""

    def __init__(self, hands: Operator) -> None:
        self._hands = hands

    def roll_to_variant(self, variant: str) -> None:
        """Roll to this variant, or from it back to the plain code."""
        hands, dice = self._hands, self._hands.dice
        hands.end_troubles()
        old = hands.fleet.living_workers()
        hands.judge.redeclared |= {*REDECLARED[variant]}
        hands.deploys.switch_variant(variant)
        forward = hands.deploys.code.variant == variant
        how = dice.choice(("all killed", "some killed", "some drained"))
        if how == "all killed":
            hands.wait_for_effects(dice.randint(1, 8))
            hands.end_all_processes(drained=False)
            self._check_plan(variant)
        if variant == "wider" and forward:
            self._set_baseline()
        hands.log_action(f"{how}: now version {hands.deploys.code}")
        for one in old[: max(len(old) // 2, 1)]:
            if how == "some killed" and one.status is None:
                hands.kill_workers([one])
            elif how == "some drained" and one.status is None:
                hands.fleet.send_sigterm(one)
        hands.run_with_checks(dice.uniform(1, 3))
        hands.done[f"rolled {'forward' if forward else 'back'}, {how}: {variant}"] += 1
        hands.judge.reset_patience()

    def _check_plan(self, variant: str) -> None:
        """Check that `groundstate plan` reports open calls that this code would settle differently; no worker runs meanwhile."""
        before = self._calls_settled_otherwise(variant)
        status = self._hands.deploys.run_plan()
        open_calls = before & self._calls_settled_otherwise(variant)  # the last transaction of a killed worker may become visible late
        if open_calls:
            self._hands.judge.checks["Deploy"] += 1
        if open_calls and status == 0:
            self._hands.judge.add_fault("Deploy", f"`groundstate plan` says nothing of {sorted(open_calls)[:3]}, begun by other code")
        self._hands.done["plans that told of open calls"] += bool(open_calls) and status == DIFFERS

    def _calls_settled_otherwise(self, variant: str) -> set[Begun]:
        now = self._hands.deploys.code.variant == variant
        codes, found = self._hands.codes, set[Begun]()
        for row in self._hands.judge.books.query_rows(_BEGUN):
            reaction, record, occurrence, pid = row
            if reaction in REDECLARED[variant] and pid in codes and (codes[pid].variant == variant) is not now:
                found.add((reaction, record, occurrence, pid))
        return found

    def _set_baseline(self) -> None:
        """Let a person set a baseline for the orders that the wider condition matches and the narrow one did not."""
        hands = self._hands
        hands.kill_workers(
            [one for one in hands.fleet.all_processes() if one.code.variant == "wider"]
        )  # the orders that these still match must not be left
        judge, before = hands.judge, len(hands.judge.left)
        left = {str(row[0]) for row in judge.books.query_rows(_TO_BE_LEFT, all=THANKED_OF, half=THANKED_OF // 2)}
        hands.deploys.set_baseline("thanked")
        # The baseline covers every matching order, including those that the narrow condition matched and no worker had begun.
        judge.left |= left | {record for reaction, record in judge.books.read_baselines() if reaction == "thanked"}
        hands.done["orders left as they are"] += len(judge.left) - before
