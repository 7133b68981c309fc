/*
 * careful.pml - careful mode (hazard 25): N records of a reaction without a call, one of which kills the process that carries it out;
 * two worker processes that are restarted, and killed from outside as well. After two unclean ends batches are begun before they are
 * carried out, who was under way at an end comes again alone, and who is alone then at a second end is held. The transitions are
 * table.pml's.
 *
 * Parameters: KILLS kills from outside; CUT connections cut under a living worker; CALM clean stretches that end careful mode; N records.
 * Invariants: Innocent (nobody is held but the one that kills, while no kill from outside meets who is alone because he is suspected),
 * Unsure (what makes no call is never in doubt), Progress (so many deaths and no more), OthersGoOn, NotLost and NothingAtRest where
 * nothing moves any more. Handlers that raise are not modelled.
 * CALLS: the reaction makes a call, under again(): what was begun tells of each end, and is alone after two; held is who is so at a third.
 */
#ifndef N
#define N 4
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CUT
#define CUT 0
#endif
#ifndef CALM
#define CALM 0
#endif
#define SUSPECTS
#include "table.pml"
#define Innocent 121
#define Unsure 122
#define Progress 123
#define OthersGoOn 124
#define NotLost 105
#define NothingAtRest 106
#define MAXI 20
#ifdef CALLS
#define makes_calls true
#define DEATHS (3 + 1 + KILLS)                       /* two, until all are careful; alone; and where they were careful before, one in company */
#else
#define makes_calls false
#define DEATHS (3 + 1 + 1 + KILLS + CUT + CALM * 4)   /* until both are careful (two, where there is one worker); in company; alone; from outside */
#endif

#ifdef CALLS
#define POL REPEAT
#else
#define POL NOCALL
#endif
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
#undef alone
#define alone(o) (A_tog[o] == 1 && left == 1)   /* what its life had begun and lost sight of may be what ended it */
#ifdef M_COMPANYHELD      /* whoever was in the company is held */
#undef killed_alone
#define killed_alone(o) (A_tog[o] > 0)
#endif
#ifdef M_HELDATONCE       /* who was alone once is held: a kill from outside is enough */
#undef killed_alone
#define killed_alone(o) (A_tog[o] == 1)
#endif
#include "events.pml"

bit done[N];
byte bad;                     /* the record that kills */
byte inc[2], ninc = 1, size, half; bit up[2], busy[2], fresh[2];
bit lock[MAXI], row[MAXI];    /* the lock of a life; its row: it began and did not end */
byte ends, deaths, left, kills = KILLS, calm = CALM, cuts = CUT;
#define mine(o) (A_st[o] == BEGUN && A_inc[o] == inc[p])
#define suspected(o) (A_ends[o] > (makes_calls -> 1 : 0))
#define suspect(o) (mine(o) && A_tog[o] == 1 && suspected(o))
#define careful (ends >= 2)
#define free(o) (!done[o] && (A_st[o] == NONE || A_st[o] == FAILED || (A_st[o] == DOUBT && A_inc[o] == inc[p])))
#define any_free (free(0) || free(1) || free(2) || free(3))

#define dead1(l) (row[l] && !lock[l])
#define dead_life (dead1(1) || dead1(2) || dead1(3) || dead1(4) || dead1(5) || dead1(6) || dead1(7) || dead1(8) || dead1(9) \
  || dead1(10) || dead1(11) || dead1(12) || dead1(13) || dead1(14) || dead1(15) || dead1(16) || dead1(17) || dead1(18) || dead1(19))

inline dies(p) { up[p] = 0; busy[p] = 0; fresh[p] = 0; lock[inc[p]] = 0; deaths++; MUST(Progress, deaths <= DEATHS) }
inline check() {
  d_step {
  i = 0;
  do
  :: i < N -> MUST(Innocent, A_st[i] != HELD || i == bad); MUST(Unsure, makes_calls || (!A_un[i] && A_st[i] != DOUBT)); i++
  :: else -> break
  od; i = 0 }
}

proctype Worker(bit p) {
  byte i, limit;
end: do
  :: atomic { if
  /* a batch, in one transaction: it is rolled back where its process dies */
  :: up[p] && !fresh[p] && !busy[p] && !careful && !makes_calls && any_free ->
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
  /* careful, and calls at any time: begun first, in a transaction of its own; who is suspected alone, and before all others */
  :: up[p] && !fresh[p] && !busy[p] && (careful || makes_calls) && any_free ->
       i = 0; size = 0; limit = N;
       do
       :: i < N ->
          if
          :: free(i) ->
             size++;
#ifndef M_NOTALONE
             if :: limit == N && careful && suspected(i) -> limit = i :: else fi
#endif
          :: else
          fi; i++
       :: else -> break
       od;
       if :: limit < N -> size = 1 :: else -> if :: true :: size = 1 fi fi;   /* in company, or what comes by itself */
       i = 0; half = size; if :: careful -> skip :: else -> size = 0 fi;
#ifndef M_NOATTEMPTS
       do
       :: i < N && half > 0 ->
          if
          :: free(i) && (limit == N || limit == i) ->
             new_call(i);
#ifndef M_CALLNUMBERED
             if :: !makes_calls -> A_no[i] = 0 :: else fi;        /* no call was begun */
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
       i = 0; left = 0;
       do :: i < N -> if :: A_st[i] == BEGUN && A_inc[i] == limit -> left++ :: else fi; i++ :: else -> break od;
       i = 0;
       do :: i < N -> if :: (A_st[i] == BEGUN || A_st[i] == DOUBT) && A_inc[i] == limit -> adopted(i) :: else fi; i++ :: else -> break od;
       row[limit] = 0; limit = 0; left = 0; ends = (ends < 2 -> ends + 1 : 2)
  /* nor does anybody kill from outside just while a suspect is alone: he is held for it, as docs/operating.md says */
  :: up[p] && kills > 0 && !(busy[p] && (suspect(0) || suspect(1) || suspect(2) || suspect(3))) -> kills--; dies(p)
  /* it adopts before it begins anything */
  :: up[p] && fresh[p] && !dead_life -> fresh[p] = 0
  :: !up[p] -> up[p] = 1; fresh[p] = 1; inc[p] = ninc; lock[ninc] = 1; row[ninc] = 1; ninc++
  :: calm > 0 && careful -> calm--; ends = 0; A_ends[0] = 0; A_ends[1] = 0; A_ends[2] = 0; A_ends[3] = 0   /* what is forgotten says nothing */
     fi; i = 0; size = 0; half = 0; check() }
  od
}

#define at_rest(o) (done[o] && A_st[o] == NONE)
proctype Quiet() {
end: atomic { timeout ->
       MUST(NotLost, A_st[bad] == HELD);
       MUST(OthersGoOn, (0 == bad || done[0]) && (1 == bad || done[1]) && (2 == bad || done[2]) && (3 == bad || done[3]));
       MUST(NothingAtRest, (0 == bad || at_rest(0) || A_st[0] == HELD) && (1 == bad || at_rest(1) || A_st[1] == HELD) && (2 == bad || at_rest(2) || A_st[2] == HELD) && (3 == bad || at_rest(3) || A_st[3] == HELD)) }
}
init {
  atomic {
    if :: bad = 0 :: bad = 1 :: bad = 2 :: bad = 3 fi;
    run Worker(0); run Worker(1); run Quiet()
  }
}
