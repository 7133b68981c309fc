/*
 * protocol.pml - one record, two worker processes (each a line of lives), one provider outside, a writer, a person, and a database that
 * can go back in time. Of what becomes of an attempt it says nothing: that is table.pml's.
 *
 * Parameters (-D)
 *   POL        REPEAT SAMEKEY LOOKUP HOLD
 *   KEYASK     same_key has a lookup to fall back to        FORGET     the provider forgets a key some time after kept_for
 *   WITH_OVERTAKEN an overtaken handler, a fact, or overtaken="same"    DROP       overtaken="drop"
 *   GAVEUP     a gave_up handler
 *   BUSY       NotDone may be Throttled, which does not count  SHORT      one call has an earlier deadline than the one before it
 *   SAMEOCC    the writer may re-enter the condition without changing the occurrence
 *   RESTORE    one backup is taken and put back, each at some moment
 *   SERVER     the database server is started anew, so many times: every lock is free at once, and no worker died of it
 *   FAILOVER   with RESTORE and SERVER: what is put back lost no begin and shows no sign, as a failover that was said to lose nothing
 *   OTHERCODE  so many deploys, forward and back: code whose calls go to another service. Each process goes on with its code until it dies
 *   OTHERFIND  with OTHERCODE: the calls go where they went, and it is the lookup that asks elsewhere
 *   STUCK      a sync call may hang in its thread before its request goes out (no lock is lost then)
 *   TROUBLE    faults in all: crash, lost lock, NotDone, lost request, timeout though done, pause past the deadline, stop, handler
 *              raises, COMMIT unknown, find that answers Unknown, Unknown for too long
 *   VALID      it becomes too late for a record at some moment, or never; its expired handler moves it on, or fails
 *   WBUD PBUD  acts of the writer and of the person       TIMES      tries
 *   NOCC MAXC  occurrences; calls (MAXC <= 8; RaiseMAXC says that a run needs more)
 *   BOUNDED    check BoundedCalls                         NOLOCKLOSS no lock is lost by a living worker
 *   CHANGED    new code is deployed at some moment, whose reaction makes no call
 *   ANYWORDS   a person speaks to attempts that are not held as well, and a worker looks at those that wait
 *   NO_AMO     only OutcomeKept, NotLost, NothingAtRest: for worlds that break the assumptions
 *
 * Time is not counted.  ph[c] of a call c: 0 before its deadline, 1 after it, 2 after deadline + settle_after.  The timing assumption
 * is one guard (AIR_OK): phase 2 is not reached while a request is in the air.  Calls get their deadlines in order (but for SHORT).
 * The check before a call and its sending are one step.  Hints are not modelled: a worker may look at any time.
 *
 * Listed, AtMostOnce (OncePerKey), StickyDoubt, OutcomeKept hold after every step, in check(); Fenced, NoWorkLost, NothingStale,
 * ExpiredSure, BoundedCalls (for Progress) at the step; NotLost and NothingAtRest where nothing can move any more (Quiet), and NoRunningMark there too: adoption waits
 * for no clock.  Every run is finite in faults, so every run ends in Quiet.  REPEAT is exempt from all but NotLost, NothingAtRest,
 * BoundedCalls and Fenced.  After a restore Listed and StickyDoubt are not asked (the outside has effects of a lost time); AtMostOnce is.
 */
#ifndef POL
#define POL LOOKUP
#endif
#ifndef NOCC
#define NOCC 2
#endif
#ifndef MAXC
#define MAXC 5
#endif
#ifndef TROUBLE
#define TROUBLE 2
#endif
#ifndef WBUD
#define WBUD 2
#endif
#ifndef PBUD
#define PBUD 1
#endif
#ifndef TIMES
#define TIMES 2
#endif
#ifdef ANYWORDS
#define WAITS true            /* looks at what waits, and changes nothing */
#else
#define WAITS false
#endif
#define N NOCC
#ifdef OTHERCODE
#ifdef M_OTHERCODE        /* nobody looks what an attempt was begun with */
#define other_code(o) false
#define other_lookup(o) false
#define other_call(o) false
#elif defined(OTHERFIND)
#define other_code(o) false
#define other_call(o) false
#define other_lookup(o) (A_st[o] != NONE && A_code[o] != own_code)
#else
#define other_code(o) (POL != REPEAT && other_call(o))     /* by what the code says that looks at it, or by what the late call was begun with */
#define other_lookup(o) false
#define other_call(o) (A_st[o] != NONE && A_code[o] != own_code)
#endif
#endif
#include "table.pml"
#include "mutations.pml"
#if POL == LOOKUP || defined(KEYASK)
#define FINDS                 /* there is a lookup */
#endif
#ifdef CHANGED                /* new code: the reaction makes no call any more */
byte pol = POL; bit changes = 1;
#undef POL
#define POL pol
#define calls_out (pol != NOCALL)
#else
#define calls_out true
#endif
#define MAXI 10           /* lives; 0 is 'nobody' and its lock is always free */
#define BIT(e) (1 << (e))
#define Listed 101
#define AtMostOnce 102        /* and OncePerKey */
#define StickyDoubt 103
#define Fenced 104
#define NotLost 105
#define NothingAtRest 106
#define BoundedCalls 107
#define OutcomeKept 108
#define NoWorkLost 109
#define NothingStale 111      /* no call is begun for what is too late */
#define ExpiredSure 112       /* what the expired handler answers for was surely not done; but under REPEAT */
#define NoSecondCall 113      /* no call goes out while an effect of another occurrence of its record is in no record and no person has spoken */
#define LivingKept 114        /* nobody takes over the calls of a worker that lives, under SERVER with NOLOCKLOSS */
#define Told 110              /* only under L_TOLD */
#define RaiseMAXC 190         /* not an invariant: give the run more calls */
#define RaiseMAXI 191
#ifdef KEYASK
#define HAS_FIND 1
#else
#define HAS_FIND (POL == LOOKUP)
#endif
#ifdef WITH_OVERTAKEN
#define HAS_OVERTAKEN 1
#else
#define HAS_OVERTAKEN 0
#endif
#ifdef M_FREECLOCK       /* the provider acts later than promised: hazard 6 */
#define AIR_OK(c) true
#else
#define AIR_OK(c) (r_st[c] != 1)
#endif

/* ---- the database: the record; its attempts, one per occurrence, are table.pml's ---- */
bit  rx = 1, rc = 1;  byte ro = 0;                /* exists, condition, occurrence */
bit  suspect, idch;                               /* reaction suspect; identity changed */
#ifdef RESTORE
bit s_rx, s_rc; byte s_ro; mtype s_st[NOCC] = NONE; byte s_inc[NOCC], s_no[NOCC], s_c[NOCC];
bit s_un[NOCC], s_old[NOCC]; byte s_dl[NOCC], s_fail[NOCC], s_out[NOCC], s_taken, s_entries[NOCC]; bit snapped, restored;
#else
#define restored 0
#endif
/* ---- liveness ---- */
bit  lock[MAXI]; byte ninc = 3;                   /* advisory lock / file lock held */
byte inc[2];  bit up[2];
#ifdef SERVER
byte server, on[MAXI];    /* which start of the server it is; on which each life took its lock */
bit graced = 1;           /* 5 s have passed since the server came up, and since the adopter's first connection to it */
byte restarts = SERVER;
#endif
#ifdef OTHERCODE
byte deploys = OTHERCODE; bit newest, code[2], of_code[MAXC], own_code; byte A_code[NOCC];   /* own_code: whose code looks, within a step */
byte at[2];               /* effects at each service */
#define code_of(p) code[p]
#define with_code(k) own_code = k
#define whoever own_code = 0
#define seen_by(p, o) (effects_of(o) & at[code[p]])
#ifdef OTHERFIND
#define key_of(o) o
#else
#define key_of(o) (o + NOCC * code[p])
#endif
#else
#define with_code(k) skip
#define whoever skip
#define seen_by(p, o) effects_of(o)
#define key_of(o) o
#endif
/* ---- calls: the task in the worker, the request outside ---- */
byte ncalls;
byte t_st[MAXC];          /* 0 none 1 begun, not sent 2 waiting 3 ended 4 given up, thread still runs */
byte t_inc[MAXC], t_occ[MAXC], t_no[MAXC], t_key[MAXC];
bit  t_p[MAXC];           /* the process it runs in */
byte r_st[MAXC];          /* 0 not sent 1 in the air 2 landed 3 refused (NotDone) 4 lost */
byte r_rep[MAXC];         /* effect + 1 that a landed request reports */
byte ph[MAXC];            /* 0 before deadline 1 after it 2 after deadline + settle_after */
/* ---- the outside ---- */
byte landed, made[NOCC];   /* effects (bit c = made by call c); effects per occurrence */
byte mem[MAXC + 1];       /* key -> effect + 1 */
/* ---- find running in process p ---- */
byte f_st[2], f_occ[2], f_c[2], f_ans[2]; bit f_late[2];
bit aged[NOCC];            /* how old the key is in truth: counted from its first use */
#ifdef SHORT
bit shorter[MAXC]; bit shorts = 1;
#endif
/* ---- ghosts ---- */
byte taken;               /* effects whose outcome a handler, or a person, has taken */
byte e, given; bit all_of_it, counts = 1;   /* arguments of an event, within its step: the effect in hand, what is then kept; said by a person who knows all */
byte heard;               /* effects whose outcome some worker has in its hands */
byte entries[NOCC];       /* how often the condition was entered at this occurrence */
byte sent[NOCC];   /* calls gone out in one attempt without a person's word */
byte trouble = TROUBLE, wbud = WBUD, pbud = PBUD;
#ifdef VALID
bit too_late[NOCC];
#define expired(o) (too_late[o])
#else
#define expired(o) false
#endif

#define holds(o) (rx && rc && ro == o)
#define effects_of(o) ((((t_occ[0]==o) & (landed)) | ((t_occ[1]==o)*2 & landed) | ((t_occ[2]==o)*4 & landed) | ((t_occ[3]==o)*8 & landed) | OCC4(o) | OCC5(o) | OCC6(o) | OCC7(o)))
#if MAXC > 4
#define OCC4(o) ((t_occ[4]==o)*16 & landed)
#else
#define OCC4(o) 0
#endif
#if MAXC > 5
#define OCC5(o) ((t_occ[5]==o)*32 & landed)
#else
#define OCC5(o) 0
#endif
#if MAXC > 6
#define OCC6(o) ((t_occ[6]==o)*64 & landed)
#else
#define OCC6(o) 0
#endif
#if MAXC > 7
#define OCC7(o) ((t_occ[7]==o)*128 & landed)
#else
#define OCC7(o) 0
#endif
#define open_effects(o) (effects_of(o) & ~taken)
#define air1(c,o) (r_st[c] == 1 && t_occ[c] == o)
#if MAXC > 7
#define air(o) (air1(0,o)||air1(1,o)||air1(2,o)||air1(3,o)||air1(4,o)||air1(5,o)||air1(6,o)||air1(7,o))
#elif MAXC > 6
#define air(o) (air1(0,o)||air1(1,o)||air1(2,o)||air1(3,o)||air1(4,o)||air1(5,o)||air1(6,o))
#elif MAXC > 5
#define air(o) (air1(0,o)||air1(1,o)||air1(2,o)||air1(3,o)||air1(4,o)||air1(5,o))
#elif MAXC > 4
#define air(o) (air1(0,o)||air1(1,o)||air1(2,o)||air1(3,o)||air1(4,o))
#else
#define air(o) (air1(0,o)||air1(1,o)||air1(2,o)||air1(3,o))
#endif
#define dl_over(o) (A_dl[o] == 0 || ph[A_dl[o]-1] == 2)      /* deadline + settle_after is past */
#define i_am(p) (up[p] && !idch)                             /* alive, and has looked at the store's identity */
#define lock_free(i) (!lock[i])

/* ---- what the table asks of this world ---- */
#define exists(o) (rx)
#define condition (rx && rc)
#define spent(o) (A_fail[o] >= TIMES)
#define spent_then(o) (A_fail[o] + 1 >= TIMES)
#define lands_over(o) dl_over(o)
#define asked_late(o) (late_enough)
#define me inc[p]
#define NEW_CALL (ncalls + 1)
#define TOGETHER(o) 0
#ifdef SHORT
#define later(a, b) ((shorter[ncalls] && b == ncalls) -> b : a)
#else
#define later(a, b) (a > b -> a : b)
#endif
#ifdef H_NOBLOCK         /* another occurrence of the same reaction does not block */
#define stands_in_the_way(o) false
#elif defined(H_OUTCOMEFREES)  /* what is held with an outcome keeps nobody out, though nothing is unsure about it */
#define stands_in_the_way(o) blocks(o)
#else
#define stands_in_the_way(o) keeps_own(o)
#endif
#if NOCC > 2
#define blocked(o) ((o!=0 && stands_in_the_way(0)) || (o!=1 && stands_in_the_way(1)) || (o!=2 && stands_in_the_way(2)))
#else
#define blocked(o) ((o!=0 && stands_in_the_way(0)) || (o!=1 && stands_in_the_way(1)))
#endif
/* A thread that hung may have sent its request just before its process died or gave up, so settle_after runs from there. */
#if defined(STUCK) && !defined(H_DEADLINESTAYS)
#define deadline_not_before_now(o) if :: A_dl[o] != 0 && ph[A_dl[o]-1] == 2 -> ph[A_dl[o]-1] = 1 :: else fi
#else
#define deadline_not_before_now(o) skip
#endif

/* Listed, AtMostOnce / OncePerKey, StickyDoubt: after every step */
inline check1(o) {
  if
  :: POL == REPEAT -> skip
  :: else ->
#ifndef NO_AMO
     MUST(AtMostOnce, made[o] <= (entries[o] -> entries[o] : 1));
     MUST(Listed, restored || A_st[o] != NONE || open_effects(o) == 0);
#endif
     skip
  fi;
#ifndef NO_AMO
  /* StickyDoubt, by meaning: 'sure' says that nothing of it is open outside */
  MUST(StickyDoubt, restored || !((A_st[o] == FAILED || (A_st[o] == HELD && !A_un[o] && A_out[o] == 0))
         && (open_effects(o) != 0 || air(o))))
#endif
}
#if NOCC > 2
#define kept (taken | A_out[0] | A_out[1] | A_out[2])
#else
#define kept (taken | A_out[0] | A_out[1])
#endif
inline check() { d_step { check1(0); check1(1);
#if NOCC > 2
  check1(2);
#endif
  MUST(OutcomeKept, POL == REPEAT || (heard & ~kept) == 0)
} }


#ifdef BOUNDED
#define COUNT(o) if :: A_c[o] == c + 1 -> sent[o]++; MUST(BoundedCalls, sent[o] <= TIMES + 1) :: else fi
#else
#define COUNT(o) skip
#endif
inline call_prepared(o) {
  MUST(RaiseMAXC, ncalls < MAXC);
  if :: !A_un[o] -> aged[o] = 0 :: else fi;
#ifdef SHORT
  if :: true :: shorts && ncalls > 0 && ph[ncalls - 1] == 0 -> shorts = 0; shorter[ncalls] = 1 fi;     /* what is past is earlier */
#endif
  t_st[ncalls] = 1; t_inc[ncalls] = me; t_p[ncalls] = p; t_no[ncalls] = A_no[o] + 1;
#ifdef H_FAILEDOCC
  t_occ[ncalls] = ro;
#else
  t_occ[ncalls] = o;
#endif
#ifdef M_KEYPERRECORD
  t_key[ncalls] = 0
#elif defined(M_KEYPERCALL)
  t_key[ncalls] = ncalls
#elif defined(H_FAILEDOCC)
  t_key[ncalls] = ro
#else
  t_key[ncalls] = key_of(o)   /* from the attempt's columns, and from nothing that a new call or a life changes */
#endif
}

#include "events.pml"
#ifdef NO_AMO
#define no_other_open(o) true
#elif NOCC > 2
#define no_other_open(o) ((o==0 || open_effects(0) == 0) && (o==1 || open_effects(1) == 0) && (o==2 || open_effects(2) == 0))
#else
#define no_other_open(o) ((o==0 || open_effects(0) == 0) && (o==1 || open_effects(1) == 0))
#endif
inline begin(o) {
  MUST(NothingStale, !expired(o)); MUST(NoSecondCall, POL == REPEAT || restored || no_other_open(o));
  call_prepared(o);
#ifdef OTHERCODE
#if defined(OTHERFIND) && !defined(M_NEWFIND)
  if :: A_un[o] && A_code[o] != code[p] -> A_code[o] = 2 :: else -> A_code[o] = code[p] fi;     /* two calls may have been made: no lookup knows of both */
#else
  A_code[o] = code[p];
#endif
  of_code[ncalls] = code[p];
#endif
  new_call(o);
  ncalls++
}
#ifdef OTHERCODE
inline wipe2(o) { wipe(o); sent[o] = 0; A_code[o] = 0 }
#else
inline wipe2(o) { wipe(o); sent[o] = 0 }
#endif

#ifdef DROP
#define let_go true
#else
#define let_go (POL == REPEAT && rx && !HAS_OVERTAKEN)     /* what may be done twice is not held when it is no longer wanted */
#endif
/* ---- what the table leaves to this world: `to`, in the same commit; e is the effect whose outcome is in hand ---- */
inline answer(o) {
  if :: to == CONCLUDE -> returned(o) :: else fi;      /* whoever brings it: by the handler where the condition holds, else overtaken */
  if
  :: to == OVERTAKEN && let_go ->                      /* its author said so: a line in the log */
     taken = taken | BIT(e) | (all_of_it -> A_out[o] | effects_of(o) : 0);
     if
     :: !all_of_it && (A_out[o] & ~BIT(e)) != 0 -> given = A_out[o] & ~BIT(e); one_of_several(o)
     :: else -> wipe2(o)
     fi
  :: to == CONCLUDE || (to == OVERTAKEN && !let_go) ->
     if
     :: to == CONCLUDE || (rx && HAS_OVERTAKEN) ->     /* the handler, or the overtaken one */
        if :: to == CONCLUDE -> MUST(NoWorkLost, !(taken & BIT(e))); rc = 0 :: else fi;     /* no old outcome taken for new work */
        taken = taken | BIT(e);
        if
        :: all_of_it -> taken = taken | A_out[o] | effects_of(o); wipe2(o)
        :: !all_of_it && (A_out[o] & ~BIT(e)) != 0 -> given = A_out[o] & ~BIT(e); one_of_several(o)
        :: else -> wipe2(o)
        fi
     :: (to == OVERTAKEN && !(rx && HAS_OVERTAKEN)) || trouble > 0 ->     /* nobody takes it; or the handler raises, or makes no progress */
        if :: to == CONCLUDE || (rx && HAS_OVERTAKEN) -> trouble-- :: else fi;
        given = (all_of_it -> A_out[o] | BIT(e) | effects_of(o) : A_out[o] | BIT(e));
        refused(o)
     fi
  :: to == HELDNEW ->                                  /* the overtaken handler compares; without one it is held anew */
     if
     :: let_go || (rx && HAS_OVERTAKEN) -> taken = taken | BIT(e)
     :: else -> A_st[o] = HELD; A_out[o] = BIT(e)
     fi
  :: to == FORGOTTEN -> taken = taken | effects_of(o) | A_out[o]; wipe2(o)
  :: else
  fi;
  to = NONE; given = 0; e = 0; all_of_it = 0
}
inline carry_out(o) {
  if
  :: to == CALLED && calls_out -> begin(o)
  :: to == CALLED && !calls_out -> rc = 0; wipe2(o)    /* without a call: the handler made progress */
  :: to == ASKED -> f_st[p] = 1; f_occ[p] = o; f_c[p] = A_c[o]; f_late[p] = dl_over(o)
  :: to == GIVEN_UP ->
#ifdef GAVEUP
     if :: rc = 0; wipe2(o) :: trouble > 0 -> trouble--; A_st[o] = HELD fi
#else
     A_st[o] = HELD
#endif
  :: to == EXPIRED ->
     MUST(ExpiredSure, POL == REPEAT || (open_effects(o) == 0 && !air(o)));
     if
     :: rc = 0; wipe2(o)
     :: trouble > 0 -> trouble--;
        if :: A_st[o] == NONE -> A_st[o] = FAILED; A_inc[o] = me; A_fail[o] = 1 :: else -> expired_in_vain(o) fi
     fi
  :: else
  fi;
  if :: to == CALLED || to == ASKED || to == GIVEN_UP || to == EXPIRED -> to = NONE :: else fi
}


/* ---- a worker's part in attempt o ---- */
#ifdef H_ANYSETTLES      /* any worker settles a doubt, though the worker that made the call lives */
#define owner(p,o) true
#else
#define owner(p,o) (A_inc[o] == inc[p])
#endif
#define thread_ended(p,o) (A_c[o] == 0 || t_p[A_c[o]-1] != p || (t_st[A_c[o]-1] != 4 && t_st[A_c[o]-1] != 5))
#ifdef M_NOLIVENESS      /* no lock is asked: another life's attempts are taken over while it lives */
#define adoptable(p,o) (A_inc[o] != inc[p])
#elif defined(M_RUNNINGMARK)
#define adoptable(p,o) false
#elif defined(SERVER) && !defined(M_NOGRACE)   /* a lock that the server's end freed says nothing of a death, until who lives has had time to take it again */
#define adoptable(p,o) (A_inc[o] != inc[p] && lock_free(A_inc[o]) && lock[inc[p]] && (on[A_inc[o]] == server || graced))
#else
#define adoptable(p,o) (A_inc[o] != inc[p] && lock_free(A_inc[o]))
#endif
#if defined(SERVER) && defined(NOLOCKLOSS)
#define lives(o) ((up[0] && inc[0] == A_inc[o]) || (up[1] && inc[1] == A_inc[o]) || (A_c[o] != 0 && t_st[A_c[o]-1] != 0 && t_st[A_c[o]-1] != 3))
#else
#define lives(o) false
#endif
#define settles(p,o) (A_st[o] == DOUBT && i_am(p) && owner(p,o) && thread_ended(p,o) && f_st[p] == 0)
#ifdef M_EXPIREDSUSPECT  /* after a restore what is too late is answered as ever */
#define expires_at_once true
#else
#define expires_at_once (!suspect || !calls_out)
#endif
#define takes(p,o) (i_am(p) && holds(o) && A_st[o] == NONE && !blocked(o))

proctype Worker(bit p; byte o) {
  bit late_enough;
end: do
  :: atomic { if
#ifdef VALID
  :: takes(p,o) && expired(o) && expires_at_once -> ROW(77); to = EXPIRED
#endif
  :: takes(p,o) && !expired(o) && !calls_out -> rc = 0  /* by the handler alone */
  :: takes(p,o) && !expired(o) && calls_out && !suspect ->
       ROW(66); begin(o);
       if :: true
          :: trouble > 0 -> trouble--; t_st[ncalls-1] = 3   /* COMMIT unknown: row there, nobody in memory knows */
       fi
  :: takes(p,o) && calls_out && suspect ->              /* too late or not */
       ROW(67); A_st[o] = DOUBT; A_inc[o] = me; A_un[o] = 1; A_dl[o] = ncalls; A_old[o] = 1
#ifndef H_COMMITUNKNOWN
  /* begun by this very life, and no task of it is known here: no call went out */
  :: i_am(p) && A_st[o] == BEGUN && A_inc[o] == inc[p] && t_st[A_c[o]-1] == 3 && r_st[A_c[o]-1] == 0 ->
       did_not_go_out(o)
#endif
#ifdef FAILOVER   /* it is said to be begun by this very life, which knows of its end, or of nothing: its conclusion is lost */
  :: i_am(p) && lock[inc[p]] && A_st[o] == BEGUN && A_inc[o] == inc[p] && t_st[A_c[o]-1] == 3 && r_st[A_c[o]-1] != 0 ->
#ifdef M_GONEBEGUN        /* what is not in memory did not go out */
       did_not_go_out(o)
#else
       not_in_memory(o)
#endif
#endif
  :: i_am(p) && (A_st[o] == BEGUN || A_st[o] == DOUBT) && adoptable(p,o) -> MUST(LivingKept, !lives(o)); adopted(o)
#ifdef M_SKIPSETTLE      /* an attempt whose condition is gone is not settled, just deleted */
  :: settles(p,o) && !holds(o) -> wipe2(o)
#endif
  :: settles(p,o) -> with_code(code_of(p)); settle(o); whoever
  /* a lookup's answer, put to the attempt that it was asked for */
  :: f_st[p] == 2 && f_occ[p] == o && i_am(p) ->
       late_enough = f_late[p];
       if
#ifdef H_FINDUNFENCED
       :: A_st[o] != DOUBT ->
          if :: A_st[o] == BEGUN && f_ans[p] == 1 && f_late[p] -> A_st[o] = FAILED; A_un[o] = 0 :: else fi
#else
       :: A_st[o] != DOUBT || A_c[o] != f_c[p] || !owner(p,o) -> skip   /* moved on: asked again if need be */
#endif
       :: else ->
          if
          :: f_ans[p] == 0 -> unknown(o)
          :: f_ans[p] == 0 -> unknown_for_too_long(o)
          :: f_ans[p] == 1 -> absent(o)
          :: f_ans[p] >= 2 -> e = f_ans[p] - 2; heard = heard | BIT(e); to = CONCLUDE
          fi
       fi; late_enough = 0; f_st[p] = 0; f_occ[p] = 0; f_c[p] = 0; f_late[p] = 0; f_ans[p] = 0
  :: i_am(p) && A_st[o] == FAILED && (WAITS || !on_34(o)) -> due(o)
     fi; carry_out(o); answer(o); check() }
  od
}

/* ---- one call, from begin to its last word ---- */
#ifdef M_UNFENCED
#define ours(c) (A_st[t_occ[c]] == BEGUN)
#elif defined(H_CALLNO)  /* the fence is call_no, which starts at 1 again after a deletion */
#define ours(c) (A_st[t_occ[c]] == BEGUN && A_no[t_occ[c]] == t_no[c])
#else
#define ours(c) (A_st[t_occ[c]] == BEGUN && A_c[t_occ[c]] == c + 1)
#endif
#define running(c) (up[t_p[c]])
#define i_can(c) (up[t_p[c]] && !idch)
#define who_we_were(c) (inc[t_p[c]] == t_inc[c])
#ifdef M_NODEADLINE
#define before_deadline(c) true
#else
#define before_deadline(c) (ph[c] == 0)
#endif

#ifdef OTHERCODE
#define lands_at(c) at[of_code[c]] = at[of_code[c]] | BIT(c)
#else
#define lands_at(c) skip
#endif
proctype Call(byte c) {
end: do
  :: atomic { if
  /* just before it: still who we were, and not past the deadline; then it goes out */
  :: t_st[c] == 1 && running(c) && who_we_were(c) && before_deadline(c) -> t_st[c] = 2; r_st[c] = 1; COUNT(t_occ[c])
#ifdef STUCK
  /* a sync call hangs before its request goes out (name service, a pool of connections): the check is behind it */
  :: t_st[c] == 1 && running(c) && who_we_were(c) && ph[c] == 0 && trouble > 0 -> trouble--; t_st[c] = 5
  :: t_st[c] == 5 && running(c) -> if :: ours(c) -> t_st[c] = 2 :: else -> t_st[c] = 4 fi; r_st[c] = 1
  :: t_st[c] == 5 && i_can(c) && ours(c) -> unclear(t_occ[c])
#endif
  /* it may not go out: stop, lost lock, deadline past */
  :: t_st[c] == 1 && i_can(c) && (!who_we_were(c) || ph[c] > 0 || trouble > 0) ->
       if :: who_we_were(c) && ph[c] == 0 -> trouble-- :: else fi;
       t_st[c] = 3;
       if :: ours(c) -> did_not_go_out(t_occ[c]) :: else fi
  /* the outside */
  :: r_st[c] == 1 ->                                   /* it lands */
       r_st[c] = 2;
       if
       :: POL == SAMEKEY && mem[t_key[c]] != 0 -> r_rep[c] = mem[t_key[c]]
       :: else -> landed = landed | BIT(c); made[t_occ[c]]++; lands_at(c); r_rep[c] = c + 1; mem[t_key[c]] = c + 1
       fi
  :: r_st[c] == 1 && trouble > 0 -> trouble--; r_st[c] = 3   /* refused, surely */
  :: r_st[c] == 1 && trouble > 0 -> trouble--; r_st[c] = 4   /* lost on the way */
  /* the call returned, in time or late */
  :: r_st[c] == 2 && (t_st[c] == 2 || t_st[c] == 4) && i_can(c) ->
       t_st[c] = 3; e = r_rep[c] - 1; heard = heard | BIT(e); given = A_out[t_occ[c]] | BIT(e);
       if
       :: ours(c) -> MUST(Fenced, A_c[t_occ[c]] == c + 1); to = CONCLUDE
       :: else ->
#ifdef L_TOLD             /* hazard 6: called twice, and the doubt of the second call ends by the outcome of the first */
          MUST(Told, !(A_st[t_occ[c]] == DOUBT && A_c[t_occ[c]] != c + 1 && (landed & BIT(A_c[t_occ[c]] - 1))));
#endif
          with_code(of_code[c]); late(t_occ[c]); whoever
       fi
  /* raised NotDone */
  :: r_st[c] == 3 && (t_st[c] == 2 || t_st[c] == 4) && i_can(c) ->
       t_st[c] = 3;
       if
       :: ours(c) ->
          MUST(Fenced, A_c[t_occ[c]] == c + 1);
#ifdef BUSY
          if :: true :: counts = 0 fi;
#endif
          not_done(t_occ[c])
       :: else fi
  /* timed out, or raised anything else; the thread may go on */
  :: t_st[c] == 2 && i_can(c) && (r_st[c] == 4 || trouble > 0) ->
       if :: r_st[c] != 4 -> trouble--; t_st[c] = 4 :: else -> t_st[c] = 3 fi;
       if :: ours(c) -> unclear(t_occ[c]) :: else fi
  /* a thread that was given up ends, and has no outcome to tell */
  :: t_st[c] == 4 && (r_st[c] == 4 || (r_st[c] == 1 && trouble > 0)) && i_can(c) ->
       if :: r_st[c] == 1 -> trouble-- :: else fi;
       t_st[c] = 3;
       if
       :: A_c[t_occ[c]] == c + 1 && (A_st[t_occ[c]] == DOUBT || A_st[t_occ[c]] == HELD) ->
          ROW(71);
#ifndef H_THREADENDS
          deadline_not_before_now(t_occ[c])
#else
          skip
#endif
       :: else fi
     fi; answer(t_occ[c]); counts = 1; check() }
  od
}

#define quietcall(c,k) (t_key[c] != k || ph[c] == 2 || t_st[c] == 0 || c >= ncalls || (t_st[c] != 1 && r_st[c] != 1))
#if MAXC > 7
#define NOAIR(k) (quietcall(0,k)&&quietcall(1,k)&&quietcall(2,k)&&quietcall(3,k)&&quietcall(4,k)&&quietcall(5,k)&&quietcall(6,k)&&quietcall(7,k))
#elif MAXC > 5
#define NOAIR(k) (quietcall(0,k)&&quietcall(1,k)&&quietcall(2,k)&&quietcall(3,k)&&quietcall(4,k)&&quietcall(5,k))
#elif MAXC > 4
#define NOAIR(k) (quietcall(0,k)&&quietcall(1,k)&&quietcall(2,k)&&quietcall(3,k)&&quietcall(4,k))
#else
#define NOAIR(k) (quietcall(0,k)&&quietcall(1,k)&&quietcall(2,k)&&quietcall(3,k))
#endif


/* ---- the outside answers find ---- */
#ifdef H_KEYAGE           /* the attempt knows the age of its latest call alone */
#define KNOWS_AGE(o) (A_no[o] < 2)
#else
#define KNOWS_AGE(o) 1
#endif
proctype Provider() {
  byte x;
end: do
#ifdef FINDS
  :: atomic { f_st[0] == 1 -> f_st[0] = 2;
       if :: seen_by(0, f_occ[0]) == 0 -> f_ans[0] = 1
          :: else -> x = 0; do :: (seen_by(0, f_occ[0]) & BIT(x)) -> break :: else -> x++ od; f_ans[0] = x + 2; x = 0
          :: trouble > 0 -> trouble--; f_ans[0] = 0 fi }
  :: atomic { f_st[1] == 1 -> f_st[1] = 2;
       if :: seen_by(1, f_occ[1]) == 0 -> f_ans[1] = 1
          :: else -> x = 0; do :: (seen_by(1, f_occ[1]) & BIT(x)) -> break :: else -> x++ od; f_ans[1] = x + 2; x = 0
          :: trouble > 0 -> trouble--; f_ans[1] = 0 fi }
#endif
#ifdef FORGET
  /* kept_for is nearly over: no call is begun under the key from here on ... */
  :: atomic { POL == SAMEKEY && mem[0] != 0 && !aged[0] -> aged[0] = 1; A_old[0] = KNOWS_AGE(0) }
  :: atomic { POL == SAMEKEY && mem[1] != 0 && !aged[1] -> aged[1] = 1; A_old[1] = KNOWS_AGE(1) }
  /* ... and it is forgotten only when none begun before can still arrive */
  :: atomic { aged[0] && mem[0] != 0 && NOAIR(0) -> mem[0] = 0 }
  :: atomic { aged[1] && mem[1] != 0 && NOAIR(1) -> mem[1] = 0 }
#endif
  :: false
  od
}
/* ---- time: deadlines pass in the order of the calls, but for a short one, whose deadline is before its predecessor's ---- */
#define before(c) ((c + MAXC - 1) % MAXC)
#ifdef SHORT
#define after(c) ((c + 1) % MAXC)
#define before2(c) ((c + MAXC - 2) % MAXC)
#define turn(c, x) ((c == 0 || shorter[c] || ph[before(c)] >= x) && (c + 1 >= ncalls || !shorter[after(c)] || ph[after(c)] >= x) && (c < 2 || !shorter[before(c)] || ph[before2(c)] >= x))
#else
#define turn(c, x) (c == 0 || ph[before(c)] >= x)
#endif
proctype Clock(byte c) {
end: do
  :: atomic { c < ncalls && ph[c] == 0 && turn(c, 1) && (t_st[c] != 1 || trouble > 0) ->
       if :: t_st[c] == 1 -> trouble-- :: else fi; ph[c] = 1 }
  /* the timing assumption: nothing lands later than deadline + settle_after */
  :: atomic { c < ncalls && ph[c] == 1 && turn(c, 2) && AIR_OK(c) -> ph[c] = 2 }
  od
}

/* ---- processes die, come back, lose their lock, find out ---- */
#ifdef SERVER
#define took_its_lock(i) lock[i] = 1; on[i] = server
#define cut_by_the_server(p) (on[inc[p]] != server)
#else
#define took_its_lock(i) lock[i] = 1
#define cut_by_the_server(p) false
#endif
inline new_life(p) { MUST(RaiseMAXI, ninc < MAXI); inc[p] = ninc; took_its_lock(ninc); ninc++ }
#ifdef OTHERCODE
#define starts_with_the_newest(p) code[p] = newest
#else
#define starts_with_the_newest(p) skip
#endif
inline tasks_die(p) {
  d_step {
  i = 0;
  do :: i < MAXC -> if :: t_p[i] == p && t_st[i] != 0 -> t_st[i] = 3 :: else fi; i++ :: else -> break od; i = 0;
  f_st[p] = 0; f_occ[p] = 0; f_c[p] = 0; f_late[p] = 0; f_ans[p] = 0 }
}
proctype Life(bit p) {
  byte i;
end: do
  :: atomic { up[p] && trouble > 0 -> trouble--; up[p] = 0; lock[inc[p]] = 0; tasks_die(p) }       /* kill -9 at any point */
  :: atomic { !up[p] -> up[p] = 1; new_life(p); starts_with_the_newest(p) }                                                   /* restarted by its supervisor */
#if !defined(STUCK) && !defined(NOLOCKLOSS)
  :: atomic { up[p] && lock[inc[p]] && trouble > 0 -> trouble--; lock[inc[p]] = 0 }                /* alive, lock lost, unaware */
#endif
  :: atomic { up[p] && !lock[inc[p]] && !cut_by_the_server(p) -> new_life(p) }                     /* finds out: a new incarnation */
#ifdef SERVER
  :: atomic { up[p] && !lock[inc[p]] && cut_by_the_server(p) ->                                    /* the same one goes on, under its number */
#ifdef M_NEWNUMBER        /* it takes a new number, and its own calls are another's */
       new_life(p)
#else
       took_its_lock(inc[p])
#endif
     }
  :: atomic { p == 0 && restarts > 0 -> restarts--; server++; graced = 0; i = 0; do :: i < MAXI -> lock[i] = 0; i++ :: else -> break od; i = 0 }
  /* the timing assumption: who lives is back within the 5 s */
  :: atomic { p == 0 && !graced && (!up[0] || lock[inc[0]]) && (!up[1] || lock[inc[1]]) -> graced = 1 }
#endif
#ifdef RESTORE
  :: atomic { idch && up[p] ->                     /* first contact with a store whose identity changed */
#ifdef M_NOSUSPECTS
       skip;
#else
       i = 0;
       do
       :: i < NOCC ->
          if
          :: A_st[i] == NONE && holds(i) -> ROW(70); A_st[i] = DOUBT; A_un[i] = 1; A_inc[i] = me; A_old[i] = 1;
#ifdef H_SUSPECTDEADLINE
             A_dl[i] = 0
#else
             A_dl[i] = ncalls
#endif
#ifndef H_SUSPECTKEEP    /* attempts that came back with the backup know nothing of the lost time either */
          :: A_st[i] == BEGUN || A_st[i] == FAILED || A_st[i] == DOUBT ->
             ROW(68); A_st[i] = DOUBT; A_un[i] = 1; A_inc[i] = me; A_old[i] = 1; A_dl[i] = ncalls
          :: A_st[i] == HELD -> ROW(69); A_un[i] = 1; A_inc[i] = me; A_old[i] = 1; A_dl[i] = ncalls
#endif
          :: else
          fi; i++
       :: else -> break
       od; i = 0;
#ifndef H_SUSPECTONCE    /* a record that matches only later may have been called in the lost time too */
       suspect = 1;
#endif
#endif
       idch = 0; check() }
#endif
  od
}

/* ---- the database goes back ---- */
#ifdef RESTORE
proctype Ops() {
  byte i, s_calls;
  if
  :: atomic { snapped = 1; s_calls = ncalls; s_rx = rx; s_rc = rc; s_ro = ro; s_taken = taken; i = 0;
       do :: i < NOCC -> s_st[i] = A_st[i]; s_inc[i] = A_inc[i]; s_no[i] = A_no[i]; s_c[i] = A_c[i]; s_un[i] = A_un[i];
             s_dl[i] = A_dl[i]; s_fail[i] = A_fail[i]; s_out[i] = A_out[i]; s_old[i] = A_old[i]; s_entries[i] = entries[i]; i++
          :: else -> break od; i = 0 }
  :: goto done
  fi;
  if
#ifdef FAILOVER
#define RESTORABLE (ncalls == s_calls && restarts > 0)
#define SIGN 0
#else
#define RESTORABLE true
#define SIGN 1
#endif
  :: atomic { RESTORABLE -> restored = 1; idch = SIGN; rx = s_rx; rc = s_rc; ro = s_ro; taken = s_taken; heard = 0; i = 0;
       do :: i < NOCC -> A_st[i] = s_st[i]; A_inc[i] = s_inc[i]; A_no[i] = s_no[i]; A_c[i] = s_c[i]; A_un[i] = s_un[i];
             A_dl[i] = s_dl[i]; A_fail[i] = s_fail[i]; A_out[i] = s_out[i]; A_old[i] = s_old[i]; entries[i] = s_entries[i]; sent[i] = 0; i++
          :: else -> break od; i = 0;
#ifdef FAILOVER
       restarts--; server++; graced = 0;
#endif
       do :: i < MAXI -> lock[i] = 0; i++ :: else -> break od; i = 0 }   /* every connection, and so every lock, is gone */
  :: goto done
  fi;
done: skip
}
#endif

/* ---- the shop, psql, another language ---- */
proctype Writer() {
end: do
  :: atomic { if
  :: wbud > 0 && rx && rc -> wbud--; rc = 0                                     /* cancelled, or done by hand */
  :: wbud > 0 && rx && !rc && ro + 1 < NOCC -> wbud--; rc = 1; ro++; entries[ro]++   /* next month */
  :: wbud > 0 && rx && rc && ro + 1 < NOCC -> wbud--; ro++; entries[ro]++       /* occurrence moved while it holds */
#ifdef SAMEOCC
  :: wbud > 0 && rx && !rc -> wbud--; rc = 1; entries[ro]++                     /* re-entered, occurrence unchanged */
#endif
  :: wbud > 0 && rx -> wbud--; rx = 0; rc = 0                                   /* deleted */
  :: wbud > 0 -> wbud = 0
#ifdef CHANGED
  :: changes -> changes = 0; pol = NOCALL
#endif
#ifdef OTHERCODE
  :: deploys > 0 -> deploys--; newest = !newest
#endif
     fi; check() }
  od
}

/* ---- a person, who is right about what the outside has done until now ---- */
#ifdef M_WRONGPERSON
#define right(o) true
#else
#define right(o) (open_effects(o) == 0 && (A_c[o] == 0 || t_st[A_c[o]-1] != 5))
#endif
#ifdef ANYWORDS
#define spoken_to(o) (A_st[o] != NONE)
#else
#define spoken_to(o) (A_st[o] == HELD || A_st[o] == FAILED)
#endif
proctype Person(byte o) {
  byte x;
end: do
  :: atomic { if
  :: pbud > 0 && spoken_to(o) ->
       pbud--; sent[o] = 0;
       if
       :: x = 0; do :: x == MAXC || (A_out[o] & BIT(x)) -> break :: else -> x++ od; e = x; x = 0; with_code(newest); retry(o); whoever
       :: right(o) -> settle_absent(o)
       :: open_effects(o) != 0 ->
          x = 0; do :: (open_effects(o) & BIT(x)) -> break :: else -> x++ od; e = x; x = 0; all_of_it = 1; settle_outcome(o)
       :: A_c[o] == 0 || t_st[A_c[o]-1] != 5 -> forget(o)
       :: true                                        /* looks, and leaves it */
       fi
  :: pbud > 0 -> pbud = 0
     fi; answer(o); check() }
  od
}

#ifdef VALID
/* at any moment while the condition holds; it may end without */
proctype Calendar(byte o) {
  if
  :: atomic { holds(o) -> too_late[o] = 1 }
  :: skip
  fi
}
#endif

#define rests(o) (A_st[o] == NONE || A_st[o] == HELD || (A_st[o] == FAILED && blocked(o)))
/* NotLost, NothingAtRest, NoRunningMark: where nothing moves any more */
proctype Quiet() {
end:  atomic { timeout ->
       trouble = 0;
       MUST(NotLost, !(rx && rc) || A_st[ro] == HELD || blocked(ro));
       MUST(NothingAtRest, rests(0) && rests(1)) }
}

init {
  atomic {
    entries[0] = 1; inc[0] = 1; inc[1] = 2; lock[1] = 1; lock[2] = 1; up[0] = 1; up[1] = 1;
    run Worker(0,0); run Worker(0,1); run Worker(1,0); run Worker(1,1);
#if NOCC > 2
    run Worker(0,2); run Worker(1,2); run Person(2);
#endif
    run Call(0); run Call(1); run Call(2); run Call(3);
    run Clock(0); run Clock(1); run Clock(2); run Clock(3);
#if MAXC > 4
    run Call(4); run Clock(4);
#endif
#if MAXC > 5
    run Call(5); run Clock(5);
#endif
#if MAXC > 6
    run Call(6); run Clock(6);
#endif
#if MAXC > 7
    run Call(7); run Clock(7);
#endif
#ifdef VALID
    run Calendar(0); run Calendar(1);
#endif
    run Life(0); run Life(1); run Provider(); run Writer(); run Person(0); run Person(1);
#ifdef RESTORE
    run Ops();
#endif
    run Quiet()
  }
}
