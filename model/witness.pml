/*
 * witness.pml - a database that goes back in time without a sign of its own (hazard 46): one record, two worker processes, and the count
 * of begins, which each life keeps in its row of groundstate_worker, in memory, and in a file outside. A backup is taken at some moment
 * and put back at some other, with faults between any two steps. Identity does not change: protocol.pml has the case where it does.
 *
 * Parameters: POL (LOOKUP or HOLD); TROUBLE faults: crash, lost request, timeout though done, stop.
 * Invariants: AtMostOnce, whatever was lost; NotLost and NothingAtRest where nothing moves any more.
 * Limits, which are told in docs/limits.md, and must be found: L_CLEANSTOP a life that ended cleanly has erased its witness, so that what
 * is put back after it shows no sign; L_NOWITNESS nothing is kept outside; L_APART each process has a witness folder of its own;
 * L_TORN a worker is stopped between a begin's commit and its witness, and the backup is put back just there (as hazard 6).
 */
#ifndef POL
#define POL LOOKUP
#endif
#ifndef TROUBLE
#define TROUBLE 1
#endif
#define N 1
#include "table.pml"
#define AtMostOnce 102
#define NotLost 105
#define NothingAtRest 106
#define RaiseMAXI 191
#define MAXI 9
#define NOFILE 255

#define HAS_FIND (POL == LOOKUP)
#define exists(o) true
#define holds(o) (placed)
#define condition placed
#define spent(o) (A_fail[o] >= 3)
#define spent_then(o) (A_fail[o] + 1 >= 3)
#define expired(o) false
#define lands_over(o) (r[0] != 1 && r[1] != 1 && late_[0] && late_[1])
#define asked_late(o) lands_over(o)
#define blocked(o) false
#define counts 1
#define me inc[p]
#define given 1
#define NEW_CALL (calls + 1)
#define later(a, b) (a > b -> a : b)
#define TOGETHER(o) 0
#define deadline_not_before_now(o) skip
#include "mutations.pml"
#include "events.pml"

/* the database, and its backup */
bit placed = 1, suspect, row[MAXI]; byte count[MAXI];
bit s_placed, s_suspect, s_row[MAXI]; byte s_count[MAXI]; mtype s_st = NONE; bit s_un, s_old; byte s_inc, s_c, s_no, s_fail, s_out;
bit taken_, put_back;
/* outside of it */
byte file[MAXI] = NOFILE;          /* the witness of each life */
byte inc[2], memory[2], told[2], ninc = 1; bit up[2], stale[2], lock[MAXI], says[2];
byte step[2];                      /* of a life that comes up: 0 lock and row, 1 its witness, 2 looks back, 3 carries out */
byte calls, t[2], tc[2], r[2], effects; bit late_[2] = 1;  /* t: 0 none 1 begun 2 counted 3 sent; r: 0 none 1 in the air 2 landed 4 lost */
byte trouble = TROUBLE, stops;

#ifdef L_APART
#define sees(l) (l == inc[p])
#else
#define sees(l) true
#endif
#ifdef L_NOWITNESS
#define write_witness(l, n) skip
#else
#define write_witness(l, n) file[l] = n
#endif
#define works(p) (up[p] && step[p] == 3 && !stale[p])
#ifdef M_SILENT          /* a lost connection is made anew, and nobody looks back */
#define acts(p) (up[p] && step[p] == 3)
#else
#define acts(p) works(p)
#endif

inline went_back() {                /* engine/recover/restore.py */
  if
  :: A_st[0] == NONE && placed -> ROW(70); A_st[0] = DOUBT; A_un[0] = 1; A_inc[0] = me; A_old[0] = 1
  :: A_st[0] == BEGUN || A_st[0] == FAILED || A_st[0] == DOUBT -> ROW(68); A_st[0] = DOUBT; A_un[0] = 1; A_inc[0] = me; A_old[0] = 1
  :: A_st[0] == HELD -> ROW(69); A_un[0] = 1; A_inc[0] = me; A_old[0] = 1
  :: else
  fi;
  suspect = 1; says[p] = 0;
  i = 0;
  do :: i < MAXI -> if :: file[i] != NOFILE && i != inc[p] && (!row[i] || count[i] < file[i]) -> file[i] = NOFILE :: else fi; i++ :: else -> break od
}
inline new_life(p) {
  if :: inc[p] != 0 -> lock[inc[p]] = 0 :: else fi;
  MUST(RaiseMAXI, ninc < MAXI); inc[p] = ninc; lock[ninc] = 1; row[ninc] = 1; count[ninc] = 0; ninc++; step[p] = 1; memory[p] = 0; told[p] = 0; stale[p] = 0
}
inline carry_out(p) {
  if
  :: to == CONCLUDE || to == OVERTAKEN ->
     returned(0);
     if :: to == CONCLUDE -> placed = 0; wipe(0) :: else -> refused(0) fi
  :: to == HELDNEW -> A_st[0] = HELD; A_out[0] = 1
  :: to == ASKED -> to = NONE; if :: effects > 0 -> returned(0); if :: to == CONCLUDE -> placed = 0; wipe(0) :: else -> refused(0) fi :: else -> absent(0) fi
  :: to == GIVEN_UP -> A_st[0] = HELD
  :: else
  fi;
  if :: to != CALLED -> to = NONE :: else fi
}
/* the begin's transaction: it counts, and it is rolled back where the database remembers fewer than we do */
inline begins(p) {
#ifdef M_UNCOMPARED
  if
  :: true ->
#else
  if
  :: !row[inc[p]] || count[inc[p]] < memory[p] -> says[p] = 1; stale[p] = 1
  :: else ->
#endif
     new_call(0); calls++; count[inc[p]]++; told[p] = count[inc[p]]; t[p] = 1; tc[p] = A_c[0]; r[p] = 0; late_[p] = 0
  fi
}
proctype Worker(bit p) {
  byte i; bit sign;
end: do
  :: atomic { if
  /* a life comes up */
  :: !up[p] -> up[p] = 1; new_life(p)
  :: up[p] && step[p] == 1 -> write_witness(inc[p], 0); step[p] = 2
  :: up[p] && step[p] == 2 && !stale[p] ->
       sign = says[p]; i = 0;
       do
       :: i < MAXI ->
          if :: file[i] != NOFILE && sees(i) && (!row[i] || count[i] < file[i]) -> sign = 1 :: else fi; i++
       :: else -> break
       od;
       if :: sign -> went_back() :: else fi; i = 0; sign = 0; step[p] = 3
  /* the connection broke, with the database: what this life counted is compared, and a new life looks back */
  :: up[p] && stale[p] ->
#ifndef M_FORGETFUL
       if :: row[inc[p]] && count[inc[p]] < memory[p] -> says[p] = 1 :: else fi;
#endif
       new_life(p)
  :: acts(p) && t[p] == 0 && r[p] != 1 && placed && A_st[0] == NONE && !suspect -> ROW(66); begins(p)
  :: acts(p) && placed && A_st[0] == NONE && suspect -> ROW(67); A_st[0] = DOUBT; A_un[0] = 1; A_inc[0] = me; A_old[0] = 1
  /* counted where no backup reaches, before the call goes out */
  :: up[p] && step[p] == 3 && t[p] == 1 ->
#ifdef M_LAGGING          /* counted by adding: one behind for ever, once the answer to a COMMIT that landed was lost */
       memory[p]++;
#else
       memory[p] = told[p];
#endif
#ifndef M_WITNESSLATE
       write_witness(inc[p], memory[p]);
#endif
       t[p] = 2
  :: up[p] && t[p] == 2 && step[p] == 3 && !late_[p] && (A_inc[0] == inc[p] || put_back) -> t[p] = 3; r[p] = 1
#ifdef M_WITNESSLATE
  :: up[p] && t[p] == 3 && file[inc[p]] < memory[p] -> write_witness(inc[p], memory[p])
#endif
  :: acts(p) && (t[p] == 1 || t[p] == 2) && (late_[p] || trouble > 0) ->
       if :: !late_[p] -> trouble-- :: else fi; t[p] = 0; late_[p] = 1;
       if :: A_st[0] == BEGUN && A_c[0] == tc[p] -> did_not_go_out(0) :: else fi
  :: acts(p) && t[p] == 3 && r[p] == 2 -> t[p] = 0;
       if :: A_st[0] == BEGUN && A_c[0] == tc[p] -> to = CONCLUDE :: else -> late(0) fi
  :: acts(p) && t[p] == 3 && (r[p] == 4 || trouble > 0) -> if :: r[p] != 4 -> trouble-- :: else fi; t[p] = 0;
       if :: A_st[0] == BEGUN && A_c[0] == tc[p] -> unclear(0) :: else fi
  :: acts(p) && (A_st[0] == BEGUN || A_st[0] == DOUBT) && A_inc[0] != inc[p] && !lock[A_inc[0]] -> adopted(0)
  :: acts(p) && A_st[0] == BEGUN && A_inc[0] == inc[p] && (t[p] == 0 || tc[p] != A_c[0]) -> did_not_go_out(0)
  :: acts(p) && A_st[0] == DOUBT && A_inc[0] == inc[p] && t[p] == 0 && lands_over(0) && r[p] != 1 -> settle(0)
  :: acts(p) && A_st[0] == FAILED && t[p] == 0 && r[p] != 1 -> due(0); if :: to == CALLED -> to = NONE; begins(p) :: else fi
  /* it is killed; or ends cleanly: its witness is erased, then its row */
  :: up[p] && trouble > 0 -> trouble--; up[p] = 0; lock[inc[p]] = 0; inc[p] = 0; t[p] = 0; memory[p] = 0; told[p] = 0; says[p] = 0; stale[p] = 0; step[p] = 0; late_[p] = 1
#ifdef L_CLEANSTOP
  :: works(p) && t[p] == 0 && stops < 2 -> stops++; file[inc[p]] = NOFILE; row[inc[p]] = 0; up[p] = 0; lock[inc[p]] = 0; inc[p] = 0; memory[p] = 0; step[p] = 0
#endif
     fi; carry_out(p); MUST(AtMostOnce, effects <= 1) }
  od
}
proctype ExternalService(bit p) {
end: do
  :: atomic { r[p] == 1 -> r[p] = 2; effects++; MUST(AtMostOnce, effects <= 1) }
  :: atomic { r[p] == 1 && trouble > 0 -> trouble--; r[p] = 4 }
  :: atomic { !late_[p] && r[p] != 1 && (t[p] != 1 && t[p] != 2 || trouble > 0) ->
       if :: t[p] == 1 || t[p] == 2 -> trouble-- :: else fi; late_[p] = 1 }
  od
}
proctype Ops() {
  byte i;
  atomic { taken_ = 1; s_placed = placed; s_suspect = suspect; s_st = A_st[0]; s_un = A_un[0]; s_old = A_old[0]; s_inc = A_inc[0];
    s_c = A_c[0]; s_no = A_no[0]; s_fail = A_fail[0]; s_out = A_out[0];
    i = 0; do :: i < MAXI -> s_row[i] = row[i]; s_count[i] = count[i]; i++ :: else -> break od; i = 0 };
#ifdef L_TORN
#define whole true
#else
#define whole (t[0] != 1 && t[1] != 1)      /* nobody stands between a begin's commit and its witness */
#endif
  atomic { whole -> put_back = 1; placed = s_placed; suspect = s_suspect; A_st[0] = s_st; A_un[0] = s_un; A_old[0] = s_old; A_inc[0] = s_inc;
    A_c[0] = s_c; A_no[0] = s_no; A_fail[0] = s_fail; A_out[0] = s_out;
    do :: i < MAXI -> row[i] = s_row[i]; count[i] = s_count[i]; lock[i] = 0; i++ :: else -> break od; i = 0;
    if :: up[0] -> stale[0] = 1 :: else fi; if :: up[1] -> stale[1] = 1 :: else fi }
}
proctype Quiet() {
end: atomic { timeout -> MUST(NotLost, !placed || A_st[0] == HELD); MUST(NothingAtRest, A_st[0] == NONE || A_st[0] == HELD) }
}
init { atomic { run Worker(0); run Worker(1); run ExternalService(0); run ExternalService(1); run Ops(); run Quiet() } }
