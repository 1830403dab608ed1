# SPDX-License-Identifier: GPL-2.0-only
"""Events of small hand-made traces, as dicts of columns."""

from virtmm.tools.trace.format import File

A, STACK = 0x7F0000000000, 0x7FFFFFFDE000
K = 1024
READ, WRITE, RW = 1, 2, 3
ANON, SHARED_ANON, PRIVATE, POPULATE, GROWSDOWN = 0x22, 0x21, 2, 0x8000, 0x100
VFORK = 0x4100
PROG = File("/usr/bin/prog", 11, 128 * K)


def exec_(pid=1):
    return {"pid": pid, "kind": "exec", "file": PROG}


def mmap(addr, length, prot=RW, flags=ANON, pid=1, file=None, offset=0):
    more = {"prot": prot, "flags": flags, "file": file, "offset": offset}
    return {"pid": pid, "kind": "mmap", "addr": addr, "len": length, **more}


def fault(addr, access=WRITE, pid=1, flags=0):
    return {"pid": pid, "kind": "fault", "addr": addr, "prot": access, "flags": flags}


def call(kind, addr=0, length=0, pid=1, **more):
    return {"pid": pid, "kind": kind, "addr": addr, "len": length, **more}


def fork(child, flags=0, pid=1):
    return {"pid": pid, "kind": "fork", "arg": child, "flags": flags}


def exit_(pid=1):
    return {"pid": pid, "kind": "exit"}


def faults(addr, length, access=WRITE, pid=1):
    return [fault(at, access, pid) for at in range(addr, addr + length, 4 * K)]
