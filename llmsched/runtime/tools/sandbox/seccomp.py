"""The system calls that code in the sandbox may make, as a program for the kernel's seccomp filter.

What is not listed does not exist (ENOSYS): so a call that a future kernel adds is closed too, and a C library that asks
for one takes its older way. What ordinary programs try, and must not do, is refused by name (EPERM), so that Python
code gets a PermissionError that it can read. Nothing is killed for asking, except for calls of another architecture.

The filter sees numbers and never what a pointer points to. Hence no `clone3` and no `openat2`, whose arguments lie in
memory; `clone` is good for threads of the C library only, signals go to the own process only, and file control and
terminal control have lists of their own: F_SETOWN, for one, sends signals to others.

Landlock (`landlock.py`) says which files may be opened. It has no say on modes, owners, times and attributes of files,
which the owner may change without opening them, and root owns nearly all: so those calls are refused here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: (code, jump if true, jump if false, k); k None stands for the process's own id, which only it knows.
Instruction = tuple[int, int, int, int | None]
Numbers = tuple[int | None, int | None]

#: `os.uname().machine` -> (column of the tables below, AUDIT_ARCH_… of the kernel).
MACHINES: Mapping[str, tuple[int, int]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

#: Names with their numbers on (x86_64, aarch64): reading, writing, waiting, memory, threads, clocks.
ALLOWED: Mapping[str, Numbers] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "eventfd": (284, None), "eventfd2": (290, 19), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "ftruncate": (77, 46), "fallocate": (285, 47), "fadvise64": (221, 223), "flock": (73, 32), "creat": (85, None),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents": (78, None), "getdents64": (217, 61),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "symlink": (88, None),
    "symlinkat": (266, 36), "link": (86, None), "linkat": (265, 37), "chdir": (80, 49), "fchdir": (81, 50),
    "getcwd": (79, 17), "umask": (95, 166), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216),
    "mprotect": (10, 226), "madvise": (28, 233), "brk": (12, 214), "msync": (26, 227), "membarrier": (324, 283),
    "futex": (202, 98), "futex_waitv": (449, 449), "set_robust_list": (273, 99), "set_tid_address": (218, 96),
    "rseq": (334, 293), "exit": (60, 93), "exit_group": (231, 94), "restart_syscall": (219, 128),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "sysinfo": (99, 179), "uname": (63, 160), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173),
    "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "capget": (125, 90), "getpriority": (140, 141),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "getrandom": (318, 278), "wait4": (61, 260), "waitid": (247, 95),
}  # fmt: skip

#: These say that they did it, and do nothing: the directory is deleted in a moment, and the service's disk is not to
#: wait for it.
IDLE: Mapping[str, Numbers] = {"fsync": (74, 82), "fdatasync": (75, 83), "sync_file_range": (277, 84)}

REFUSED: Mapping[str, Numbers] = {
    # The network, in every family, and with it UNIX sockets.
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # Other processes: starting, signalling, reading, slowing them.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "setsid": (112, 157), "setpgid": (109, 154),
    # Another identity, another world, the kernel itself.
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "capset": (126, 91), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "pivot_root": (155, 41), "mount": (165, 40), "umount2": (166, 39), "personality": (135, 92),
    "seccomp": (317, 277), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "reboot": (169, 142),
    "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112), "syslog": (103, 116),
    # What Landlock does not see, on files that the process may not even read.
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "mknod": (133, None), "mknodat": (259, 33), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "sync": (162, 81), "syncfs": (306, 267),
    # Memory that no limit counts.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that is allowed if `argument & mask` is one of `values` (None: the own process id), else `refusal`."""

    numbers: Numbers
    argument: int
    values: tuple[int | None, ...]
    mask: int = 0xFFFFFFFF
    refusal: int = errno.EPERM


#: O_ACCMODE and O_TRUNC. A file opened for reading is cut by O_TRUNC all the same, which Landlock before version 3
#: does not see.
_OPENING_MASK, _OPENING = 0o1003, (0o0, 0o1, 0o2, 0o1001, 0o1002)

RULES: Mapping[str, Rule] = {
    "open": Rule((2, None), 1, _OPENING, mask=_OPENING_MASK),
    "openat": Rule((257, 56), 2, _OPENING, mask=_OPENING_MASK),
    # Exactly what pthread_create asks for (musl sets one more bit, which has no meaning any more).
    "clone": Rule((56, 220), 0, (0x3D0F00,), mask=0xFFFFFFFF ^ 0x400000),
    "kill": Rule((62, 129), 0, (None,)),
    "tgkill": Rule((234, 131), 0, (None,)),
    "prlimit64": Rule((302, 261), 0, (0, None)),
    # DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, the OFD_ locks, DUPFD_CLOEXEC, GETPIPE_SZ.
    "fcntl": Rule((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032), refusal=errno.EPERM),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": Rule((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451), refusal=errno.ENOTTY),
    # SET_NAME, GET_NAME, SET_VMA (glibc names its memory). Not SET_PDEATHSIG: we want to die with our parent.
    "prctl": Rule((157, 167), 0, (15, 16, 0x53564D41)),
}

_LOAD, _AND, _EQUAL, _AT_LEAST, _ABOVE, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def build_filter(machine: str) -> list[Instruction]:
    """The filter for `os.uname().machine`, which must be one of MACHINES."""
    column, architecture = MACHINES[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for rule in RULES.values():
        if (number := rule.numbers[column]) is not None:
            program += _conditional(number, rule)
    for table, verdict in ((ALLOWED, _ALLOW), (IDLE, _ERRNO), (REFUSED, _ERRNO | errno.EPERM)):
        for first, end in _ranges(sorted(n for both in table.values() if (n := both[column]) is not None)):
            program += [(_AT_LEAST, 0, 2, first), (_ABOVE, 1, 0, end), (_RETURN, 0, 0, verdict)]
    program.append((_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    return program


def _conditional(number: int, rule: Rule) -> list[Instruction]:
    # The lower half of the argument: on both machines it comes first, and the kernel reads no more of these.
    body: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * rule.argument), (_AND, 0, 0, rule.mask)]
    for value in rule.values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    body.append((_RETURN, 0, 0, _ERRNO | rule.refusal))
    return [(_EQUAL, 0, len(body), number), *body]


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers, which must be in order.

    >>> list(_ranges([1, 2, 3, 7]))
    [(1, 3), (7, 7)]
    """
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
