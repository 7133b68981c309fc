"""What is checked: each configuration of each model, each hole and each mutation, with what must come out. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """`caught`: an invariant must be violated; else the run must come to its end with none violated. `quick`: in the quick form too."""

    name: str
    model: str
    settings: str
    says: str
    caught: bool = False
    quick: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(f"-D{word}" for word in self.settings.split())


PROTOCOL, BLOCKING, CAREFUL, WITNESS = "protocol.pml", "blocking.pml", "careful.pml", "witness.pml"
SMALL = "TROUBLE=2 WBUD=1 PBUD=1 MAXC=5"
PERSON = "TROUBLE=1 WBUD=0 PBUD=1 MAXC=4"
POLICIES = ("AGAIN", "SAMEKEY", "ASK", "HOLD")


def _pass(name: str, model: str, settings: str, says: str, *, quick: bool = False) -> Case:
    return Case(name, model, settings, says, quick=quick)


def _caught(name: str, model: str, settings: str, says: str, *, quick: bool = True) -> Case:
    return Case(name, model, f"{settings} {name}", says, caught=True, quick=quick)


def _of_policies() -> list[Case]:
    found = []
    for policy in POLICIES:
        low = policy.lower()
        found += [
            _pass(f"{low}, faults", PROTOCOL, f"POL={policy} BOUNDED TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "two faults; the number of calls has a bound"),
            _pass(f"{low}, writer", PROTOCOL, f"POL={policy} TROUBLE=1 WBUD=2 PBUD=1 MAXC=6", "one fault, the writer acts twice, a person once"),
            _pass(f"{low}, person", PROTOCOL, f"POL={policy} TROUBLE=1 WBUD=1 PBUD=2 MAXC=6", "one fault, the writer acts once, a person twice"),
            _pass(f"{low}, quick", PROTOCOL, f"POL={policy} TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "one fault, one act of the writer, one of a person", quick=True),
            _pass(
                f"{low}, restore", PROTOCOL, f"POL={policy} RESTORE TROUBLE=0 WBUD=1 PBUD=0 MAXC={7 if policy == 'AGAIN' else 5}",
                "a backup is taken at some moment and put back at some other",
            ),
        ]
    return found


CASES = [
    *_of_policies(),
    _pass("ask, small", PROTOCOL, f"POL=ASK {SMALL}", "two faults, a writer and a person"),
    _pass("ask, overtaken", PROTOCOL, f"POL=ASK OVERTAKEN {SMALL}", "with an overtaken handler, or a fact"),
    _pass("again, gave up", PROTOCOL, "POL=AGAIN GAVEUP TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "with a gave_up handler"),
    _pass("ask, busy", PROTOCOL, "POL=ASK BUSY TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "Busy does not count as a failure"),
    _pass("same_key, forgotten", PROTOCOL, "POL=SAMEKEY FORGET TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "the provider forgets the key as soon as it may"),
    _pass("same_key, asks", PROTOCOL, "POL=SAMEKEY KEYASK FORGET TROUBLE=2 WBUD=0 PBUD=0 MAXC=6", "and there is a find to fall back to"),
    _pass("same_key, shorter", PROTOCOL, "POL=SAMEKEY KEYASK FORGET SHORT TROUBLE=2 WBUD=0 PBUD=0 MAXC=4", "new code with a shorter timeout: a later deadline stays"),
    _pass("ask, stuck", PROTOCOL, "POL=ASK STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "threads that hang before they send"),
    _pass("hold, wrong person", PROTOCOL, f"POL=HOLD M_WRONGPERSON NO_AMO {SMALL}", "a person is wrong: each outcome that is heard is still kept"),
    _pass("ask, any words", PROTOCOL, "POL=ASK ANYWORDS TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "a person speaks to attempts that are not held"),
    *[_pass(f"{p.lower()}, restore and a fault", PROTOCOL, f"POL={p} RESTORE TROUBLE=1 WBUD=0 PBUD=0 MAXC={6 if p in ('AGAIN', 'ASK') else 5}", "a backup put back, and one fault anywhere") for p in POLICIES],
    # ---- holes: the table as it was first written
    _caught("H_STOPDELETES", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a stop clears a doubt"),
    _caught("H_FAILEDOCC", PROTOCOL, f"POL=ASK {SMALL}", "'failed' forgets the occurrence"),
    _caught("H_CALLNO", PROTOCOL, "POL=ASK SAMEOCC TROUBLE=3 WBUD=2 PBUD=0 MAXC=5", "the fence is a number that starts at 1 again", quick=False),
    _caught("H_ABSENTLATE", PROTOCOL, f"POL=ASK {SMALL}", "the time of Absent is that of its answer"),
    _caught("H_FINDUNFENCED", PROTOCOL, f"POL=ASK {SMALL}", "a find's answer is not fenced"),
    _caught("H_KEYAGE", PROTOCOL, "POL=SAMEKEY FORGET TROUBLE=3 WBUD=0 PBUD=0 MAXC=6", "the key is as old as the latest call", quick=False),
    _caught("H_RETRYDROPS", PROTOCOL, f"POL=ASK {PERSON}", "retry does not look at the outcome in hand"),
    _caught("H_HANDLERFAILS", PROTOCOL, f"POL=ASK {SMALL}", "a handler that raises is a failed call"),
    _caught("H_COMMITUNKNOWN", PROTOCOL, f"POL=ASK {SMALL}", "a begun row that its living worker does not know is left"),
    _caught("H_NOBOUND", PROTOCOL, "POL=SAMEKEY BOUNDED TROUBLE=5 WBUD=0 PBUD=0 MAXC=6", "a doubt has no bound", quick=False),
    _caught("H_FORGETHOLDS", PROTOCOL, f"POL=HOLD {PERSON}", "what is held may be forgotten while its condition holds"),
    _caught("H_PERSONEARLY", PROTOCOL, f"POL=HOLD {PERSON}", "a person need not wait for the deadline"),
    _caught("H_ANYSETTLES", PROTOCOL, "POL=ASK STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "a doubt has no owner"),
    _caught("H_DEADLINESTAYS", PROTOCOL, "POL=ASK STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "settle_after does not run from adoption"),
    _caught("H_THREADENDS", PROTOCOL, "POL=ASK STUCK TROUBLE=3 WBUD=0 PBUD=0 MAXC=4", "settle_after does not run from the end of a thread"),
    _caught("H_DEADLINEBACK", PROTOCOL, "POL=SAMEKEY KEYASK FORGET SHORT TROUBLE=2 WBUD=0 PBUD=0 MAXC=4", "a new call's deadline takes the place of a later one"),
    _caught("H_SAMEOCC", PROTOCOL, "POL=ASK SAMEOCC TROUBLE=1 WBUD=2 PBUD=1 MAXC=5", "a condition recurs, and no occurrence tells (hazard 1)"),
    _caught("H_LATEGONE", PROTOCOL, f"POL=HOLD M_WRONGPERSON NO_AMO {SMALL}", "a late outcome is dropped where the attempt is gone"),
    _caught("H_SUSPECTKEEP", PROTOCOL, "POL=ASK RESTORE TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "attempts in the backup are no suspects"),
    _caught("H_SUSPECTDEADLINE", PROTOCOL, "POL=ASK RESTORE TROUBLE=0 WBUD=1 PBUD=0 MAXC=5", "suspects have no deadline"),
    _caught("H_SUSPECTONCE", PROTOCOL, "POL=HOLD RESTORE TROUBLE=0 WBUD=2 PBUD=0 MAXC=4", "only what matches at the restart is suspect", quick=False),
    _pass("H_ABSENTOCC", PROTOCOL, f"POL=ASK H_ABSENTOCC {SMALL}", "Absent forgets the occurrence: harmless alone, 'failed' asks again"),
    _pass("H_NOBLOCK", PROTOCOL, f"POL=ASK H_NOBLOCK {SMALL}", "other occurrences do not block: harmless, given key and find by occurrence"),
    # ---- mutations: mistakes
    _caught("M_KEYPERRECORD", PROTOCOL, "POL=SAMEKEY TROUBLE=2 WBUD=2 PBUD=0 MAXC=5", "a key per record"),
    _caught("M_KEYPERCALL", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a key per call"),
    _caught("M_CLEARDOUBT", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a later NotDone clears the doubt"),
    _caught("M_DEADCALLFAILED", PROTOCOL, f"POL=HOLD {SMALL}", "a dead worker's call has failed"),
    _caught("M_UNFENCED", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a conclusion is not fenced"),
    _caught("M_NODEADLINE", PROTOCOL, f"POL=ASK {SMALL}", "the deadline is not looked at before the call"),
    _caught("M_ABSENTEARLY", PROTOCOL, f"POL=ASK {SMALL}", "Absent is believed at once"),
    _caught("M_FREECLOCK", PROTOCOL, f"POL=ASK {SMALL}", "a call acts later than its deadline plus settle_after (hazard 6)"),
    _caught("M_NOLIVENESS", PROTOCOL, f"POL=ASK {SMALL}", "a living worker's attempts are adopted"),
    _caught("M_RUNNINGMARK", PROTOCOL, f"POL=ASK {SMALL}", "a mark says who runs, and no lock"),
    _caught("M_LATEDROPPED", PROTOCOL, f"POL=HOLD {SMALL}", "late outcomes are dropped"),
    _caught("M_SKIPSETTLE", PROTOCOL, f"POL=ASK {SMALL}", "a doubt is settled only while its condition holds"),
    _caught("M_WRONGPERSON", PROTOCOL, f"POL=HOLD {SMALL}", "a person is wrong about the outside"),
    _caught("M_NOSUSPECTS", PROTOCOL, "POL=ASK RESTORE TROUBLE=0 WBUD=1 PBUD=0 MAXC=5", "nothing is suspect after a restore"),
]  # fmt: skip
