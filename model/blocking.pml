/*
 * blocking.pml - different reactions on one record, and two worker processes. Reaction 0 makes a call and moves the record; reaction 1
 * moves it the other way (a timer that cancels), with a call or without one; reaction 2 makes a call and has a fact of its own.
 * What blocks whom, the recheck after the lock (hazard 17), and that nobody waits for ever. The transitions are table.pml's.
 *
 * Parameters: P0 P1 P2 the policies (P1 may be NOCALL: it has no call); VALID: it may become too late for reaction 0; TROUBLE faults in all; WBUD acts of the writer (cancels by hand).
 * A claim is what it is on PostgreSQL: a statement that sees an old snapshot, then the lock, then a statement of its own that asks again.
 * Invariants: OneAtATime (of reactions without a fact, one attempt at most is begun or unsure), Alone (what a reaction without a call,
 * or an expired handler, writes is never written beside another's attempt that is begun or unsure), NothingStale, Listed, AtMostOnce; FactGoesOn, NotLost and NothingAtRest where
 * nothing moves any more. There are no occurrences, persons or backups here: protocol.pml has those.
 */
#define N 3
#ifndef P0
#define P0 LOOKUP
#endif
#ifndef P1
#define P1 NOCALL
#endif
#ifndef P2
#define P2 LOOKUP
#endif
#ifndef TROUBLE
#define TROUBLE 2
#endif
#ifndef WBUD
#define WBUD 1
#endif
#include "table.pml"
#define OneAtATime 131
#define Alone 132
#define FactGoesOn 133
#define NothingStale 111
#define Listed 101
#define AtMostOnce 102
#define NotLost 105
#define NothingAtRest 106
#define RaiseMAXI 191
#define MAXI 8

#define policy(o) (o == 0 -> P0 : (o == 1 -> P1 : P2))
#define POL policy(o)
#define HAS_FIND (policy(o) == LOOKUP)
#define FACT 2
#define exists(o) true
#define holds(o) (o == FACT -> !mailed : placed)
#define condition true
#define spent(o) (A_fail[o] >= 2)
#define spent_then(o) (A_fail[o] + 1 >= 2)
#ifdef VALID              /* reaction 0 may become too late at some moment, or never */
bit too_late;
#define expired(o) (o == 0 && too_late)
#else
#define expired(o) false
#endif
#define lands_over(o) (over[o] == 2)
#define asked_late(o) (late_enough)
#define has_call (policy(o) != NOCALL)
#define counts 1
#define me inc[p]
#define NEW_CALL (ncalls + 1)
#define later(a, b) (a > b -> a : b)
#define TOGETHER(o) 0
#define deadline_not_before_now(o) skip
#ifdef M_NOBLOCK          /* no attempt keeps another reaction out */
#define blocked(o) false
#elif defined(M_FACTBLOCKS)   /* a fact keeps others out, and is kept out */
#define blocked(o) ((o != 0 && blocks(0)) || (o != 1 && blocks(1)) || (o != 2 && blocks(2)))
#elif defined(M_HELDFREES)    /* what is held blocks nobody, though it is unsure */
#define blocked(o) (o != FACT && ((o != 0 && blocks(0) && A_st[0] != HELD) || (o != 1 && blocks(1) && A_st[1] != HELD)))
#else
#define blocked(o) (o != FACT && ((o != 0 && blocks(0)) || (o != 1 && blocks(1))))
#endif
#include "mutations.pml"

bit placed = 1, cancelled, mailed;
byte inc[2], ninc = 3; bit up[2], lock[MAXI];
byte rowlock, cl[2], cr[2];         /* who has the record's lock; a claim: 0 none 1 has seen it 2 has the lock; for which reaction */
byte ncalls, st[N], life_of[N], eff[N], taken[N], over[N], number[N];   /* st of the latest call: 0 none 1 begun 2 in the air 3 landed 4 refused 5 lost */
byte asked[N], answer_[N], asked_call[N]; bit asked_at[N]; byte asked_by[N];
bit given;
byte trouble = TROUBLE, wbud = WBUD;
#include "events.pml"

inline check1(o) {
  MUST(Listed, policy(o) == REPEAT || A_st[o] != NONE || eff[o] == taken[o]);
  MUST(AtMostOnce, policy(o) == REPEAT || eff[o] <= 1)
}
inline check() { d_step { check1(0); check1(1); check1(2); MUST(OneAtATime, !(blocks(0) && blocks(1))) } }

inline begin(o) {
  MUST(NothingStale, !expired(o));
  new_call(o); ncalls = (ncalls < 200 -> ncalls + 1 : 1); st[o] = 1; life_of[o] = me; over[o] = 0; number[o] = A_c[o]
}
/* an outcome is there; what `to` leaves to this world */
inline carry_out(o) {
  if
  :: to == CONCLUDE || to == OVERTAKEN ->
     returned(o);
     if
     :: to == CONCLUDE -> taken[o] = eff[o]; if :: o == FACT -> mailed = 1 :: else -> placed = 0 fi; wipe(o)
     :: to == OVERTAKEN || trouble > 0 -> if :: to == CONCLUDE -> trouble-- :: else fi; given = 1; refused(o); given = 0
     fi
  :: to == CALLED -> begin(o)
  :: to == ASKED -> asked[o] = 1; asked_call[o] = A_c[o]; asked_at[o] = (over[o] == 2); asked_by[o] = me
  :: to == GIVEN_UP -> A_st[o] = HELD
  :: to == EXPIRED ->
     MUST(Alone, o == FACT || ((o == 0 || !blocks(0)) && (o == 1 || !blocks(1))));
     if
     :: placed = 0; wipe(o)
     :: trouble > 0 -> trouble--;
        if :: A_st[o] == NONE -> A_st[o] = FAILED; A_inc[o] = me; A_fail[o] = 1 :: else -> expired_in_vain(o) fi
     fi
  :: else
  fi; to = NONE
}
#define wants(o) (holds(o) && (A_st[o] == NONE || (A_st[o] == FAILED && (expired(o) || !spent(o)))) && !blocked(o))
#ifdef M_EXPIREDALONGSIDE
#define EXPIRES_ANYHOW(o) || expired(o)
#else
#define EXPIRES_ANYHOW(o)
#endif
#define settles(p, o) (A_st[o] == DOUBT && A_inc[o] == inc[p] && asked[o] == 0)

proctype Worker(bit p; byte o) {
  bit late_enough;
end: do
  :: atomic { if
  /* statement 1: what its snapshot shows */
  :: up[p] && cl[p] == 0 && wants(o) -> cl[p] = 1; cr[p] = o
  /* the record's lock; others' are skipped, or waited for */
  :: up[p] && cl[p] == 1 && cr[p] == o && rowlock == 0 -> cl[p] = 2; rowlock = p + 1
  :: up[p] && cl[p] == 1 && cr[p] == o && rowlock != 0 -> cl[p] = 0; cr[p] = 0
  /* statement 2 asks once more; then it is written, and committed */
  :: up[p] && cl[p] == 2 && cr[p] == o ->
       if
#ifdef M_ONESTATEMENT     /* the record is rechecked by the lock, and attempts are as the old snapshot had them */
       :: holds(o) && (A_st[o] == NONE || (A_st[o] == FAILED && !spent(o))) ->
#else
       :: wants(o) ->
#endif
          if
          :: has_call && A_st[o] == NONE && !expired(o) -> ROW(66); begin(o)
          :: has_call && A_st[o] == NONE && expired(o) -> ROW(77); to = EXPIRED
          :: has_call && A_st[o] == FAILED -> due(o)
          :: !has_call -> MUST(Alone, !blocks(0)); placed = 0; cancelled = 1; wipe(o)
          :: !has_call && trouble > 0 -> trouble--; A_st[o] = FAILED; A_fail[o]++      /* its handler raised */
          fi
       :: else
       fi; rowlock = 0; cl[p] = 0; cr[p] = 0
  /* every other transaction locks the record first */
  :: up[p] && rowlock == 0 && settles(p, o) -> settle(o)
  :: up[p] && rowlock == 0 && A_st[o] == FAILED && (!holds(o) || (spent(o) && !expired(o)) EXPIRES_ANYHOW(o)) -> due(o)
#ifdef WAITS              /* looks at what waits, again and again, so that it is never quiet */
  :: up[p] && rowlock == 0 && on_34(o) -> due(o)
#endif
  :: up[p] && (A_st[o] == BEGUN || A_st[o] == DOUBT) && A_inc[o] != inc[p] && !lock[A_inc[o]] -> adopted(o)
  /* its own call: sent, or not; the outcome; a refusal; a timeout */
  :: up[p] && st[o] == 1 && life_of[o] == inc[p] && A_st[o] == BEGUN && A_c[o] == number[o] && over[o] == 0 -> st[o] = 2
  :: up[p] && st[o] == 1 && life_of[o] == inc[p] && A_st[o] == BEGUN && A_c[o] == number[o] && (over[o] > 0 || trouble > 0) && rowlock == 0 ->
       if :: over[o] == 0 -> trouble-- :: else fi; st[o] = 5; did_not_go_out(o)
  :: up[p] && st[o] == 3 && life_of[o] == inc[p] && rowlock == 0 ->
       st[o] = 0; given = 1;
       if :: A_st[o] == BEGUN && A_c[o] == number[o] -> to = CONCLUDE :: else -> late(o) fi; given = 0;
       if :: to == HELDNEW -> to = NONE; if :: taken[o] == eff[o] :: else -> A_st[o] = HELD; A_out[o] = 1 fi :: else fi
  :: up[p] && st[o] == 4 && life_of[o] == inc[p] && rowlock == 0 ->
       st[o] = 0; if :: A_st[o] == BEGUN && A_c[o] == number[o] -> not_done(o) :: else fi
  :: up[p] && (st[o] == 5 || (trouble > 0 && (st[o] == 2 || st[o] == 3))) && life_of[o] == inc[p] && rowlock == 0 && A_st[o] == BEGUN && A_c[o] == number[o] ->
       if :: st[o] == 5 -> skip :: else -> trouble-- fi; unclear(o)
  /* the answer of a lookup */
  :: up[p] && asked[o] == 2 && asked_by[o] == inc[p] && rowlock == 0 ->
       late_enough = asked_at[o];
       if
       :: A_st[o] == DOUBT && A_c[o] == asked_call[o] && A_inc[o] == inc[p] ->
          if :: answer_[o] -> to = CONCLUDE :: else -> absent(o) fi
       :: else
       fi; asked[o] = 0; asked_at[o] = 0; answer_[o] = 0; asked_call[o] = 0; asked_by[o] = 0; late_enough = 0
     fi; carry_out(o); check() }
  od
}
/* the outside, and time */
proctype ExternalService(byte o) {
end: do
  :: atomic { if
  :: st[o] == 2 -> st[o] = 3; if :: policy(o) == SAMEKEY && eff[o] > 0 :: else -> eff[o]++ fi
  :: st[o] == 2 && trouble > 0 -> trouble--; st[o] = 4
  :: st[o] == 2 && trouble > 0 -> trouble--; st[o] = 5
  :: st[o] != 0 && over[o] == 0 && (st[o] != 1 || trouble > 0) -> if :: st[o] == 1 -> trouble-- :: else fi; over[o] = 1
  :: over[o] == 1 && st[o] != 2 -> over[o] = 2
  :: st[o] == 0 && A_st[o] == DOUBT && over[o] < 2 -> over[o] = 2
  :: asked[o] == 1 -> asked[o] = 2; answer_[o] = (eff[o] > taken[o])
  :: asked[o] != 0 && (asked_by[o] != inc[0] || !up[0]) && (asked_by[o] != inc[1] || !up[1]) ->
       asked[o] = 0; asked_at[o] = 0; answer_[o] = 0; asked_call[o] = 0; asked_by[o] = 0
     fi; check() }
  od
}
proctype Life(bit p) {
  byte i;
end: do
  :: atomic { up[p] && trouble > 0 ->
       trouble--; up[p] = 0; lock[inc[p]] = 0; cl[p] = 0; cr[p] = 0;
       if :: rowlock == p + 1 -> rowlock = 0 :: else fi;      /* rolled back */
       i = 0;
       do
       :: i < N -> if :: life_of[i] == inc[p] && st[i] == 1 -> st[i] = 5 :: else fi; i++
       :: else -> break
       od; i = 0 }
  :: atomic { !up[p] -> MUST(RaiseMAXI, ninc < MAXI); up[p] = 1; inc[p] = ninc; lock[ninc] = 1; ninc++ }
  od
}
proctype Writer() {
end: do
  :: atomic { wbud > 0 && placed && rowlock == 0 -> wbud--; placed = 0; check() }
  :: atomic { wbud > 0 -> wbud = 0 }
  od
}
#ifdef VALID
proctype Calendar() {
  if
  :: atomic { placed -> too_late = 1 }
  :: skip
  fi
}
#endif
#define rests(o) (A_st[o] == NONE || A_st[o] == HELD || (A_st[o] == FAILED && blocked(o)))
proctype Quiet() {
end: atomic { timeout ->
#ifndef NOFACT
       MUST(FactGoesOn, mailed || A_st[FACT] == HELD);
#endif
       MUST(NotLost, !placed || A_st[0] == HELD || A_st[1] == HELD);
       MUST(NothingAtRest, rests(0) && rests(1) && rests(2)) }
}
init {
  atomic {
    inc[0] = 1; inc[1] = 2; lock[1] = 1; lock[2] = 1; up[0] = 1; up[1] = 1;
    run Worker(0, 0); run Worker(0, 1); run Worker(1, 0); run Worker(1, 1);
#ifndef NOFACT
    run Worker(0, 2); run Worker(1, 2); run ExternalService(2);
#endif
    run ExternalService(0); run ExternalService(1);
#ifdef VALID
    run Calendar();
#endif
    run Life(0); run Life(1); run Writer(); run Quiet()
  }
}
