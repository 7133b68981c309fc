/*
 * events.pml - each event of the table: the rows that know it, of which the one whose guard is met is carried out. Included after
 * table.pml, and after what puts holes into it.
 */
#ifndef other_code        /* a world in which no code changes */
#define other_code(o) false
#define other_call(o) false
#define other_lookup(o) false
#endif
inline wipe(o) {
  A_st[o] = NONE; A_un[o] = 0; A_inc[o] = 0; A_c[o] = 0; A_no[o] = 0; A_fail[o] = 0; A_dl[o] = 0; A_out[o] = 0; A_tog[o] = 0;
  A_old[o] = 0; A_ends[o] = 0
}
inline new_call(o) {
  begun_state(o); begun_worker(o); begun_call(o); begun_call_no(o); begun_first_at(o); begun_deadline(o); begun_together(o)
}

inline returned(o) { if R(1) R(2) fi }
inline refused(o) { if R(3) OR_NO_ROW fi }
inline one_of_several(o) { if R(4) OR_NO_ROW fi }
inline not_done(o) { if R(5) R(6) OR_NO_ROW fi }
inline unclear(o) { if R(7) OR_NO_ROW fi }
inline adopted(o) { if R(86) R(8) R(9) R(10) R(11) OR_NO_ROW fi }
inline not_in_memory(o) { if R(78) R(79) R(80) OR_NO_ROW fi }
inline did_not_go_out(o) { if R(12) R(13) R(14) OR_NO_ROW fi }
inline settle(o) { if R(15) R(16) R(81) R(17) R(82) R(18) R(19) R(72) R(20) R(21) R(22) R(23) R(83) R(24) R(25) OR_NO_ROW fi }
inline absent(o) { if R(26) R(27) R(28) R(29) OR_NO_ROW fi }
inline unknown(o) { if R(30) OR_NO_ROW fi }
inline unknown_for_too_long(o) { if R(31) OR_NO_ROW fi }
inline due(o) { if R(32) R(73) R(33) R(34) R(35) OR_NO_ROW fi }
inline expired_in_vain(o) { if R(74) R(75) R(76) OR_NO_ROW fi }
inline late(o) { if R(36) R(37) R(84) R(38) R(39) R(40) R(41) R(42) R(43) R(44) fi }
inline retry(o) { if R(45) R(46) R(47) R(48) R(49) R(50) R(85) R(51) OR_NO_ROW fi }
inline settle_absent(o) { if R(52) R(53) R(54) R(55) R(56) R(57) OR_NO_ROW fi }
inline settle_outcome(o) { if R(58) R(59) R(60) R(61) OR_NO_ROW fi }
inline forget(o) { if R(62) R(63) R(64) R(65) OR_NO_ROW fi }
