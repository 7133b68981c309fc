"""The cases to check: each configuration of each model, each hole and each mutation, with the expected result. The module runs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One run of a model with its expected result.

    says: what the case shows. caught: whether an invariant must be violated; otherwise the run must end without a violation.
    quick: whether `--quick` includes the case. large: whether it has more than half a million states, so that optimised code is quicker.
    """

    name: str
    model: str
    settings: str
    says: str
    caught: bool = False
    quick: bool = False
    large: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """The settings as options of spin."""
        return tuple(f"-D{word}" for word in self.settings.split())


PROTOCOL, BLOCKING, CAREFUL, WITNESS = "protocol.pml", "blocking.pml", "careful.pml", "witness.pml"
SMALL = "TROUBLE=2 WBUD=1 PBUD=1 MAXC=5"
PERSON = "TROUBLE=1 WBUD=0 PBUD=1 MAXC=4"
POLICIES = ("REPEAT", "SAMEKEY", "LOOKUP", "HOLD")


LARGE = {"repeat, writer", "samekey, writer", "repeat, restore"}
LARGE |= {"blocking, fact", "careful", "careful, calm"}


def _passing_case(name: str, model: str, settings: str, says: str, *, quick: bool = False) -> Case:
    return Case(name, model, settings, says, quick=quick, large=name in LARGE)


def _caught_case(name: str, model: str, settings: str, says: str, *, quick: bool = True) -> Case:
    return Case(name, model, f"{settings} {name}", says, caught=True, quick=quick)


def _cases_of_policies() -> list[Case]:
    found = []
    for policy in POLICIES:
        low = policy.lower()
        found += [
            _passing_case(
                f"{low}, faults",
                PROTOCOL,
                f"POL={policy} BOUNDED TROUBLE=2 WBUD=0 PBUD=0 MAXC=5",
                "two faults; the number of calls has a bound",
            ),
            _passing_case(
                f"{low}, writer",
                PROTOCOL,
                f"POL={policy} TROUBLE=1 WBUD=2 PBUD=1 MAXC=6",
                "one fault, the writer acts twice, a person once",
            ),
            _passing_case(
                f"{low}, person",
                PROTOCOL,
                f"POL={policy} TROUBLE=1 WBUD=1 PBUD=2 MAXC=6",
                "one fault, the writer acts once, a person twice",
            ),
            _passing_case(
                f"{low}, quick",
                PROTOCOL,
                f"POL={policy} TROUBLE=1 WBUD=1 PBUD=1 MAXC=5",
                "one fault, one act of the writer, one of a person",
                quick=True,
            ),
            _passing_case(
                f"{low}, restore",
                PROTOCOL,
                f"POL={policy} RESTORE TROUBLE=0 PBUD=0 "
                + {"REPEAT": "WBUD=0 MAXC=6", "LOOKUP": "WBUD=0 MAXC=5"}.get(policy, "WBUD=1 MAXC=5"),
                "a backup is taken at some moment and put back at some other",
            ),
        ]
    return found


CASES = [
    *_cases_of_policies(),
    _passing_case("lookup, overtaken", PROTOCOL, "POL=LOOKUP WITH_OVERTAKEN TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "with an overtaken handler, or a fact"),
    _passing_case("lookup, dropped", PROTOCOL, "POL=LOOKUP DROP TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "an overtaken outcome is dropped, since its author said so"),
    _passing_case("repeat, gave up", PROTOCOL, "POL=REPEAT GAVEUP TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "with a gave_up handler"),
    _passing_case("lookup, throttled", PROTOCOL, "POL=LOOKUP BUSY TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "Throttled does not count as a failure"),
    _passing_case("same_key, forgotten", PROTOCOL, "POL=SAMEKEY FORGET TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "the provider forgets the key as soon as it may"),
    _passing_case("same_key, asks", PROTOCOL, "POL=SAMEKEY KEYASK FORGET TROUBLE=2 WBUD=0 PBUD=0 MAXC=6", "and there is a lookup to fall back to"),
    _passing_case("same_key, shorter", PROTOCOL, "POL=SAMEKEY KEYASK SHORT NOLOCKLOSS TROUBLE=2 WBUD=1 PBUD=0 MAXC=5", "new code with a shorter timeout: a later deadline stays"),
    _passing_case("lookup, stuck", PROTOCOL, "POL=LOOKUP STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "threads that hang before they send"),
    _passing_case("hold, wrong person", PROTOCOL, "POL=HOLD M_WRONGPERSON NO_AMO TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "a person is wrong: each outcome that is heard is still kept"),
    _passing_case("hold, two words", PROTOCOL, "POL=HOLD M_WRONGPERSON NO_AMO TROUBLE=2 WBUD=0 PBUD=2 MAXC=6", "a person who is wrong, twice, and two faults"),
    _passing_case("hold, one try", PROTOCOL, "POL=HOLD M_WRONGPERSON NO_AMO TIMES=1 TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "a person who is wrong, and a last try that was surely not done"),
    _passing_case("lookup, any words", PROTOCOL, "POL=LOOKUP ANYWORDS TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "a person speaks to attempts that are not held"),
    *[_passing_case(f"{p.lower()}, restore and a fault", PROTOCOL, f"POL={p} RESTORE TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "a backup put back, and one fault anywhere") for p in ("SAMEKEY", "HOLD")],
    _passing_case("hold, call removed", PROTOCOL, "POL=HOLD CHANGED ANYWORDS TROUBLE=1 WBUD=0 PBUD=2 MAXC=4", "new code makes no call any more, and a doubt of the old stands"),
    # ---- it becomes too late
    *[_passing_case(f"{p.lower()}, too late", PROTOCOL, f"POL={p} VALID TROUBLE=1 WBUD={int(p in ('LOOKUP', 'HOLD'))} PBUD=0 MAXC=4", "it becomes too late at some moment, or never", quick=p in ("LOOKUP", "SAMEKEY")) for p in POLICIES],
    _passing_case("same_key, too late, asks", PROTOCOL, "POL=SAMEKEY KEYASK VALID NOLOCKLOSS TROUBLE=2 WBUD=0 PBUD=0 MAXC=4", "with a lookup to fall back to"),
    _passing_case("lookup, too late, person", PROTOCOL, "POL=LOOKUP VALID TROUBLE=1 WBUD=0 PBUD=1 MAXC=4", "and a person once"),
    _passing_case("repeat, too late, tries", PROTOCOL, "POL=REPEAT VALID NOLOCKLOSS TIMES=3 TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "an expired handler that fails, and is tried again"),
    _passing_case("lookup, too late, restore", PROTOCOL, "POL=LOOKUP VALID RESTORE TROUBLE=0 WBUD=0 PBUD=0 MAXC=5", "and a backup put back, while the clock goes on"),
    _passing_case("blocking, too late", BLOCKING, "P0=LOOKUP P1=HOLD NOFACT VALID TROUBLE=1 WBUD=0", "two reactions with a call, and too late for one of them"),
    _caught_case("M_STALERETRY", PROTOCOL, "POL=LOOKUP VALID TROUBLE=1 WBUD=0 PBUD=0 MAXC=4", "a failed attempt is tried again however late"),
    _caught_case("M_STALEKEY", PROTOCOL, "POL=SAMEKEY VALID TROUBLE=1 WBUD=0 PBUD=0 MAXC=4", "a doubt is called again under its key however late"),
    _caught_case("M_STALEAGAIN", PROTOCOL, "POL=REPEAT VALID TROUBLE=1 WBUD=0 PBUD=0 MAXC=4", "a doubt is called again under InDoubt.repeat() however late"),
    _caught_case("M_EXPIREDDOUBT", PROTOCOL, "POL=LOOKUP VALID TROUBLE=1 WBUD=0 PBUD=0 MAXC=4", "the expired handler answers for a doubt that nobody settled"),
    _caught_case("M_EXPIREDALONGSIDE", BLOCKING, "P0=LOOKUP P1=HOLD NOFACT VALID TROUBLE=1 WBUD=0", "the expired handler writes beside another's call"),
    _caught_case("M_EXPIREDFORGETS", PROTOCOL, "POL=REPEAT VALID NOLOCKLOSS TIMES=3 TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "an expired handler that fails clears a doubt"),
    _caught_case("M_EXPIREDSUSPECT", PROTOCOL, "POL=HOLD VALID RESTORE TROUBLE=0 WBUD=2 PBUD=0 MAXC=4", "after a restore what is too late is answered without asking", quick=False),
    # ---- different reactions on one record
    _passing_case("blocking, no call", BLOCKING, "P1=NOCALL NOFACT TROUBLE=2 WBUD=1", "a call beside a reaction without one, on one record", quick=True),
    _passing_case("blocking, two calls", BLOCKING, "P1=HOLD NOFACT TROUBLE=1 WBUD=1", "two reactions with a call on one record", quick=True),
    _passing_case("blocking, again", BLOCKING, "P0=HOLD P1=LOOKUP NOFACT TROUBLE=2 WBUD=0", "the same with two faults"),
    _passing_case("blocking, fact", BLOCKING, "P1=NOCALL TROUBLE=1 WBUD=0", "and a third with a fact, which goes alongside"),
    _passing_case("blocking, waits", BLOCKING, "P0=HOLD P1=LOOKUP NOFACT WAITS TROUBLE=2 WBUD=0", "what waits is looked at again and again, and stays"),
    _caught_case("M_NOBLOCK", BLOCKING, "P1=NOCALL NOFACT TROUBLE=1 WBUD=0", "no attempt keeps another reaction out (hazard 13)"),
    _caught_case("M_ONESTATEMENT", BLOCKING, "P1=NOCALL NOFACT TROUBLE=1 WBUD=0", "what blocks is not asked again after the lock (hazard 17)"),
    _caught_case("M_HELDFREES", BLOCKING, "P0=HOLD P1=NOCALL NOFACT TROUBLE=1 WBUD=0", "what is held unsure keeps nobody out"),
    _caught_case("M_FACTBLOCKS", BLOCKING, "P0=HOLD P1=NOCALL TROUBLE=1 WBUD=0", "a fact is kept out by others: it would wait for a person"),
    # ---- careful mode
    _passing_case("careful", CAREFUL, "KILLS=1", "four records, one of which kills; one kill from outside"),
    _passing_case("careful, quick", CAREFUL, "KILLS=0", "no kill from outside", quick=True),
    _passing_case("careful, calm", CAREFUL, "KILLS=0 CALM=1", "careful mode ends once, and begins again"),
    _passing_case("careful, cut", CAREFUL, "KILLS=0 CUT=1", "a connection is cut, so that a living worker finds begun what it does not carry out"),
    _passing_case("careful, calls", CAREFUL, "KILLS=0 CALLS", "the same of calls, under InDoubt.repeat()", quick=True),
    _passing_case("careful, calls, kill", CAREFUL, "KILLS=1 CALLS", "and one kill from outside"),
    _caught_case("M_NOTALONE", CAREFUL, "KILLS=0", "who is suspected comes again in company"),
    _caught_case("M_NOATTEMPTS", CAREFUL, "KILLS=0", "nothing is written before the batch"),
    _caught_case("M_COMPANYHELD", CAREFUL, "KILLS=0", "whoever was in the company counts as having killed"),
    _caught_case("M_HELDATONCE", CAREFUL, "KILLS=1", "one death alone is enough to be held"),
    _caught_case("M_CALLNUMBERED", CAREFUL, "KILLS=0", "what makes no call has a call number, and comes in doubt"),
    # ---- the witness
    _passing_case("witness, lookup", WITNESS, "POL=LOOKUP TROUBLE=1", "a backup is put back without a sign, and one fault", quick=True),
    _passing_case("witness, hold", WITNESS, "POL=HOLD TROUBLE=1", "the same under hold"),
    _caught_case("M_LAGGING", WITNESS, "POL=LOOKUP TROUBLE=1", "memory adds up by itself: one behind, once a COMMIT brought no answer"),
    _caught_case("M_UNCOMPARED", WITNESS, "POL=LOOKUP TROUBLE=0 M_SILENT M_FORGETFUL", "the begin's transaction does not compare, and nobody else looks"),
    _caught_case("M_SILENT", WITNESS, "POL=LOOKUP TROUBLE=1", "a lost connection is made anew, and nobody looks back"),
    _caught_case("M_WITNESSLATE", WITNESS, "POL=LOOKUP TROUBLE=1", "the witness is written after the call went out"),
    _caught_case("L_CLEANSTOP", WITNESS, "POL=LOOKUP TROUBLE=0", "a limit: after a clean end no witness is left to tell"),
    _caught_case("L_NOWITNESS", WITNESS, "POL=LOOKUP TROUBLE=1", "a limit: without a witness a cold start shows no sign"),
    _caught_case("L_APART", WITNESS, "POL=LOOKUP TROUBLE=1", "a limit: a witness folder that the other worker does not see"),
    _caught_case("L_TORN", WITNESS, "POL=LOOKUP TROUBLE=0", "a limit: stopped between a begin's commit and its witness"),
    # ---- code is deployed, whose calls go to another service
    *[_passing_case(f"{p.lower()}, other code", PROTOCOL, f"POL={p} OTHERCODE=2 NOLOCKLOSS TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "another service, forward and back, and two faults", quick=p == "LOOKUP") for p in ("SAMEKEY", "LOOKUP", "HOLD")],
    _passing_case("same_key, other code, asks", PROTOCOL, "POL=SAMEKEY KEYASK FORGET OTHERCODE=1 NOLOCKLOSS TROUBLE=1 WBUD=1 PBUD=0 MAXC=5", "with a lookup to fall back to"),
    _passing_case("lookup, other code, person", PROTOCOL, "POL=LOOKUP OTHERCODE=1 NOLOCKLOSS TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "and the writer and a person once"),
    *[_passing_case(f"{n}, other find", PROTOCOL, f"{p} OTHERCODE=2 OTHERFIND NOLOCKLOSS TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "the lookup asks another service, forward and back") for n, p in (("lookup", "POL=LOOKUP"), ("same_key", "POL=SAMEKEY KEYASK FORGET"))],
    _passing_case("repeat, other code", PROTOCOL, "POL=REPEAT OTHERCODE=1 TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "under InDoubt.repeat(), and locks are lost"),
    _caught_case("M_NEWFIND", PROTOCOL, "POL=SAMEKEY KEYASK FORGET OTHERCODE=2 OTHERFIND NOLOCKLOSS TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "a second call under one key forgets which find knows of the first", quick=False),
    _caught_case("M_OTHERCODE", PROTOCOL, "POL=LOOKUP OTHERCODE=1 NOLOCKLOSS TROUBLE=2 WBUD=0 PBUD=0 MAXC=5", "nobody looks with which service a call was begun"),
    # ---- the server is started anew, and every lock on it is free
    *[_passing_case(f"{p.lower()}, server", PROTOCOL, f"POL={p} SERVER=2 NOLOCKLOSS TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "the server is started anew twice under two workers, and one fault", quick=p in ("LOOKUP", "SAMEKEY")) for p in POLICIES],
    _passing_case("hold, server, person", PROTOCOL, "POL=HOLD SERVER=1 NOLOCKLOSS TROUBLE=1 WBUD=1 PBUD=1 MAXC=4", "and the writer and a person once"),
    *[_passing_case(f"{p.lower()}, failover", PROTOCOL, f"POL={p} RESTORE SERVER=1 FAILOVER NOLOCKLOSS TROUBLE={int(p in ('HOLD', 'LOOKUP'))} WBUD=0 PBUD=0 MAXC=5", "a failover loses conclusions and no begin, and shows no sign", quick=p == "LOOKUP") for p in POLICIES],
    _caught_case("M_GONEBEGUN", PROTOCOL, "POL=LOOKUP RESTORE SERVER=1 FAILOVER NOLOCKLOSS TROUBLE=0 WBUD=0 PBUD=0 MAXC=5", "what its living worker does not know did not go out, though its conclusion may be lost"),
    _caught_case("M_NOGRACE", PROTOCOL, "POL=LOOKUP SERVER=1 NOLOCKLOSS TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "a lock that the server's end freed is taken for a death at once"),
    _caught_case("M_NEWNUMBER", PROTOCOL, "POL=LOOKUP SERVER=1 NOLOCKLOSS TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "who lives comes back under another number"),
    # ---- holes: the table as it was first written
    _caught_case("H_STOPDELETES", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a stop clears a doubt"),
    _caught_case("H_FAILEDOCC", PROTOCOL, f"POL=LOOKUP {SMALL}", "'failed' forgets the occurrence"),
    _caught_case("H_CALLNO", PROTOCOL, "POL=LOOKUP SAMEOCC NOLOCKLOSS TROUBLE=3 WBUD=2 PBUD=0 MAXC=5", "the fence is a number that starts at 1 again", quick=False),
    _caught_case("H_ABSENTLATE", PROTOCOL, f"POL=LOOKUP {SMALL}", "the time of Absent is that of its answer"),
    _caught_case("H_FINDUNFENCED", PROTOCOL, f"POL=LOOKUP {SMALL}", "a lookup's answer is not fenced"),
    _caught_case("H_KEYAGE", PROTOCOL, "POL=SAMEKEY FORGET NOLOCKLOSS TROUBLE=3 WBUD=0 PBUD=0 MAXC=6", "the key is as old as the latest call", quick=False),
    _caught_case("H_RETRYDROPS", PROTOCOL, f"POL=LOOKUP {PERSON}", "retry does not look at the outcome in hand"),
    _caught_case("H_HANDLERFAILS", PROTOCOL, f"POL=LOOKUP {SMALL}", "a handler that raises is a failed call"),
    _caught_case("H_COMMITUNKNOWN", PROTOCOL, f"POL=LOOKUP {SMALL}", "a begun row that its living worker does not know is left"),
    _caught_case("H_NOBOUND", PROTOCOL, "POL=SAMEKEY BOUNDED TROUBLE=5 WBUD=0 PBUD=0 MAXC=6", "a doubt has no bound", quick=False),
    _caught_case("H_FORGETHOLDS", PROTOCOL, f"POL=HOLD {PERSON}", "what is held may be forgotten while its condition holds"),
    _caught_case("H_PERSONEARLY", PROTOCOL, f"POL=HOLD {PERSON}", "a person need not wait for the deadline"),
    _caught_case("H_ANYSETTLES", PROTOCOL, "POL=LOOKUP STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "a doubt has no owner"),
    _caught_case("H_DEADLINESTAYS", PROTOCOL, "POL=LOOKUP STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "settle_after does not run from adoption"),
    _caught_case("H_THREADENDS", PROTOCOL, "POL=LOOKUP STUCK TROUBLE=3 WBUD=0 PBUD=0 MAXC=4", "settle_after does not run from the end of a thread"),
    _caught_case("H_DEADLINEBACK", PROTOCOL, "POL=SAMEKEY KEYASK SHORT NOLOCKLOSS TROUBLE=2 WBUD=1 PBUD=0 MAXC=5", "a new call's deadline takes the place of a later one", quick=False),
    _caught_case("H_SAMEOCC", PROTOCOL, "POL=LOOKUP SAMEOCC TROUBLE=1 WBUD=2 PBUD=1 MAXC=5", "a condition recurs, and no occurrence tells (hazard 1)"),
    _caught_case("H_LATEGONE", PROTOCOL, f"POL=HOLD M_WRONGPERSON NO_AMO {SMALL}", "a late outcome is dropped where the attempt is gone", quick=False),
    _caught_case("H_SUSPECTKEEP", PROTOCOL, "POL=HOLD RESTORE TROUBLE=1 WBUD=0 PBUD=0 MAXC=5", "attempts in the backup are no suspects"),
    _caught_case("H_SUSPECTDEADLINE", PROTOCOL, "POL=LOOKUP RESTORE TROUBLE=0 WBUD=0 PBUD=0 MAXC=5", "suspects have no deadline"),
    _caught_case("H_SUSPECTONCE", PROTOCOL, "POL=HOLD RESTORE TROUBLE=0 WBUD=2 PBUD=0 MAXC=4", "only what matches at the restart is suspect", quick=False),
    _passing_case("H_ABSENTOCC", PROTOCOL, "POL=LOOKUP H_ABSENTOCC TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "Absent forgets the occurrence: harmless alone, 'failed' asks again"),
    _caught_case("H_NOBLOCK", PROTOCOL, "POL=LOOKUP TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "other occurrences of the same reaction do not block (hazard 57)"),
    _caught_case("H_OUTCOMEFREES", PROTOCOL, "POL=LOOKUP TROUBLE=1 WBUD=1 PBUD=1 MAXC=5", "what is held with an outcome lets its own reaction call for the next occurrence"),
    _caught_case("L_TOLD", PROTOCOL, "POL=LOOKUP M_FREECLOCK NO_AMO TROUBLE=3 WBUD=0 PBUD=0 MAXC=4", "a limit (hazard 6): a call that was told absent acts; its outcome ends the doubt of the next"),
    # ---- mutations: mistakes
    _caught_case("M_KEYPERRECORD", PROTOCOL, "POL=SAMEKEY TROUBLE=2 WBUD=2 PBUD=0 MAXC=5", "a key per record", quick=False),
    _caught_case("M_KEYPERCALL", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a key per call"),
    _caught_case("M_CLEARDOUBT", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a later NotDone clears the doubt"),
    _caught_case("M_DEADCALLFAILED", PROTOCOL, f"POL=HOLD {SMALL}", "a dead worker's call has failed"),
    _caught_case("M_UNFENCED", PROTOCOL, f"POL=SAMEKEY {SMALL}", "a conclusion is not fenced"),
    _caught_case("M_NODEADLINE", PROTOCOL, f"POL=LOOKUP {SMALL}", "the deadline is not looked at before the call"),
    _caught_case("M_ABSENTEARLY", PROTOCOL, f"POL=LOOKUP {SMALL}", "Absent is believed at once"),
    _caught_case("M_FREECLOCK", PROTOCOL, f"POL=LOOKUP {SMALL}", "a call acts later than its deadline plus settle_after (hazard 6)"),
    _caught_case("M_NOLIVENESS", PROTOCOL, "POL=LOOKUP STUCK TROUBLE=2 WBUD=0 PBUD=1 MAXC=5", "a living worker's attempts are adopted"),
    _caught_case("M_RUNNINGMARK", PROTOCOL, f"POL=LOOKUP {SMALL}", "a mark says who runs, and no lock"),
    _caught_case("M_LATEDROPPED", PROTOCOL, f"POL=HOLD {SMALL}", "late outcomes are dropped"),
    _caught_case("M_SKIPSETTLE", PROTOCOL, f"POL=LOOKUP {SMALL}", "a doubt is settled only while its condition holds"),
    _caught_case("M_WRONGPERSON", PROTOCOL, f"POL=HOLD {SMALL}", "a person is wrong about the service", quick=False),
    _caught_case("M_NOSUSPECTS", PROTOCOL, "POL=LOOKUP RESTORE TROUBLE=0 WBUD=0 PBUD=0 MAXC=5", "nothing is suspect after a restore"),
]  # fmt: skip
