/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jobs of lun_backends/cluster/README.md: deletions with two movers, and rollbacks that another node takes over; and the
 * records INVALID and EXPEL.
 *
 * The fence is one step here: `cluster.pml` shows that it may be.  An append to the log is one step with the look at all
 * records before it, because a lost race is decided again.  There is one block, and its contents are numbers.
 *
 * WORK 0: snapshots 1, 2 and 3 exist, with and without a copy of the block.  A node writes, a fourth snapshot is taken,
 * and any are deleted while two movers work.  The views of all others must stay what they were.
 * WORK 1: the block differs from snapshot 1.  Two nodes write, roll back, sleep, die, and take each other's rollback over.  An
 * administrator and a full LUN want to end snapshot 1 meanwhile.
 * WORK 2: snapshots 1 and 2 exist, and LUN(2) gets full.  Two nodes write, and give snapshot 2 up; a third one reads both views.
 * The reservation is 8h or 7h (KIND).  Reads, looks at the log and puts are steps of their own.
 * WORK 3: a fence is due.  Three nodes fence, join and write, and node 1 is expelled.  The steps of the fence are apart here.
 */

#define NONE 0
#define MOVE_EARLY 1            /* chunks of the newest snapshot move before the fence of the next one */
#define HIDDEN_TARGET 2         /* chunks move into a snapshot that is hidden itself */
#define NO_TARGET_NAME 3        /* DELETED does not name the LUN that took the chunks */
#define RESTORE_BLINDLY 4       /* a write of a rollback that was refused is tried again without a look at the log */
#define LATE_ROLLED_BACK 5      /* ROLLED-BACK does not name its ROLLBACK */
#define OPEN_FOR_ROLLBACK 6     /* the node that rolls back serves other writes meanwhile */
#define NO_LOSS_FENCE 7         /* a write goes on without its copy when INVALID is in the log, before its fence */
#define OLDER_STAY 8            /* INVALID ends the views of its own snapshot only, and not those of older ones */
#define NO_LOSS_LOOK 9          /* 7h: the look at the log behind a read of the primary does not heed INVALID */
#define SOURCE_LOST 10          /* the log takes DELETE or INVALID of the snapshot of a rollback under way */
#define ANSWERS_LATER 11        /* FENCED answers the demand that is the newest after F1, not the one that was before */
#define EXPELLED_JOINS 12       /* an expelled node that reads its EXPEL joins all the same */
#define EXPELLED_NO_J3 13       /* J3 does not look for EXPEL */

byte mutant;
byte kind;
byte cur = 1;             /* what the primary holds */
byte next = 2;            /* the content of the next write */
byte lun[6];              /* 0: blank */
byte moment[6];
byte newest;              /* EPOCH(newest) is the newest of its kind */
byte fenced;              /* FENCED(fenced), too */
bit hid[6];
bit gone[6];
bit registered[3];
bit invalid;              /* INVALID is in the log; WORK 2: of snapshot 2 */
bit expelled;             /* EXPEL(node 1) is in the log */
byte rollback;            /* the number of the ROLLBACK record under way; 0: none */
byte rollbacks;           /* how many there were */
byte answered;            /* the newest ROLLBACK that is fenced */
byte owner;               /* its node */
byte k;                   /* scratch */
byte seen;

inline find_older(which, found) {
  found = which - 1;
  do :: found > 0 && gone[found] -> found-- :: else -> break od
}

inline check() {
  k = 1;
  do
  :: k <= fenced ->
     if
     :: !hid[k] && !gone[k] ->
        seen = k;
        do :: seen <= newest && (lun[seen] == 0 || gone[seen]) -> seen++ :: else -> break od;
        assert((seen <= newest -> lun[seen] : cur) == moment[k])
     :: else
     fi;
     k++
  :: else -> break
  od;
  k = 0; seen = 0
}

inline fence() {
  if :: newest > fenced -> moment[newest] = cur; fenced = newest :: else fi;
  answered = rollback;
  registered[0] = 0; registered[1] = 0
}

/* ---- deletions ---- */

proctype Writer(byte i) {
  byte e, copy;
  do
  :: !registered[i] -> atomic { newest == fenced -> e = fenced; registered[i] = 1 }
  :: registered[i] && next < 7 ->
     if
     :: atomic { lun[e] == 0 && registered[i] -> copy = cur };
        d_step { if :: lun[e] == 0 -> lun[e] = copy :: else fi; copy = 0; check() }
     :: lun[e] != 0
     fi;
     d_step { if :: registered[i] -> cur = next; next++ :: else fi; check() }
  od
}

#define MAY_MOVE(which) (hid[which] && !gone[which] && (fenced > which || mutant == MOVE_EARLY && newest > which) \
                      && (into == 0 || !hid[into] || mutant == HIDDEN_TARGET))

proctype Mover() {
  byte which, into, now, value;
  do
  :: atomic {
       if :: which = 1 :: which = 2 :: which = 3 fi;
       find_older(which, into);
       if :: MAY_MOVE(which) :: else -> which = 0; into = 0 fi }
     if
     :: which == 0
     :: which != 0 ->
        if
        :: into > 0 ->
           value = lun[which];
           d_step { if :: value && lun[into] == 0 && !gone[into] -> lun[into] = value :: else fi; value = 0; check() }
        :: else
        fi;
        d_step {
          now = into; find_older(which, into);
          if :: MAY_MOVE(which) && (now == into || mutant == NO_TARGET_NAME) -> gone[which] = 1 :: else fi;
          now = 0; into = 0; which = 0;
          check() }
     fi
  od
}

proctype Administrator() {    /* and another node, which takes a snapshot and fences */
  do
  :: d_step { newest == 3 -> newest = 4 }
  :: atomic { newest > fenced -> fence(); check() }
  :: d_step { !hid[1] -> hid[1] = 1 }
  :: d_step { !hid[2] -> hid[2] = 1 }
  :: d_step { !hid[3] -> hid[3] = 1 }
  od
}

/* ---- rollbacks ---- */

proctype Node_(byte i) {
  byte mine;      /* the ROLLBACK that this node works for */
  do
  /* J: the fence is due, or the node joins, or it stays out */
  :: atomic { rollback != answered && rollback != 0 -> fence() }
  :: d_step { !registered[i] && rollback == answered && (rollback == 0 || owner == i) -> registered[i] = 1; mine = rollback }

  /* W: an initiator writes */
  :: d_step { registered[i] && next < 5 && (mine == 0 || mutant == OPEN_FOR_ROLLBACK) ->
       if :: lun[1] == 0 -> lun[1] = cur :: else fi;
       assert(rollback == 0 || rollback != answered);    /* only the rollback writes once it is fenced */
       cur = next; next++; check() }

  /* the rollback: each try of its write looks at the log that the node read when it joined */
  :: d_step { !rollback && !invalid && rollbacks < 3 && registered[i] -> rollbacks++; rollback = rollbacks; owner = i; mine = 0 }
  :: d_step { rollback && rollbacks < 3 && owner != i -> rollbacks++; rollback = rollbacks; owner = i; mine = 0 }
  :: atomic { mine && registered[i] -> skip };
     do
     :: d_step { registered[i] && (mine == rollback || mutant == RESTORE_BLINDLY) ->
          if :: lun[1] == 0 -> lun[1] = cur :: else fi;
          assert(rollback != 0);    /* nothing is written for a rollback that has ended */
          cur = (lun[1] -> lun[1] : moment[1]);
          check() };
        break
     :: d_step { !registered[i] && mutant != RESTORE_BLINDLY -> skip }; break
     :: d_step { !registered[i] && mutant == RESTORE_BLINDLY && (rollback == 0 || owner == i) && rollback == answered ->
          registered[i] = 1 }
     :: d_step { registered[i] && mine != rollback && mutant != RESTORE_BLINDLY -> skip }; break
     od;
     if
     :: d_step { rollback && (rollback == mine || mutant == LATE_ROLLED_BACK) ->
          assert(rollback == answered && cur == moment[1]);
          rollback = 0; answered = 0; mine = 0 }
     :: skip    /* it dies, or goes on later */
     fi

  /* an administrator deletes snapshot 1, or its LUN is full: both end it */
  :: d_step { !invalid && (!rollback || mutant == SOURCE_LOST) -> invalid = 1; assert(!rollback) }

  /* it polls the log, or dies and starts again */
  :: d_step { mine && mine != rollback -> mine = 0 }
  :: d_step { registered[i] -> mine = (owner == i && rollback == answered -> rollback : 0) }
  od
}

/* ---- losses ---- */

#define LOSS_IS_FENCED (answered || mutant == NO_LOSS_FENCE)
#define LOOKS (kind == 7 && mutant != NO_LOSS_LOOK)

proctype Loser(byte i) {
  byte copy;
  bit knows;      /* this node read INVALID, and its FENCED */
again:
  skip;
  do
  :: atomic { !registered[i] && (!invalid || LOSS_IS_FENCED) -> registered[i] = 1; knows = invalid }    /* J1 to J4 */
  :: atomic { invalid && !knows -> registered[i] = 0; if :: LOSS_IS_FENCED -> registered[i] = 1; knows = 1 :: else fi }    /* it polls */
  :: registered[i] && next < 6 ->
     if
     :: knows
     :: !knows ->
        if
        :: atomic { registered[i] || kind == 7 -> copy = cur }
        :: atomic { !registered[i] && kind == 8 -> goto again }
        fi;
        if :: atomic { LOOKS && invalid -> copy = 0; goto again } :: atomic { !LOOKS || !invalid } fi;
        if
        :: d_step { lun[2] == 0 -> lun[2] = copy; copy = 0 }
        :: d_step { lun[2] != 0 -> copy = 0 }
        :: atomic { lun[2] == 0 -> copy = 0; invalid = 1; goto again }    /* the LUN is full */
        fi
     fi;
     d_step { if :: registered[i] && next < 6 -> cur = next; next++ :: else fi }
  od
}

proctype Reader(byte i) {
  byte which, seen_;
  bit knows;
again:
  skip;
  do
  :: atomic { !registered[i] && (!invalid || LOSS_IS_FENCED) -> registered[i] = 1; knows = invalid }
  :: registered[i] ->
     atomic { seen_ = 0; if :: which = 1 :: which = 2 fi };
     if
     :: atomic { knows && (which == 2 || mutant != OLDER_STAY) -> which = 0; goto again }
     :: !knows || which == 1 && mutant == OLDER_STAY
     fi;
     d_step { if :: which == 1 -> seen_ = lun[1] :: else fi };
     d_step { if :: !seen_ -> seen_ = lun[2] :: else fi };
     if
     :: seen_
     :: !seen_ ->
        if
        :: atomic { registered[i] || kind == 7 -> seen_ = cur }
        :: atomic { !registered[i] && kind == 8 -> which = 0; goto again }
        fi;
        if :: atomic { LOOKS && invalid && !knows -> which = 0; seen_ = 0; goto again } :: atomic { !LOOKS || !invalid || knows } fi;
        d_step { if :: lun[2] -> seen_ = lun[2] :: else fi }
     fi;
     d_step { assert(seen_ == moment[which]); which = 0; seen_ = 0 }
  :: atomic { invalid && !knows && LOSS_IS_FENCED -> registered[i] = 1; knows = 1 }
  od
}

proctype Fencer() {    /* any node: which one makes no difference here */
  do
  :: atomic { invalid && !answered && mutant != NO_LOSS_FENCE -> registered[0] = 0; registered[1] = 0; registered[2] = 0 };
     answered = 1
  od
}

/* ---- expulsions ---- */

#define DEMAND (expelled -> 2 : 1)
#define STAYS_OUT (expelled && i == 1 && mutant != EXPELLED_JOINS)

proctype Member(byte i) {
  byte demand;
J1:
  demand = DEMAND;
  if :: STAYS_OUT -> goto out :: else fi;
  if
  :: answered < demand ->
F0:  registered[i] = 1;
     d_step { if :: registered[i] -> registered[0] = (i == 0); registered[1] = (i == 1); registered[2] = (i == 2) :: else -> demand = 0 fi };
     if :: demand == 0 || !registered[i] -> goto J1 :: else fi;    /* F2: conflict */
     d_step {
       if :: mutant == ANSWERS_LATER -> demand = DEMAND :: else fi;
       answered = (answered > demand -> answered : demand) }
  :: else -> registered[i] = 1
  fi;
  if :: atomic { (answered < DEMAND || STAYS_OUT) && mutant != EXPELLED_NO_J3 -> goto J1 } :: else fi;
  do
  :: atomic { registered[i] -> assert(i != 1 || answered < 2) }    /* a write is admitted */
  :: !registered[i] || answered < DEMAND || expelled -> goto J1    /* EBADE, or it polls the log */
  od;
out:
  skip
}

init {
  atomic {
#ifdef MUTANT
    mutant = MUTANT;
    kind = KIND;
#else
    c_code { now.mutant = atoi(getenv("MUTANT")); }; c_code { now.kind = atoi(getenv("KIND")); };
#endif
#if WORK == 2
    moment[1] = cur;
    if :: lun[1] = cur; cur = next; next++ :: skip fi;
    moment[2] = cur;
    run Loser(0); run Loser(1); run Reader(2); run Fencer()
#elif WORK == 3
    run Member(0); run Member(1); run Member(2);
    expelled = 0
  };
  expelled = 1;
  atomic {
#elif WORK == 0
    k = 1;
    do
    :: k <= 3 -> moment[k] = cur; if :: k < 3 -> lun[k] = cur; cur = next; next++ :: skip fi; k++
    :: else -> break
    od;
    next = 5; k = 0; newest = 3; fenced = 3;
    run Writer(0); run Mover(); run Mover(); run Administrator()
#else
    moment[1] = 1; newest = 1; fenced = 1; lun[1] = 1; cur = 2; next = 3;
    run Node_(0); run Node_(1)
#endif
    skip
  }
}
