/*
 * mutations.pml - holes (H_: the table as it was first written) and mutations (M_: mistakes), put into rows of the table, one in a run.
 * Each must be caught.  Those that are not of a row stand in the world, where they are met.
 */
#ifdef M_CLEARDOUBT       /* a later definite failure clears an earlier doubt */
#undef on_5
#undef on_6
#undef do_5
#define on_5(o) (A_st[o] == BEGUN)
#define on_6(o) (false)
#define do_5(o) A_st[o] = FAILED; A_un[o] = 0; A_fail[o] = A_fail[o] + counts
#endif
#ifdef M_DEADCALLFAILED   /* a dead worker's call has failed */
#undef do_8
#define do_8(o) A_st[o] = FAILED; A_un[o] = 0; A_inc[o] = me; A_fail[o] = A_fail[o] + 1
#endif
#ifdef H_HANDLERFAILS     /* a handler that raises is a failed call: an outcome in hand becomes a new call */
#undef do_3
#define do_3(o) A_st[o] = FAILED; A_fail[o] = A_fail[o] + 1; A_un[o] = 0
#endif
#ifdef H_STOPDELETES      /* a stop clears a doubt */
#undef on_12
#undef on_13
#undef do_13
#undef on_14
#define on_12(o) (false)
#define on_13(o) (A_st[o] == BEGUN && A_fail[o] > 0)
#define do_13(o) A_st[o] = FAILED; A_un[o] = 0
#define on_14(o) (A_st[o] == BEGUN && A_fail[o] == 0)
#endif
#ifdef H_NOBOUND          /* a doubt has no bound */
#undef on_23
#define on_23(o) (A_st[o] == DOUBT && POL == SAMEKEY && in_time(o) && key_young(o))
#endif
#ifdef H_KEYAGE           /* the key is as old as the latest call */
#undef begun_first_at
#define begun_first_at(o) A_old[o] = 0
#endif
#ifdef H_DEADLINEBACK     /* a new call's deadline takes the place of a later one of a call in doubt */
#undef begun_deadline
#define begun_deadline(o) A_dl[o] = NEW_CALL
#endif
#ifdef M_ABSENTEARLY      /* Absent is believed at once */
#undef on_27
#undef on_28
#undef on_29
#define on_27(o) (false)
#define on_28(o) (A_st[o] == DOUBT && holds(o))
#define on_29(o) (A_st[o] == DOUBT && exists(o) && !holds(o))
#endif
#ifdef H_ABSENTLATE       /* Absent is as late as its answer, and not as its question */
#undef on_27
#undef on_28
#undef on_29
#define on_27(o) (A_st[o] == DOUBT && exists(o) && !lands_over(o))
#define on_28(o) (A_st[o] == DOUBT && holds(o) && lands_over(o))
#define on_29(o) (A_st[o] == DOUBT && exists(o) && !holds(o) && lands_over(o))
#endif
#ifdef H_ABSENTOCC        /* 'condition holds', without the occurrence: harmless alone, since 'failed' asks again */
#undef on_28
#undef on_29
#define on_28(o) (A_st[o] == DOUBT && condition && asked_late(o))
#define on_29(o) (A_st[o] == DOUBT && exists(o) && !(condition) && asked_late(o))
#endif
#ifdef H_FAILEDOCC        /* the same for 'failed' */
#undef on_32
#undef on_33
#undef on_34
#undef on_35
#define on_32(o) (A_st[o] == FAILED && !(condition))
#define on_33(o) (A_st[o] == FAILED && condition && spent(o))
#define on_34(o) (false)
#define on_35(o) (A_st[o] == FAILED && condition && !spent(o))
#endif
#ifdef M_STALERETRY       /* a failed attempt is tried again however late it is */
#undef on_73
#undef on_33
#undef on_35
#define on_73(o) (false)
#define on_33(o) (A_st[o] == FAILED && holds(o) && spent(o) && !blocked(o))
#define on_35(o) (A_st[o] == FAILED && holds(o) && !spent(o) && !blocked(o))
#endif
#ifdef M_STALEKEY         /* a doubt is settled by a second call under its key however late it is */
#undef on_22
#undef on_23
#undef on_24
#undef on_25
#define on_22(o) (A_st[o] == DOUBT && POL == SAMEKEY && holds(o) && key_young(o) && spent(o))
#define on_23(o) (A_st[o] == DOUBT && POL == SAMEKEY && holds(o) && key_young(o) && !spent(o))
#define on_24(o) (A_st[o] == DOUBT && POL == SAMEKEY && exists(o) && !(holds(o) && key_young(o)) && HAS_FIND)
#define on_25(o) (A_st[o] == DOUBT && POL == SAMEKEY && exists(o) && !(holds(o) && key_young(o)) && !HAS_FIND)
#endif
#ifdef M_STALEAGAIN       /* the same under again() */
#undef on_72
#undef on_20
#undef on_21
#define on_72(o) (false)
#define on_20(o) (A_st[o] == DOUBT && POL == REPEAT && holds(o) && spent(o))
#define on_21(o) (A_st[o] == DOUBT && POL == REPEAT && holds(o) && !spent(o))
#endif
#ifdef M_EXPIREDDOUBT     /* the expired handler answers for a doubt that nobody settled */
#undef on_18
#undef on_72
#define on_18(o) (A_st[o] == DOUBT && POL == LOOKUP && exists(o) && !(holds(o) && expired(o)))
#define on_72(o) (A_st[o] == DOUBT && (POL == REPEAT || POL == LOOKUP) && holds(o) && expired(o))
#endif
#ifdef M_EXPIREDALONGSIDE /* the expired handler asks nobody whether another call is in the air on its record */
#undef on_73
#undef on_34
#define on_73(o) (A_st[o] == FAILED && holds(o) && expired(o))
#define on_34(o) (A_st[o] == FAILED && in_time(o) && blocked(o))
#endif
#ifdef M_EXPIREDFORGETS   /* an expired handler that fails clears a doubt under again() */
#undef on_75
#undef on_76
#undef do_76
#define on_75(o) (false)
#define on_76(o) ((A_st[o] == DOUBT || A_st[o] == FAILED || (A_st[o] == BEGUN && !A_un[o])) && !spent_then(o))
#define do_76(o) A_st[o] = FAILED; A_un[o] = 0; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0
#endif
#ifdef M_LATEDROPPED      /* a late outcome is dropped wherever its attempt is */
#undef do_37
#undef do_38
#undef do_39
#undef do_40
#undef do_41
#undef do_42
#undef do_43
#undef do_44
#define do_37(o) skip
#define do_38(o) skip
#define do_39(o) skip
#define do_40(o) skip
#define do_41(o) skip
#define do_42(o) skip
#define do_43(o) skip
#define do_44(o) skip
#endif
#ifdef H_LATEGONE         /* a late outcome is dropped where the attempt is gone */
#undef do_37
#define do_37(o) skip
#endif
#ifdef H_RETRYDROPS       /* a person's retry does not look at the outcome in hand */
#undef on_48
#undef on_49
#undef do_49
#define on_48(o) (false)
#define on_49(o) (A_st[o] == HELD && !A_un[o])
#define do_49(o) A_st[o] = FAILED; A_fail[o] = 0; A_out[o] = 0
#endif
#ifdef H_PERSONEARLY      /* a person need not wait until the call can no longer be on its way */
#undef on_54
#undef on_56
#undef on_57
#define on_54(o) (false)
#define on_56(o) (A_st[o] == HELD && A_un[o] && A_out[o] == 0 && holds(o))
#define on_57(o) (A_st[o] == HELD && A_un[o] && A_out[o] == 0 && !holds(o))
#endif
#ifdef H_FORGETHOLDS      /* what is held may be forgotten while its condition holds */
#undef on_63
#undef on_64
#undef on_65
#undef do_65
#define on_63(o) (false)
#define on_64(o) (false)
#define on_65(o) (A_st[o] == HELD)
#define do_65(o) wipe(o)
#endif
