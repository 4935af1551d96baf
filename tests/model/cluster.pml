/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The protocol of lun_backends/cluster/README.md, with every order in which its steps can happen.
 *
 * `python -m tests.model` runs it.  The names of steps (T1, F0 to F3, J1 to J4, W, R) are those of that page.
 *
 * There are NODES nodes, BLOCKS blocks, and EPOCHS snapshots after epoch 0.  Each node writes, reads views, takes snapshots, fences for
 * others, crashes, starts again, loses its link, and sleeps between any two steps, without a limit.  So the search ends only when
 * every state was seen.  The storage host restarts once, or loses the reservation once while no node runs.
 *
 * The model watches the content of one snapshot, any of them.  The moment of snapshot k is the end of the first PREEMPT AND ABORT behind
 * EPOCH(k), or of the LOGICAL UNIT RESET behind the PREEMPT.  The contents of blocks are not numbers: content is RIGHT if it is that of the moment of the watched snapshot.  Every write
 * is new content, and never RIGHT.  A copy is LIVE while the primary still holds it; what is LIVE at the moment becomes RIGHT.
 * So the search covers any number of writes.  The model watches the content of block 0 only.  The other block keeps nodes and the
 * device busy.  This loses nothing: no step of the protocol compares two blocks, and blocks are alike.
 *
 * The device, tags = 1: as LIO does it, measured and read.  A command bears the key of the reservation's holder at its admission.
 * PREEMPT AND ABORT ends the commands whose tag is the key of a registration that it removes, or the fencer's own key.  A node keeps
 * its registration when it logs in again.  tags = 0: as SPC-4 has it.  PREEMPT AND ABORT ends the commands of the nexuses that it
 * removes.  A node that logs in again has a new nexus, which is not registered.
 *
 * overlap = 0: F1 is PREEMPT AND ABORT, in one step.  overlap = 1: F1 is PREEMPT, which ends no command, and LOGICAL UNIT RESET, which
 * takes the commands at the device, and waits for them.  A second one begins when the first has ended (measured, LIO).  Nodes do all
 * else meanwhile.  With two nodes, a node also crashes during that wait.  Its command goes on to wait at the device, and no other begins.
 *
 * PATHS = 2: each node has two paths to the device, and each is a nexus with its own registration.  Every command takes any of them.
 *
 * A command that PREEMPT AND ABORT ends may have landed or not.  Both are covered by "not", because it may also land just before.
 *
 * Nodes are alike.  After each step their records are put in order, so that states which differ only in names are one.
 */

#ifndef NODES
#define NODES 3
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif
#ifndef PATHS
#define PATHS 1
#endif
#define EPOCHS 2

/* Mutants: the protocol without one of its guards. */
#define NONE 0
#define B1_OLD_RULE 1           /* register the new key, then PREEMPT AND ABORT the old one */
#define B2_NO_LOOK 2            /* 7h: no look at the log between a copy's read and its put */
#define B3_NO_J3 3              /* the key that a node could register is the epoch: it arms after J2 */
#define NO_VIEW_LOOK 4          /* 7h: no look at the log after a view's read of the primary */
#define NO_FENCED 5             /* a node arms in an epoch that is not fenced yet */
#define NO_J4_RESERVATION 6     /* a node arms although no reservation exists */
#define NO_J4_KEYS 7            /* a node arms although another key is registered */
#define NO_J_DRAIN 8            /* a node joins while a write of its own is still on the way */
#define NO_T1_DRAIN 9           /* a node takes while a write of its own is still on the way */
#define NO_T3 10                /* a fencer arms without reading the log again */
#define F2_BEFORE_F1 11         /* a fencer registers the new key, then fences */
#define CHANGED_KEY 12          /* F0 registers the new key although the node is registered */
#define EARLY_KEY 13            /* J2 registers the key of an epoch that is not fenced yet */
#define NO_ABORT 14             /* PREEMPT instead of PREEMPT AND ABORT */
#define KEPT_TRACKER 15         /* the tracker stays in a new epoch */
#define NO_APTPL 16             /* registrations and reservation end with a restart of the storage host */
#define USED_LUN 17             /* T1 does not verify that the new write-once LUN is blank */
#define LOST_RACE 18            /* T1 takes BLANK CHECK of the log for success: this node copies into a LUN that nobody reads */
#define UNREGISTER 19           /* a node unregisters at a clean stop */
#define NO_FIRST_FENCE 20       /* epoch 0 needs no fence */
#define NO_SECOND_LOOK 21       /* a view does not ask LUN(e) again after its read of the primary */
#define NO_RESET 23             /* overlap: F1 is PREEMPT alone */
#define NO_COPY 22              /* W: the write goes before the copy is in LUN(e) */
#define ABANDONED 24            /* overlap: with its node, a LOGICAL UNIT RESET that waits is gone, and nobody waits for its commands */
#define LATE_PATH 25            /* two paths: a path that lost its registration registers by itself */
#define EARLY_J3 26             /* two paths: the log is read before the second path registers */

/* The next step of a node; a node that is stopped is at J1. */
#define J1 0
#define J2 1
#define J3 2
#define J4 3
#define ARMED 4
#define F0 6
#define F1 7
#define F2 8
#define F3 9
#define W_READ 10       /* sends the read of the old content */
#define W_READING 11    /* that read is at the device */
#define W_LOOK 12
#define W_PUT 13
#define W_WRITE 14      /* sends the write */
#define W_WRITING 15    /* that write is at the device */
#define R_READ 16
#define R_READING 17
#define R_LOOK 18
#define R_AGAIN 19
#define F1_RESET 21
#define F1_RESETTING 22 /* overlap: its LOGICAL UNIT RESET waits at the device */
#define J2_OTHER 23     /* two paths: registers the second one */
#define F0_OTHER 24
#define F2_OTHER 25

#define KEY(epoch) ((epoch) + 1)    /* K(epoch); 0 means not registered */

#define LIVE 1
#define RIGHT 2
#define WRITTEN 4

typedef Node {
  unsigned pc : 5;
  unsigned e : 2;         /* the epoch that this node read in the log */
  unsigned tracker : 1;   /* block 0 is preserved in LUN(e) */
  unsigned block : 1;     /* of the write or view under way */
  unsigned tag : 2;       /* of the command at the device */
  unsigned copy : 2;      /* what was read of the primary: LIVE, RIGHT */
  unsigned key : 2;       /* registered at the device */
  unsigned holder : 1;    /* tags: this registration's key is the tag of admitted commands */
#if PATHS == 2
  unsigned other_key : 2; /* of the second path */
  unsigned other_holder : 1;
  unsigned path : 1;      /* of the command at the device, or of the fence */
#endif
  unsigned ghost : 1;     /* a write of a session that is gone is still at the device */
  unsigned ghost_block : 1;
  unsigned ghost_tag : 2;
  unsigned claimer : 2;   /* overlap: 1 + the node whose LOGICAL UNIT RESET waits for the command at the device */
  unsigned ghost_claimer : 2;
  unsigned late : 1;      /* mutants: a write that the node did not drain; the initiator sends it later */
  unsigned late_block : 1
};

Node n[NODES];
bit right;                /* what the primary holds in block 0 is RIGHT */
unsigned lun1 : 3;        /* block 0 of LUN(1): WRITTEN, and the bits of the copy */
unsigned lun2 : 3;
unsigned newest : 2;      /* log: EPOCH(newest) is the newest of its kind */
unsigned fenced : 3;      /* log: bit e is FENCED(e) */
bit moment;               /* the moment of the watched snapshot has come */
bit reserved;
byte kind;                /* of the reservation: 8 exclusive access, 7 write exclusive, both for all registrants */
bit tags;                 /* 1: the device is LIO; 0: it does as SPC-4 says */
bit overlap;              /* LIO: F1 is PREEMPT and LOGICAL UNIT RESET, which waits */
byte mutant;
unsigned watched : 2;     /* the snapshot whose content is checked */
bit troubled;             /* the storage host had its trouble */
bit zombie;               /* overlap: the LOGICAL UNIT RESET of a dead node waits at the device */
#define OF_ZOMBIE 3       /* the claimer of commands that it waits for */

byte j, mask, t;          /* scratch, 0 between steps */

#define me n[i]
#if PATHS == 2
#define PATH_KEY(x) (n[x].path -> n[x].other_key : n[x].key)
#define PATH_HOLDS(x) (n[x].path -> n[x].other_holder : n[x].holder)
#define OTHER_KEY(x) n[x].other_key
#define OTHER_HOLDER(x) n[x].other_holder
#define SET_PATH_KEY(value) if :: me.path -> me.other_key = value :: else -> me.key = value fi
#define SET_HOLDER(x, value) n[x].holder = (value && !n[x].path); n[x].other_holder = (value && n[x].path)
#else
#define PATH_KEY(x) n[x].key
#define OTHER_KEY(x) 0
#define OTHER_HOLDER(x) 0
#define SET_PATH_KEY(value) me.key = value
#define SET_HOLDER(x, value) n[x].holder = (value)
#endif
#define REGISTERED(x) (n[x].key || OTHER_KEY(x))
#define ADMITTED (!reserved || PATH_KEY(i))
#define READ_ADMITTED (kind == 7 || ADMITTED)
#define NEEDS_NO_FENCE(epoch) (mutant == NO_FENCED || (mutant == NO_FIRST_FENCE && (epoch) == 0))
#define PENDING(epoch) (!((fenced >> (epoch)) & 1) && !NEEDS_NO_FENCE(epoch))
#define KEY_FIRST (mutant == F2_BEFORE_F1 || (mutant == B1_OLD_RULE && me.e > 0))
#define READS(x) (n[x].pc >= R_READ && n[x].pc <= R_AGAIN)
#define BLANK(k) (!((k == 1 -> lun1 : lun2) & WRITTEN))
#define AT_DEVICE(x) (n[x].pc == W_READING || n[x].pc == W_WRITING || n[x].pc == R_READING)

/* ---- the device ---- */

inline admit() {
  me.tag = 0;
  for (j : 0 .. NODES - 1) {
    if
    :: tags && reserved && n[j].holder -> me.tag = n[j].key
    :: tags && reserved && OTHER_HOLDER(j) -> me.tag = OTHER_KEY(j)
    :: else
    fi
  }
}

inline land(where) {
  if
  :: where == 0 ->
     right = 0;
     lun1 = lun1 & ~LIVE;
     lun2 = lun2 & ~LIVE;
     for (j : 0 .. NODES - 1) { n[j].copy = n[j].copy & ~LIVE }
  :: else
  fi
}

#define NOW_RIGHT(copy) (copy & LIVE -> copy & ~LIVE | RIGHT : copy)

inline moment_comes() {
  right = 1;
  lun1 = NOW_RIGHT(lun1);
  lun2 = NOW_RIGHT(lun2);
  for (j : 0 .. NODES - 1) { n[j].copy = NOW_RIGHT(n[j].copy) }
  moment = 1
}

inline drop_ghost(whose) { n[whose].ghost = 0; n[whose].ghost_block = 0; n[whose].ghost_tag = 0; n[whose].ghost_claimer = 0 }
inline make_ghost() { me.ghost = 1; me.ghost_block = me.block; me.ghost_tag = me.tag; me.ghost_claimer = me.claimer }

inline to_J1(who) {
  n[who].pc = J1; n[who].tag = 0; n[who].claimer = 0; n[who].copy = 0; n[who].block = 0;
  if :: n[who].tracker == 0 -> n[who].e = 0 :: else fi    /* J1 reads it anew */
}

/* It removes all registrations but that of the fencer's own path. */
#define OLD_KEY(key) (mutant != B1_OLD_RULE || key == KEY(me.e - 1))
#if PATHS == 2
#define REMOVES(x) ((x != i || me.path) && n[x].key && OLD_KEY(n[x].key))
#define REMOVES_OTHER(x) ((x != i || !me.path) && n[x].other_key && OLD_KEY(n[x].other_key))
#else
#define REMOVES(x) (x != i && n[x].key && OLD_KEY(n[x].key))
#define REMOVES_OTHER(x) 0
#endif

inline removed_keys() {
  for (j : 0 .. NODES - 1) {
    if :: REMOVES(j) -> mask = mask | (1 << n[j].key) :: else fi;
    if :: REMOVES_OTHER(j) -> mask = mask | (1 << OTHER_KEY(j)) :: else fi
  }
}

inline remove_registrations() {
  for (j : 0 .. NODES - 1) {
    if :: REMOVES(j) -> n[j].key = 0 :: else fi;
#if PATHS == 2
    if :: REMOVES_OTHER(j) -> n[j].other_key = 0 :: else fi;
#endif
    SET_HOLDER(j, tags && j == i)
  }
}

inline preempt_and_abort() {
  mask = (mutant == B1_OLD_RULE -> 0 : 1 << PATH_KEY(i));    /* LIO adds the fencer's own key only with service key 0 */
  removed_keys();
  for (j : 0 .. NODES - 1) {
    if
    :: mutant != NO_ABORT && j != i && AT_DEVICE(j) && (tags -> mask & (1 << n[j].tag) : PATH_KEY(j)) -> to_J1(j)
    :: else
    fi;
    if
    :: mutant != NO_ABORT && n[j].ghost && (!tags || mask & (1 << n[j].ghost_tag)) -> drop_ghost(j)
    :: else
    fi
  }
  remove_registrations();
  if :: newest >= watched && !moment -> moment_comes() :: else fi
}

#define WAITS(x) (n[x].claimer == i + 1 || n[x].ghost && n[x].ghost_claimer == i + 1)
#define NOTHING_LEFT (!WAITS(0) && !WAITS(1) && !WAITS(NODES - 1))
#define OF_ZOMBIE_AT(x) (n[x].claimer == OF_ZOMBIE || n[x].ghost && n[x].ghost_claimer == OF_ZOMBIE)

inline fence_ends() {
  if :: me.copy && !moment -> moment_comes() :: else fi;
  me.copy = 0;
  me.pc = F2
}

inline preempt() {
  remove_registrations();
  me.copy = (newest >= watched -> RIGHT : 0);    /* whether it is behind EPOCH(watched) */
  if :: mutant == NO_RESET -> fence_ends() :: else -> me.pc = F1_RESET fi
}

#define RESETS(x) (n[x].pc == F1_RESETTING)

inline reset_begins() {
  for (j : 0 .. NODES - 1) {
    if :: j != i && AT_DEVICE(j) && !n[j].claimer -> n[j].claimer = i + 1 :: else fi;
    if :: n[j].ghost && !n[j].ghost_claimer -> n[j].ghost_claimer = i + 1 :: else fi
  }
  me.pc = F1_RESETTING
}

/* ---- what must be true ---- */

#define VIEW_RIGHT (watched == 1 && lun1 & WRITTEN -> lun1 & RIGHT : (lun2 & WRITTEN -> lun2 & RIGHT : right))

inline check() { assert(!((fenced >> watched) & 1) || VIEW_RIGHT) }

/* ---- states that differ only in names ---- */

#define HALF(x) (((((n[x].pc * 4 + n[x].e) * 2 + n[x].tracker) * 2 + n[x].block) * 4 + n[x].tag) * 4 + n[x].copy)
#define OTHER_HALF(x) ((((((((n[x].key * 2 + n[x].holder) * 2 + n[x].ghost) * 2 + n[x].ghost_block) * 4 + n[x].ghost_tag) * 2 \
                       + n[x].late) * 2 + n[x].late_block) * 4 + n[x].claimer) * 4 + n[x].ghost_claimer)
#if PATHS == 2
#define PATHS_OF(x) ((n[x].other_key * 2 + n[x].other_holder) * 2 + n[x].path)
#else
#define PATHS_OF(x) 0
#endif
#define GREATER(x, y) (HALF(x) > HALF(y) || (HALF(x) == HALF(y) && (OTHER_HALF(x) > OTHER_HALF(y) \
                       || (OTHER_HALF(x) == OTHER_HALF(y) && PATHS_OF(x) > PATHS_OF(y)))))
#define SWAP(one, other) t = one; one = other; other = t

inline order(x, y) {
  if
  :: GREATER(x, y) ->
#if PATHS == 2
     SWAP(n[x].other_key, n[y].other_key); SWAP(n[x].other_holder, n[y].other_holder); SWAP(n[x].path, n[y].path);
#endif
     SWAP(n[x].pc, n[y].pc); SWAP(n[x].e, n[y].e); SWAP(n[x].tracker, n[y].tracker); SWAP(n[x].block, n[y].block);
     SWAP(n[x].tag, n[y].tag); SWAP(n[x].copy, n[y].copy); SWAP(n[x].key, n[y].key);
     SWAP(n[x].holder, n[y].holder); SWAP(n[x].ghost, n[y].ghost); SWAP(n[x].ghost_block, n[y].ghost_block);
     SWAP(n[x].ghost_tag, n[y].ghost_tag); SWAP(n[x].late, n[y].late); SWAP(n[x].late_block, n[y].late_block);
     SWAP(n[x].claimer, n[y].claimer); SWAP(n[x].ghost_claimer, n[y].ghost_claimer);
     for (j : 0 .. NODES - 1) {
       n[j].claimer = (n[j].claimer == x + 1 -> y + 1 : (n[j].claimer == y + 1 -> x + 1 : n[j].claimer));
       n[j].ghost_claimer = (n[j].ghost_claimer == x + 1 -> y + 1 : (n[j].ghost_claimer == y + 1 -> x + 1 : n[j].ghost_claimer))
     }
  :: else
  fi
}

inline step_ends() {
  d_step {
    printf("node %d: zombie %d", i, zombie);
    for (j : 0 .. NODES - 1) {
      printf(" [%d e%d track%d key%d%d tag%d copy%d ghost%d/%d late%d claim%d/%d]", n[j].pc, n[j].e, n[j].tracker, n[j].key, n[j].holder, n[j].tag,
             n[j].copy, n[j].ghost, n[j].ghost_tag, n[j].late, n[j].claimer, n[j].ghost_claimer)
    }
    printf(" newest %d fenced %d moment %d reserved %d block 0: %d %d %d\n", newest, fenced, moment, reserved,
           right, lun1, lun2);
    check();
    order(0, 1);
#if NODES == 3
    order(1, 2);
    order(0, 1);
#endif
    j = 0; mask = 0; t = 0
  }
}

/* ---- a node ---- */

inline choose_block() {
  if
  :: me.block = 0
#if BLOCKS == 2
  :: me.block = 1
#endif
  fi
}

inline choose_path() {
#if PATHS == 2
  if :: me.path = 0 :: me.path = 1 fi
#else
  skip
#endif
}

inline send_read(then) { if :: READ_ADMITTED -> admit(); me.pc = then :: else -> to_J1(i) fi }
inline send_write() { if :: ADMITTED -> admit(); me.pc = W_WRITING :: else -> to_J1(i) fi }

inline take() {
  if
  :: newest == me.e ->
     newest = me.e + 1; me.e = newest; me.tracker = 0; me.pc = F0;
     if
     :: mutant == USED_LUN && me.e == 1 -> lun1 = WRITTEN
     :: mutant == USED_LUN && me.e == 2 -> lun2 = WRITTEN
     :: else
     fi
  :: newest != me.e && mutant == LOST_RACE -> me.e = newest; me.tracker = 1; me.pc = F0
  :: else -> to_J1(i)
  fi
}

proctype Node_(byte i) {
  do
  :: atomic {
     if
     /* J: join */
     :: me.pc == J1 -> d_step {
          if :: newest != me.e && mutant != KEPT_TRACKER -> me.tracker = 0 :: else fi;
          me.e = newest;
          me.pc = (PENDING(me.e) && mutant != EARLY_KEY -> F0 : J2) }
     :: me.pc == J2 -> d_step {
          me.key = KEY(me.e);
          me.pc = (PATHS == 2 && mutant != EARLY_J3 -> J2_OTHER : (mutant == B3_NO_J3 -> ARMED : J3)) }
#if PATHS == 2
     :: me.pc == J2_OTHER -> d_step { me.other_key = KEY(me.e); me.pc = (mutant == EARLY_J3 -> J4 : J3) }
#endif
     :: me.pc == J3 -> d_step {
          if
          :: newest > me.e -> to_J1(i)
          :: else -> me.pc = (PENDING(me.e) -> F0 : (PATHS == 2 && mutant == EARLY_J3 -> J2_OTHER : J4))
          fi }
     :: me.pc == J4 -> d_step {
          t = !reserved && mutant != NO_J4_RESERVATION && !NEEDS_NO_FENCE(me.e);
          for (j : 0 .. NODES - 1) {
            if :: n[j].key && n[j].key != KEY(me.e) && mutant != NO_J4_KEYS -> t = 1 :: else fi;
            if :: OTHER_KEY(j) && OTHER_KEY(j) != KEY(me.e) && mutant != NO_J4_KEYS -> t = 1 :: else fi
          }
          me.pc = (t -> F0 : ARMED) }

     /* W: write */
     :: me.pc == ARMED ->
        choose_block(); choose_path();
        if
        :: me.e == 0 || me.tracker || me.block == 1 -> send_write()
        :: me.e > 0 && (!me.tracker || me.block == 1) -> send_read(W_READING)
        fi
     :: me.pc == W_READ -> choose_path(); d_step { send_read(W_READING) }
     :: me.pc == W_READING && !me.claimer -> d_step {
          if
          :: me.e < watched || me.block == 1    /* no view that is watched will read this copy */
          :: me.e >= watched && me.block == 0 && moment -> me.copy = (right -> RIGHT : 0)
          :: else -> me.copy = LIVE
          fi;
          me.tag = 0;
          me.pc = (kind == 7 && mutant != B2_NO_LOOK -> W_LOOK : (mutant == NO_COPY -> W_WRITE : W_PUT)) }
     :: me.pc == W_LOOK -> d_step {
          if
          :: newest > me.e -> to_J1(i)
          :: else -> me.pc = (mutant == NO_COPY -> W_WRITE : W_PUT)
          fi }
     :: me.pc == W_PUT -> d_step {
          if
          :: me.e == 1 && me.e >= watched && me.block == 0 && BLANK(1) -> lun1 = WRITTEN | me.copy
          :: me.e == 2 && me.block == 0 && BLANK(2) -> lun2 = WRITTEN | me.copy
          :: else
          fi;
          if :: me.block == 0 -> me.tracker = 1 :: else fi;
          me.copy = 0;
          me.pc = W_WRITE }
     :: me.pc == W_WRITE -> choose_path(); d_step { send_write() }
     :: me.pc == W_WRITING -> d_step { land(me.block); if :: me.claimer -> to_J1(i) :: else -> me.tag = 0; me.block = 0; me.copy = 0; me.pc = ARMED fi }

     /* T: take a snapshot */
     :: me.pc == ARMED && newest < EPOCHS -> d_step { take() }
     :: me.pc == ARMED && newest > me.e -> d_step { if :: mutant == LOST_RACE -> take() :: else -> to_J1(i) fi }    /* or it polls the log */

     /* F: fence */
     :: me.pc == F0 -> d_step {
          if
          :: !REGISTERED(i) || mutant == CHANGED_KEY ->
             me.key = KEY(me.e); me.pc = (PATHS == 2 -> F0_OTHER : (KEY_FIRST -> F2 : F1))
#if PATHS == 2
          :: else -> me.path = !me.key; me.pc = (KEY_FIRST -> F2 : F1)    /* the fence goes by a path that is registered */
#else
          :: else -> me.pc = (KEY_FIRST -> F2 : F1)
#endif
          fi }
#if PATHS == 2
     :: me.pc == F0_OTHER -> d_step { me.other_key = KEY(me.e); me.path = !me.key; me.pc = (KEY_FIRST -> F2 : F1) }
#endif
     :: me.pc == F1 -> d_step {
          if
          :: !PATH_KEY(i) -> me.pc = F0
          :: PATH_KEY(i) && !reserved -> reserved = 1; SET_HOLDER(i, tags)
          :: PATH_KEY(i) && reserved && overlap -> preempt()
          :: else -> preempt_and_abort(); me.pc = (KEY_FIRST -> F3 : F2)
          fi }
     :: me.pc == F1_RESET && !RESETS(0) && !RESETS(1) && !RESETS(NODES - 1) && !zombie -> d_step { reset_begins() }
     :: me.pc == F1_RESETTING && NOTHING_LEFT -> d_step { fence_ends() }
     :: AT_DEVICE(i) && me.claimer -> d_step { to_J1(i) }
     :: me.pc == F2 -> d_step {
          if
          :: !PATH_KEY(i) -> me.pc = F0
          :: else -> SET_PATH_KEY(KEY(me.e)); me.pc = (KEY_FIRST -> F1 : (PATHS == 2 -> F2_OTHER : F3))
          fi }
#if PATHS == 2
     :: me.pc == F2_OTHER -> d_step { if :: me.path -> me.key = KEY(me.e) :: else -> me.other_key = KEY(me.e) fi; me.pc = F3 }
#endif
     :: me.pc == F2 && !KEY_FIRST -> me.pc = F1    /* the answer of F1 was lost: once more */
     :: me.pc == F3 -> d_step { fenced = fenced | (1 << me.e); me.pc = (mutant == NO_T3 -> ARMED : J3) }

     /* R: read a view.  The invariant covers blocks that are found in a write-once LUN at once. */
     :: me.pc == ARMED && me.e >= watched && !READS(0) && !READS(1) && !READS(NODES - 1) ->
        if
        :: watched == 1 && !BLANK(1) || me.e == 2 && !BLANK(2)
        :: else -> me.pc = R_READ
        fi
     :: me.pc == R_READ -> choose_path(); d_step { send_read(R_READING) }
     :: me.pc == R_READING && !me.claimer -> d_step {
          me.tag = 0;
          me.copy = (right -> RIGHT : 0);
          me.pc = (kind == 7 && mutant != NO_VIEW_LOOK -> R_LOOK : R_AGAIN) }
     :: me.pc == R_LOOK -> d_step { if :: newest > me.e -> to_J1(i) :: else -> me.pc = R_AGAIN fi }
     :: me.pc == R_AGAIN -> d_step {
          if :: BLANK(me.e) || mutant == NO_SECOND_LOOK -> assert(me.copy) :: else fi;
          me.copy = 0; me.block = 0; me.pc = ARMED }

     /* The link is lost.  The initiator logs in again and sends the command again; the first one may still be at the device. */
     :: me.pc == W_READING && !me.claimer -> d_step { me.pc = W_READ; me.tag = 0; if :: !tags -> SET_PATH_KEY(0) :: else fi }
     :: me.pc == R_READING && !me.claimer -> d_step { me.pc = R_READ; me.tag = 0; if :: !tags -> SET_PATH_KEY(0) :: else fi }
     :: me.pc == W_WRITING && !me.ghost -> d_step {
          make_ghost(); me.pc = W_WRITE; me.tag = 0; me.claimer = 0; if :: !tags -> SET_PATH_KEY(0) :: else fi }
     :: me.ghost -> d_step { land(me.ghost_block); drop_ghost(i) }
     :: me.ghost -> d_step { drop_ghost(i) }

     /* The node crashes and starts again; what it sent may still be at the device. */
     :: (me.pc != J1 || me.tracker) && me.pc != F1_RESETTING -> d_step {
          if :: me.pc == W_WRITING && !me.ghost -> make_ghost() :: else fi;
          me.tracker = 0; me.late = 0; me.late_block = 0;
          to_J1(i) }

#if NODES == 2
     /* The node crashes while its command waits at the device, where it goes on to wait. */
     :: me.pc == F1_RESETTING -> d_step {
          for (j : 0 .. NODES - 1) {
            if :: n[j].claimer == i + 1 -> n[j].claimer = OF_ZOMBIE :: else fi;
            if :: n[j].ghost && n[j].ghost_claimer == i + 1 -> n[j].ghost_claimer = OF_ZOMBIE :: else fi
          }
          zombie = (mutant != ABANDONED);
          me.tracker = 0; me.late = 0; me.late_block = 0;
          to_J1(i) }
     :: zombie && !OF_ZOMBIE_AT(0) && !OF_ZOMBIE_AT(1) -> d_step { zombie = 0 }
#endif

     /* Mutants only. */
#if PATHS == 2
     :: mutant == LATE_PATH && me.pc == ARMED && !me.key -> d_step { me.key = KEY(me.e) }
     :: mutant == LATE_PATH && me.pc == ARMED && !me.other_key -> d_step { me.other_key = KEY(me.e) }
#endif
     :: mutant == NO_J_DRAIN && me.pc == W_WRITE && !me.late -> d_step { me.late = 1; me.late_block = me.block; to_J1(i) }
     :: mutant == NO_T1_DRAIN && me.pc == W_WRITE && !me.late && newest == me.e && newest < EPOCHS -> d_step {
          me.late = 1; me.late_block = me.block; me.block = 0;
          take() }
     :: me.late -> d_step { if :: ADMITTED -> land(me.late_block) :: else fi; me.late = 0; me.late_block = 0 }
     :: mutant == UNREGISTER && me.pc == ARMED && me.key -> d_step {
          me.key = 0; me.tracker = 0;
          to_J1(i);
          t = NODES;
          for (j : 0 .. NODES - 1) { if :: n[j].key && (t == NODES || n[j].holder) -> t = j :: else fi }
          me.holder = 0;
          if :: t == NODES -> reserved = 0 :: else -> n[t].holder = 1 fi }
     fi;
     step_ends()
     }
  od
}

/* ---- the storage host ---- */

#define STOPPED(x) (n[x].pc == J1 && !n[x].ghost && !n[x].late)

inline forget_reservation() {
  for (j : 0 .. NODES - 1) {
    n[j].key = 0;
#if PATHS == 2
    n[j].other_key = 0;
#endif
    SET_HOLDER(j, 0)
  }
  reserved = 0
}

proctype Storage() {
  byte i;
  atomic {
    if
    :: d_step {    /* a restart: the commands at the device are gone, the initiators send them again */
         for (j : 0 .. NODES - 1) {
           if
           :: AT_DEVICE(j) -> n[j].pc = n[j].pc - 1; n[j].tag = 0
           :: n[j].pc == F1_RESETTING -> n[j].pc = F1; n[j].copy = 0
           :: else
           fi;
           n[j].claimer = 0;
           drop_ghost(j);
#if PATHS == 2
           if :: !tags -> n[j].other_key = 0 :: else fi;
#endif
           if :: !tags -> n[j].key = 0 :: else fi
         }
         zombie = 0;
         if :: mutant == NO_APTPL -> forget_reservation() :: else fi }
    :: STOPPED(0) && STOPPED(1) && STOPPED(NODES - 1) ->    /* another array in its place, or an administrator's CLEAR */
       forget_reservation()
    fi;
    troubled = 1;
    step_ends()
  }
}

init {
  atomic {
    /* The verifier reads the variant from its environment, so that it is compiled once.  Replaying a trail needs constants. */
#ifdef KIND
    kind = KIND; tags = TAGS; overlap = OVERLAP; mutant = MUTANT;
#else
    c_code { now.kind = atoi(getenv("KIND")); }; c_code { now.tags = atoi(getenv("TAGS")); };
    c_code { now.overlap = atoi(getenv("OVERLAP")); };
    c_code { now.mutant = atoi(getenv("MUTANT")); };
#endif
    if :: watched = 1 :: watched = 2 fi;
    for (t : 0 .. NODES - 1) { run Node_(t) }
    run Storage();
    t = 0
  }
}
