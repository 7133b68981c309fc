/*
 * careful.pml - careful mode (hazard 25): N records of a reaction without a call, one of which kills the process that carries it out;
 * two worker processes that are restarted, and killed from outside as well. After two unclean ends batches are begun before they are
 * carried out, come again in half the company, and the record that killed alone twice is held. The transitions are table.pml's.
 *
 * Parameters: KILLS kills from outside; CUT connections cut under a living worker; CALM clean stretches that end careful mode; N records.
 * Invariants: Innocent (nobody is held but the one that kills, while fewer than two kills come from outside), Unsure (what makes no call
 * is never in doubt), Progress (so many deaths and no more), OthersGoOn, NotLost and NothingAtRest where nothing moves any more.
 * Calls in careful mode are not modelled, nor handlers that raise.
 */
#ifndef N
#define N 4
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CALM
#define CALM 0
#endif
#include "table.pml"
#define Innocent 121
#define Unsure 122
#define Progress 123
#define OthersGoOn 124
#define NotLost 105
#define NothingAtRest 106
#define MAXI 20
#define DEATHS (3 + 3 + 1 + KILLS + CALM * 3)      /* until all are careful; four together, two, one; alone again; from outside */

#define POL NOCALL
#define HAS_FIND 0
#define exists(o) true
#define holds(o) (!done[o])
#define spent(o) (A_fail[o] >= 10)
#define spent_then(o) (A_fail[o] + 1 >= 10)
#define expired(o) false
#define lands_over(o) true
#define asked_late(o) true
#define blocked(o) false
#define counts 1
#define me inc[p]
#define given 0
#define NEW_CALL inc[p]
#define later(a, b) (a > b -> a : b)
#define TOGETHER(o) size
#define deadline_not_before_now(o) skip
#define condition true
#include "mutations.pml"
#ifdef M_COMPANYHELD      /* whoever was in the company counts as having killed */
#undef on_9
#undef on_10
#undef do_10
#define on_9(o) (A_st[o] == BEGUN && !made_a_call(o) && A_alone[o])
#define on_10(o) (A_st[o] == BEGUN && !made_a_call(o) && !A_alone[o])
#define do_10(o) A_st[o] = FAILED; A_inc[o] = me; A_fail[o] = A_fail[o] + 1; A_alone[o] = 1
#endif
#ifdef M_HELDATONCE       /* who was alone once is held: a kill from outside is enough */
#undef on_9
#undef on_10
#define on_9(o) (A_st[o] == BEGUN && !made_a_call(o) && A_tog[o] == 1)
#define on_10(o) (A_st[o] == BEGUN && !made_a_call(o) && A_tog[o] != 1)
#endif
#include "events.pml"

bit done[N];
byte bad;                     /* the record that kills */
byte inc[2], ninc = 1, size, half; bit up[2], busy[2], fresh[2];
bit lock[MAXI], row[MAXI];    /* the lock of a life; its row: it began and did not end */
#ifndef CUT
#define CUT 0
#endif
byte ends, deaths, kills = KILLS, calm = CALM, cuts = CUT;
#define mine(o) (A_st[o] == BEGUN && A_inc[o] == inc[p])
#define careful (ends >= 2)
#define free(o) (!done[o] && (A_st[o] == NONE || A_st[o] == FAILED))
#define any_free (free(0) || free(1) || free(2) || free(3))

#define dead1(l) (row[l] && !lock[l])
#define dead_life (dead1(1) || dead1(2) || dead1(3) || dead1(4) || dead1(5) || dead1(6) || dead1(7) || dead1(8) || dead1(9) \
  || dead1(10) || dead1(11) || dead1(12) || dead1(13) || dead1(14) || dead1(15) || dead1(16) || dead1(17) || dead1(18) || dead1(19))

inline dies(p) { up[p] = 0; busy[p] = 0; fresh[p] = 0; lock[inc[p]] = 0; deaths++; MUST(Progress, deaths <= DEATHS) }
inline check() {
  d_step {
  i = 0;
  do
  :: i < N -> MUST(Innocent, A_st[i] != HELD || i == bad || kills + 1 < KILLS); MUST(Unsure, !A_un[i] && A_st[i] != DOUBT); i++
  :: else -> break
  od; i = 0 }
}

proctype Worker(bit p) {
  byte i, limit;
end: do
  :: atomic { if
  /* a batch, in one transaction: it is rolled back where its process dies */
  :: up[p] && !fresh[p] && !busy[p] && !careful && any_free ->
       if :: limit = N :: limit = 1 :: limit = 2 fi;
       i = 0; size = 0; half = 0;
       do
       :: i < N && size < limit -> if :: free(i) -> size++; if :: i == bad -> half = 1 :: else fi :: else fi; i++
       :: else -> break
       od;
       if
       :: half -> dies(p)
       :: else ->
          limit = i; i = 0;
          do :: i < limit -> if :: free(i) -> done[i] = 1; wipe(i) :: else fi; i++ :: else -> break od
       fi; limit = 0
  /* careful: begun first, in a transaction of its own; suspects alone with each other, in half the company */
  :: up[p] && !fresh[p] && !busy[p] && careful && any_free ->
       i = 0; half = 0; size = 0;
       do
       :: i < N ->
          if
          :: free(i) && A_tog[i] > 0 ->
#ifdef M_NOHALVING
             limit = A_tog[i];
#else
             limit = (A_tog[i] / 2 > 0 -> A_tog[i] / 2 : 1);
#endif
             half = ((half == 0 || limit < half) -> limit : half); size++
          :: else
          fi; i++
       :: else -> break
       od;
       if
       :: half == 0 ->
          i = 0; half = N;
          do :: i < N -> if :: free(i) -> size++ :: else fi; i++ :: else -> break od;
          size = (size < half -> size : half); limit = 0
       :: else -> size = (size < half -> size : half); limit = 1
       fi;
       i = 0; half = size;
#ifndef M_NOATTEMPTS
       do
       :: i < N && half > 0 ->
          if
          :: free(i) && (limit == 0 || A_tog[i] > 0) ->
             new_call(i);
#ifndef M_CALLNUMBERED
             A_no[i] = 0;        /* no call was begun */
#endif
             half--
          :: else
          fi; i++
       :: else -> break
       od;
       busy[p] = 1
#else
       if :: free(bad) -> dies(p) :: else -> done[0] = 1; done[1] = 1; done[2] = 1; done[3] = 1 fi
#endif
       ; limit = 0
  /* and then carried out: its attempts are deleted in the same commit */
  :: up[p] && busy[p] ->
       if
       :: A_st[bad] == BEGUN && A_inc[bad] == inc[p] -> dies(p)
       :: else ->
          i = 0;
          do :: i < N -> if :: A_st[i] == BEGUN && A_inc[i] == inc[p] -> done[i] = 1; wipe(i) :: else fi; i++ :: else -> break od;
          busy[p] = 0
       fi
  /* its connection is cut, and the transaction rolled back: the worker lives, and knows nothing of what is begun */
  :: up[p] && busy[p] && cuts > 0 -> cuts--; busy[p] = 0
  :: up[p] && !busy[p] && (mine(0) || mine(1) || mine(2) || mine(3)) ->
       i = 0; do :: i < N -> if :: mine(i) -> not_in_memory(i) :: else fi; i++ :: else -> break od
  /* a dead life: its attempts change hands, and its end is remembered */
  :: up[p] && dead_life ->
       limit = 0;
       do :: limit < MAXI && (!row[limit] || lock[limit]) -> limit++ :: else -> break od;
       i = 0;
       do :: i < N -> if :: A_st[i] == BEGUN && A_inc[i] == limit -> adopted(i) :: else fi; i++ :: else -> break od;
       row[limit] = 0; limit = 0; ends = (ends < 2 -> ends + 1 : 2)
  :: up[p] && kills > 0 -> kills--; dies(p)
  /* it adopts before it begins anything */
  :: up[p] && fresh[p] && !dead_life -> fresh[p] = 0
  :: !up[p] -> up[p] = 1; fresh[p] = 1; inc[p] = ninc; lock[ninc] = 1; row[ninc] = 1; ninc++
  :: calm > 0 && careful -> calm--; ends = 0
     fi; i = 0; size = 0; half = 0; check() }
  od
}

#define at_rest(o) (done[o] && A_st[o] == NONE)
proctype Quiet() {
end: atomic { timeout ->
       MUST(NotLost, A_st[bad] == HELD);
       MUST(OthersGoOn, (0 == bad || done[0] || kills + 1 < KILLS) && (1 == bad || done[1] || kills + 1 < KILLS) && (2 == bad || done[2] || kills + 1 < KILLS) && (3 == bad || done[3] || kills + 1 < KILLS));
       MUST(NothingAtRest, (0 == bad || at_rest(0) || A_st[0] == HELD) && (1 == bad || at_rest(1) || A_st[1] == HELD) && (2 == bad || at_rest(2) || A_st[2] == HELD) && (3 == bad || at_rest(3) || A_st[3] == HELD)) }
}
init {
  atomic {
    if :: bad = 0 :: bad = 1 :: bad = 2 :: bad = 3 fi;
    run Worker(0); run Worker(1); run Quiet()
  }
}
