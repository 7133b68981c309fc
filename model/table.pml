/*
 * table.pml - the transitions of an attempt, each row once: when it is met, and what becomes of which column. Included by every model
 * here; says nothing of the world.
 *
 * A row is a comment and two macros.  tests/model/ reads all three, and compares them with src/groundstate/rules/attempt.py:
 *
 *     ROW n | event | what happened, as in tests/rules/table.py | from | to | columns that change
 *     on_n(o)   the guard: the rows of one event exclude each other
 *     do_n(o)   what is written.  A column in brackets is not modelled (time of the next look, words).
 *
 * Columns: A_st state, A_un unsure, A_inc worker, A_c call, A_no call_no, A_fail failures, A_dl deadline, A_out outcome,
 * A_old first_at (1: too old to call again under it), A_tog together, A_ends why (at how many unclean ends it was under way; hidden, and so no part
 * of a state, where nobody is ever careful).
 * The model that includes this says what these mean in its world: exists holds expired spent spent_then (with one failure more)
 * lands_over asked_late blocked other_code (today's code cannot settle it) other_call other_lookup (than what it was begun with), `counts` (0 for Throttled, and for an end that was no unclean one), `me` (the life that acts), `given` (the outcomes to be kept), NEW_CALL, later, TOGETHER,
 * deadline_not_before_now.
 */
mtype = { NONE, BEGUN, DOUBT, FAILED, HELD };
#define NOCALL 0
#define REPEAT 1
#define SAMEKEY 2
#define LOOKUP 3
#define HOLD 4

/* pan prints the text of a violated assertion; the number in it is the invariant's name */
#define MUST(tag, x) assert((x) || tag == 0)
/* which rows a run reaches: said by the checker the first time (PLAIN: for spin itself, which carries out no C) */
#ifdef PLAIN
#define ROW(n) skip
#else
c_decl { unsigned char row_reached[128]; };
#define ROW(n) c_code { if (!row_reached[n]) { row_reached[n] = 1; printf("ROW %d\n", n); } }
#endif
#define R(n) :: on_##n(o) -> ROW(n); do_##n(o)
#define NOROW 199               /* an event that no row of the table knows */
#define OR_NO_ROW :: else -> MUST(NOROW, false)

/* what the world has to do with it, where that is more than columns; each model carries it out in the same step */
mtype = { CONCLUDE, OVERTAKEN, ASKED, GIVEN_UP, EXPIRED, HELDNEW, FORGOTTEN, CALLED };
mtype to = NONE;

mtype A_st[N] = NONE;
bit  A_un[N];
byte A_inc[N], A_c[N], A_no[N], A_fail[N], A_dl[N], A_out[N], A_tog[N];
bit  A_old[N];
#ifndef SUSPECTS
hidden
#endif
byte A_ends[N];

#define blocks(o) (A_st[o] == BEGUN || A_un[o])
/* what keeps its own reaction from the record under every other occurrence, until a person settles it */
#define keeps_own(o) (blocks(o) || (A_st[o] == HELD && A_out[o] != 0))
#define key_young(o) (POL != SAMEKEY || !A_old[o])
#define in_time(o) (holds(o) && !expired(o))

/* ---- an outcome is in hand ---- */
/* ROW 1 | returned | the call returned, and its condition holds | begun doubt | conclude | */
#define on_1(o) (holds(o))
#define do_1(o) to = CONCLUDE
/* ROW 2 | returned | the call returned, and its condition no longer holds | begun doubt | overtaken | */
#define on_2(o) (!holds(o))
#define do_2(o) to = OVERTAKEN

/* ROW 3 | refused | the handler refused the outcome | begun doubt failed held | held | state unsure outcome [why] [next_at] [error] */
#define on_3(o) (A_st[o] != NONE)
#define do_3(o) A_st[o] = HELD; A_un[o] = 0; A_out[o] = given

/* ROW 4 | one of several | one of several outcomes was concluded | held | held | state unsure outcome [why] [next_at] [error] */
#define on_4(o) (A_st[o] == HELD)
#define do_4(o) A_st[o] = HELD; A_un[o] = 0; A_out[o] = given

/* ---- begun ---- */
/* ROW 5 | not done | NotDone, sure | begun | failed | state failures [next_at] [error] */
#define on_5(o) (A_st[o] == BEGUN && !A_un[o])
#define do_5(o) A_st[o] = FAILED; A_fail[o] = A_fail[o] + counts
/* ROW 6 | not done | NotDone, unsure | begun | doubt | state failures [next_at] [error] */
#define on_6(o) (A_st[o] == BEGUN && A_un[o])
#define do_6(o) A_st[o] = DOUBT; A_fail[o] = A_fail[o] + counts

/* ROW 7 | unclear | timed out, or raised anything else | begun | doubt | state unsure failures deadline [next_at] [error] */
#define on_7(o) (A_st[o] == BEGUN)
#define do_7(o) A_st[o] = DOUBT; A_un[o] = 1; A_fail[o] = A_fail[o] + 1; deadline_not_before_now(o)

#define made_a_call(o) (A_no[o] > 0 || A_un[o])
#define alone(o) (A_tog[o] == 1)
#define killed_alone(o) (counts && alone(o) && (A_ends[o] >= 2 || (!made_a_call(o) && A_ends[o] >= 1)))
/* ROW 86 | adopted | its worker is no more, a third time, alone | begun | held | state unsure worker failures deadline why [next_at] [error] */
#define on_86(o) (A_st[o] == BEGUN && made_a_call(o) && killed_alone(o))
#define do_86(o) A_st[o] = HELD; A_un[o] = 1; A_inc[o] = me; A_fail[o] = A_fail[o] + (A_tog[o] < 2); A_ends[o] = A_ends[o] + counts; deadline_not_before_now(o)
/* ROW 8 | adopted | its worker is no more | begun | doubt | state unsure worker failures deadline why [next_at] [error] */
#define on_8(o) (A_st[o] == BEGUN && made_a_call(o) && !killed_alone(o))
#define do_8(o) A_st[o] = DOUBT; A_un[o] = 1; A_inc[o] = me; A_fail[o] = A_fail[o] + (A_tog[o] < 2); A_ends[o] = A_ends[o] + counts; deadline_not_before_now(o)
/* ROW 9 | adopted | its worker is no more, no call, a second time, alone | begun | held | state worker failures why [next_at] [error] */
#define on_9(o) (A_st[o] == BEGUN && !made_a_call(o) && killed_alone(o))
#define do_9(o) A_st[o] = HELD; A_inc[o] = me; A_fail[o] = A_fail[o] + (A_tog[o] == 1); A_ends[o] = A_ends[o] + counts
/* ROW 10 | adopted | its worker is no more, no call | begun | failed | state worker failures why [next_at] [error] */
#define on_10(o) (A_st[o] == BEGUN && !made_a_call(o) && !killed_alone(o))
#define do_10(o) A_st[o] = FAILED; A_inc[o] = me; A_fail[o] = A_fail[o] + (A_tog[o] == 1); A_ends[o] = A_ends[o] + counts
/* ROW 11 | adopted | its worker is no more, in doubt | doubt | doubt | worker deadline */
#define on_11(o) (A_st[o] == DOUBT)
#define do_11(o) A_inc[o] = me; deadline_not_before_now(o)

/* ROW 78 | not in memory | not in its worker's memory, a call | begun | doubt | state unsure failures deadline [next_at] [error] */
#define on_78(o) (A_st[o] == BEGUN && made_a_call(o))
#define do_78(o) A_st[o] = DOUBT; A_un[o] = 1; A_fail[o] = A_fail[o] + 1; deadline_not_before_now(o)
/* ROW 79 | not in memory | not in its worker's memory, no call, failed before | begun | failed | state [next_at] */
#define on_79(o) (A_st[o] == BEGUN && !made_a_call(o) && A_fail[o] > 0)
#define do_79(o) A_st[o] = FAILED
/* ROW 80 | not in memory | not in its worker's memory, no call | begun | gone | */
#define on_80(o) (A_st[o] == BEGUN && !made_a_call(o) && A_fail[o] == 0)
#define do_80(o) wipe(o)

/* ROW 12 | did not go out | did not go out, unsure | begun | doubt | state [next_at] */
#define on_12(o) (A_st[o] == BEGUN && A_un[o])
#define do_12(o) A_st[o] = DOUBT
/* ROW 13 | did not go out | did not go out, failed before | begun | failed | state [next_at] */
#define on_13(o) (A_st[o] == BEGUN && !A_un[o] && A_fail[o] > 0)
#define do_13(o) A_st[o] = FAILED
/* ROW 14 | did not go out | did not go out | begun | gone | */
#define on_14(o) (A_st[o] == BEGUN && !A_un[o] && A_fail[o] == 0)
#define do_14(o) wipe(o)

/* ---- doubt ---- */
/* ROW 15 | settle | in doubt, record deleted | doubt | held | state [why] [next_at] */
#define on_15(o) (A_st[o] == DOUBT && !exists(o))
#define do_15(o) A_st[o] = HELD
/* ROW 16 | settle | in doubt, and the reaction makes no call any more | doubt | held | state [why] [next_at] */
#define on_16(o) (A_st[o] == DOUBT && POL == NOCALL && exists(o))
#define do_16(o) A_st[o] = HELD
/* ROW 81 | settle | in doubt, begun by other code | doubt | held | state [why] [next_at] */
#define on_81(o) (A_st[o] == DOUBT && POL != NOCALL && exists(o) && other_code(o))
#define do_81(o) A_st[o] = HELD
/* ROW 17 | settle | hold | doubt | held | state [why] [next_at] */
#define on_17(o) (A_st[o] == DOUBT && POL == HOLD && exists(o) && !other_code(o))
#define do_17(o) A_st[o] = HELD
/* ROW 82 | settle | lookup, another lookup | doubt | held | state [why] [next_at] */
#define on_82(o) (A_st[o] == DOUBT && POL == LOOKUP && exists(o) && !other_code(o) && other_lookup(o))
#define do_82(o) A_st[o] = HELD
/* ROW 18 | settle | lookup | doubt | lookup | */
#define on_18(o) (A_st[o] == DOUBT && POL == LOOKUP && exists(o) && !other_code(o) && !other_lookup(o))
#define do_18(o) to = ASKED
/* ROW 19 | settle | repeat, gone | doubt | gone, said | */
#define on_19(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && exists(o) && !holds(o))
#define do_19(o) wipe(o)
/* ROW 72 | settle | repeat, too late | doubt | expired, unsure | */
#define on_72(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && holds(o) && expired(o))
#define do_72(o) to = EXPIRED
/* ROW 20 | settle | repeat, the last try used | doubt | gave up, unsure | */
#define on_20(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && in_time(o) && spent(o))
#define do_20(o) to = GIVEN_UP
/* ROW 21 | settle | repeat | doubt | begun | state worker call call_no deadline first_at together [next_at] [begun_with] */
#define on_21(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && in_time(o) && !spent(o))
#define do_21(o) to = CALLED
/* ROW 22 | settle | same_key, the last try used | doubt | held | state [why] [next_at] */
#define on_22(o) (A_st[o] == DOUBT && POL == SAMEKEY && !other_code(o) && in_time(o) && key_young(o) && spent(o))
#define do_22(o) A_st[o] = HELD
/* ROW 23 | settle | same_key | doubt | begun | state worker call call_no deadline first_at together [next_at] [begun_with] */
#define on_23(o) (A_st[o] == DOUBT && POL == SAMEKEY && !other_code(o) && in_time(o) && key_young(o) && !spent(o))
#define do_23(o) to = CALLED
/* ROW 83 | settle | same_key, gone, too late or too old, another lookup | doubt | held | state [why] [next_at] */
#define on_83(o) (A_st[o] == DOUBT && POL == SAMEKEY && !other_code(o) && exists(o) && !(in_time(o) && key_young(o)) && HAS_FIND && other_lookup(o))
#define do_83(o) A_st[o] = HELD
/* ROW 24 | settle | same_key, gone, too late or too old, with a lookup | doubt | lookup | */
#define on_24(o) (A_st[o] == DOUBT && POL == SAMEKEY && !other_code(o) && exists(o) && !(in_time(o) && key_young(o)) && HAS_FIND && !other_lookup(o))
#define do_24(o) to = ASKED
/* ROW 25 | settle | same_key, gone, too late or too old | doubt | held | state [why] [next_at] */
#define on_25(o) (A_st[o] == DOUBT && POL == SAMEKEY && !other_code(o) && exists(o) && !(in_time(o) && key_young(o)) && !HAS_FIND)
#define do_25(o) A_st[o] = HELD

/* ROW 26 | absent | Absent, record deleted | doubt | held | state [why] [next_at] */
#define on_26(o) (A_st[o] == DOUBT && !exists(o))
#define do_26(o) A_st[o] = HELD
/* ROW 27 | absent | Absent, asked too early | doubt | doubt | [next_at] */
#define on_27(o) (A_st[o] == DOUBT && exists(o) && !asked_late(o))
#define do_27(o) skip
/* ROW 28 | absent | Absent, holds | doubt | failed | state unsure [next_at] */
#define on_28(o) (A_st[o] == DOUBT && holds(o) && asked_late(o))
#define do_28(o) A_st[o] = FAILED; A_un[o] = 0
/* ROW 29 | absent | Absent, gone | doubt | gone | */
#define on_29(o) (A_st[o] == DOUBT && exists(o) && !holds(o) && asked_late(o))
#define do_29(o) wipe(o)

/* ROW 30 | unknown | Unknown | doubt | doubt | [next_at] [error] */
#define on_30(o) (A_st[o] == DOUBT)
#define do_30(o) skip
/* ROW 31 | unknown for too long | Unknown for too long | doubt | held | state [why] [next_at] */
#define on_31(o) (A_st[o] == DOUBT)
#define do_31(o) A_st[o] = HELD

/* ---- failed ---- */
/* ROW 32 | due | failed, gone or deleted | failed | gone | */
#define on_32(o) (A_st[o] == FAILED && !holds(o))
#define do_32(o) wipe(o)
/* ROW 73 | due | failed, too late | failed | expired | */
#define on_73(o) (A_st[o] == FAILED && holds(o) && expired(o) && !blocked(o))
#define do_73(o) to = EXPIRED
/* ROW 33 | due | failed, the last try used | failed | gave up | */
#define on_33(o) (A_st[o] == FAILED && in_time(o) && spent(o) && !blocked(o))
#define do_33(o) to = GIVEN_UP
/* ROW 34 | due | failed, blocked | failed | wait | */
#define on_34(o) (A_st[o] == FAILED && holds(o) && blocked(o))
#define do_34(o) skip
/* ROW 35 | due | failed, due | failed | begun | state worker call call_no deadline first_at together [next_at] [begun_with] */
#define on_35(o) (A_st[o] == FAILED && in_time(o) && !spent(o) && !blocked(o))
#define do_35(o) to = CALLED

/* ---- the expired handler raised or made no progress; begun, in careful mode, for that handler alone ---- */
/* ROW 74 | expired in vain | expired in vain, the last try used | begun doubt failed | held | state failures why [next_at] [error] */
#define on_74(o) ((A_st[o] == DOUBT || A_st[o] == FAILED || (A_st[o] == BEGUN && !A_un[o])) && spent_then(o))
#define do_74(o) A_st[o] = HELD; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0
/* ROW 75 | expired in vain | expired in vain, in doubt | doubt | doubt | state failures why [next_at] [error] */
#define on_75(o) (A_st[o] == DOUBT && !spent_then(o))
#define do_75(o) A_st[o] = DOUBT; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0
/* ROW 76 | expired in vain | expired in vain | begun failed | failed | state failures why [next_at] [error] */
#define on_76(o) ((A_st[o] == FAILED || (A_st[o] == BEGUN && !A_un[o])) && !spent_then(o))
#define do_76(o) A_st[o] = FAILED; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0

/* A call is begun: what is unsure, the key's age and a later deadline stay where an earlier call may have been made. */
#define begun_state(o) A_st[o] = BEGUN
#define begun_worker(o) A_inc[o] = me
#define begun_call(o) A_c[o] = NEW_CALL
#define begun_call_no(o) A_no[o] = A_no[o] + 1
#define begun_first_at(o) A_old[o] = (A_un[o] && A_old[o])
#define begun_deadline(o) A_dl[o] = (A_un[o] -> later(NEW_CALL, A_dl[o]) : NEW_CALL)
#define begun_together(o) A_tog[o] = TOGETHER(o)

/* ---- an outcome that comes late ---- */
/* ROW 36 | late | late, attempt gone, repeat | none | dropped, said | */
#define on_36(o) (A_st[o] == NONE && POL == REPEAT)
#define do_36(o) skip
/* ROW 37 | late | late, attempt gone | none | held anew | */
#define on_37(o) (A_st[o] == NONE && POL != REPEAT)
#define do_37(o) to = HELDNEW
/* ROW 84 | late | late, of another call | begun doubt held | held, loudly | state unsure outcome [why] [next_at] */
#define on_84(o) ((A_st[o] == BEGUN || A_st[o] == DOUBT || A_st[o] == HELD) && blocks(o) && other_call(o))
#define do_84(o) A_st[o] = HELD; A_un[o] = 1; A_out[o] = given
/* ROW 38 | late | late, in doubt | doubt | conclude | */
#define on_38(o) (A_st[o] == DOUBT && !(blocks(o) && other_call(o)))
#define do_38(o) to = CONCLUDE
/* ROW 39 | late | late, failed | failed | conclude, loudly | */
#define on_39(o) (A_st[o] == FAILED)
#define do_39(o) to = CONCLUDE
/* ROW 40 | late | late, begun unsure | begun | conclude | */
#define on_40(o) (A_st[o] == BEGUN && A_un[o] && !other_call(o))
#define do_40(o) to = CONCLUDE
/* ROW 41 | late | late, begun sure | begun | held, loudly | state unsure outcome [why] [next_at] */
#define on_41(o) (A_st[o] == BEGUN && !A_un[o] && !other_call(o))
#define do_41(o) A_st[o] = HELD; A_un[o] = 1; A_out[o] = given
/* ROW 42 | late | late, held with an outcome | held | held | state unsure outcome [why] [next_at] */
#define on_42(o) (A_st[o] == HELD && A_out[o] != 0 && !(A_un[o] && other_call(o)))
#define do_42(o) A_st[o] = HELD; A_un[o] = A_un[o]; A_out[o] = given
/* ROW 43 | late | late, held unsure | held | conclude | */
#define on_43(o) (A_st[o] == HELD && A_out[o] == 0 && A_un[o] && !other_call(o))
#define do_43(o) to = CONCLUDE
/* ROW 44 | late | late, held sure | held | held | state unsure outcome [why] [next_at] */
#define on_44(o) (A_st[o] == HELD && A_out[o] == 0 && !A_un[o])
#define do_44(o) A_st[o] = HELD; A_un[o] = 0; A_out[o] = given

/* ---- a person ---- */
#define nobody_can_tell(o) (POL == NOCALL || POL == HOLD || (!key_young(o) && !HAS_FIND))
/* ROW 45 | retry | retry, failed | failed | failed | failures [next_at] [since] */
#define on_45(o) (A_st[o] == FAILED)
#define do_45(o) A_fail[o] = 0
/* ROW 46 | retry | retry, not held | begun doubt | not now | */
#define on_46(o) (A_st[o] == BEGUN || A_st[o] == DOUBT)
#define do_46(o) skip
/* ROW 47 | retry | retry, an outcome in hand and a call in the air | held | not now | */
#define on_47(o) (A_st[o] == HELD && A_out[o] != 0 && A_un[o] && !lands_over(o))
#define do_47(o) skip
/* ROW 48 | retry | retry, an outcome in hand | held | conclude | */
#define on_48(o) (A_st[o] == HELD && A_out[o] != 0 && !(A_un[o] && !lands_over(o)))
#define do_48(o) to = CONCLUDE
/* ROW 49 | retry | retry, sure | held | failed | state failures why [next_at] [since] */
#define on_49(o) (A_st[o] == HELD && A_out[o] == 0 && !A_un[o])
#define do_49(o) A_st[o] = FAILED; A_fail[o] = 0; A_ends[o] = 0
/* ROW 50 | retry | retry, unsure, and nobody can tell | held | not now | */
#define on_50(o) (A_st[o] == HELD && A_out[o] == 0 && A_un[o] && nobody_can_tell(o))
#define do_50(o) skip
/* ROW 85 | retry | retry, unsure, begun by other code | held | not now | */
#define on_85(o) (A_st[o] == HELD && A_out[o] == 0 && A_un[o] && !nobody_can_tell(o) && other_code(o))
#define do_85(o) skip
/* ROW 51 | retry | retry, unsure | held | doubt | state failures why [next_at] [since] */
#define on_51(o) (A_st[o] == HELD && A_out[o] == 0 && A_un[o] && !nobody_can_tell(o) && !other_code(o))
#define do_51(o) A_st[o] = DOUBT; A_fail[o] = 0; A_ends[o] = 0

/* ROW 52 | settle as absent | settle as absent, not held | begun doubt failed | not now | */
#define on_52(o) (A_st[o] != NONE && A_st[o] != HELD)
#define do_52(o) skip
/* ROW 53 | settle as absent | settle as absent, sure | held | not now | */
#define on_53(o) (A_st[o] == HELD && !A_un[o])
#define do_53(o) skip
/* ROW 54 | settle as absent | settle as absent, too early | held | not now | */
#define on_54(o) (A_st[o] == HELD && A_un[o] && !lands_over(o))
#define do_54(o) skip
/* ROW 55 | settle as absent | settle as absent, an outcome of another call in hand | held | held | unsure */
#define on_55(o) (A_st[o] == HELD && A_un[o] && lands_over(o) && A_out[o] != 0)
#define do_55(o) A_un[o] = 0
/* ROW 56 | settle as absent | settle as absent, holds | held | failed | state unsure failures why [next_at] [since] */
#define on_56(o) (A_st[o] == HELD && A_un[o] && lands_over(o) && A_out[o] == 0 && holds(o))
#define do_56(o) A_st[o] = FAILED; A_un[o] = 0; A_fail[o] = 0; A_ends[o] = 0
/* ROW 57 | settle as absent | settle as absent, gone | held | gone | */
#define on_57(o) (A_st[o] == HELD && A_un[o] && lands_over(o) && A_out[o] == 0 && !holds(o))
#define do_57(o) wipe(o)

/* ROW 58 | settle with an outcome | settle with an outcome, not held | begun doubt failed | not now | */
#define on_58(o) (A_st[o] != NONE && A_st[o] != HELD)
#define do_58(o) skip
/* ROW 59 | settle with an outcome | settle with an outcome, no call | held | not now | */
#define on_59(o) (A_st[o] == HELD && POL == NOCALL)
#define do_59(o) skip
/* ROW 60 | settle with an outcome | settle with an outcome, one in hand and a call in the air | held | not now | */
#define on_60(o) (A_st[o] == HELD && POL != NOCALL && A_out[o] != 0 && A_un[o] && !lands_over(o))
#define do_60(o) skip
/* ROW 61 | settle with an outcome | settle with an outcome | held | conclude | */
#define on_61(o) (A_st[o] == HELD && POL != NOCALL && !(A_out[o] != 0 && A_un[o] && !lands_over(o)))
#define do_61(o) to = CONCLUDE

/* ROW 62 | forget | forget, not held | begun doubt failed | not now | */
#define on_62(o) (A_st[o] != NONE && A_st[o] != HELD)
#define do_62(o) skip
/* ROW 63 | forget | forget, holds | held | not now | */
#define on_63(o) (A_st[o] == HELD && holds(o))
#define do_63(o) skip
/* ROW 64 | forget | forget, too early | held | not now | */
#define on_64(o) (A_st[o] == HELD && !holds(o) && A_un[o] && !lands_over(o))
#define do_64(o) skip
/* ROW 65 | forget | forget | held | gone | */
#define on_65(o) (A_st[o] == HELD && !holds(o) && !(A_un[o] && !lands_over(o)))
#define do_65(o) to = FORGOTTEN

/* ---- what the engine writes by itself, from no pure rule (engine/call/begin.py, engine/recover/restore.py, engine/call/conclude.py) ---- */
/* ENGINE 66 | taken: a new attempt, begun */
/* ENGINE 67 | taken while the reaction is suspect: a new attempt, in doubt */
/* ENGINE 68 | the database went back: begun, failed and in doubt become doubt, unsure */
/* ENGINE 69 | the database went back: held becomes unsure */
/* ENGINE 70 | the database went back: a doubt for each record that matches */
/* ENGINE 71 | a thread that was given up has ended: the deadline is not before now */
/* ENGINE 77 | taken too late: the expired handler alone, without an attempt; one that failed where that raised */
