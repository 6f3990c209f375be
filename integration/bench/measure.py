"""How the benchmark runs programs, and what it sees of them: wall time, CPU seconds and memory."""

import ctypes
import os
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field

TICKS = os.sysconf("SC_CLK_TCK")
# The programs whose memory is counted: the contenders' own, and pg_basebackup, which `walden backup` runs.
CONTENDERS = ("walden", "pgbackrest", "pg_basebackup")
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Makes processes that a contender leaves in the background children of this one, which then learns what they cost."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def shell(command):
    """Runs a command as PostgreSQL does, with /bin/sh -c. Gives wall time and CPU time, in seconds.

    What it says goes to the file `said` in $HOME, which is shown when it fails.
    """
    said = os.path.join(os.environ["HOME"], "said")
    to = [(os.POSIX_SPAWN_OPEN, fd, said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for fd in (1, 2)]
    begin = time.perf_counter()
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], os.environ, file_actions=to)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - begin
    if status != 0:
        with open(said) as file:
            last = "".join(file.readlines()[-20:])
        raise SystemExit(f"bench: exit status {os.waitstatus_to_exitcode(status)} of: {command}\n{last}")
    return wall, usage.ru_utime + usage.ru_stime


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def wait_for_orphans(known):
    """Waits for every child that is none of the `known` ones, and gives the CPU seconds they used."""
    cpu = 0.0
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            orphans = [int(pid) for pid in file.read().split() if int(pid) not in known]
        if not orphans:
            return cpu
        for pid in orphans:
            _, _, usage = os.wait4(pid, 0)
            cpu += usage.ru_utime + usage.ru_stime


def cpu_of_children(pid):
    """CPU seconds of those children of a process for which it has waited (cutime and cstime of proc(5))."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / TICKS


class Memory(threading.Thread):
    """Looks at the contenders' processes fifty times a second: the largest one's peak, and the most of all together.

    They are told from anybody else's by their working directory or their command line, which are below `place`. The sum
    counts a page that two processes share twice.
    """

    def __init__(self, place):
        super().__init__(daemon=True)
        self.place = str(place)
        # Looking at each of these again would cost more than what is measured.
        self.before = set(os.listdir("/proc"))
        self.largest = self.sum = 0
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.02):
            together = 0
            for pid in filter(str.isdigit, set(os.listdir("/proc")) - self.before):
                try:
                    with open(f"/proc/{pid}/comm") as file:
                        if not file.read().startswith(CONTENDERS):
                            continue
                    with open(f"/proc/{pid}/cmdline") as file:
                        if self.place not in file.read() and self.place not in os.readlink(f"/proc/{pid}/cwd"):
                            continue
                    with open(f"/proc/{pid}/status") as file:
                        kib = dict(line.split(":", 1) for line in file if line.startswith("Vm"))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if "VmHWM" in kib:
                    self.largest = max(self.largest, int(kib["VmHWM"].split()[0]))
                    together += int(kib["VmRSS"].split()[0])
            self.sum = max(self.sum, together)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


@dataclass
class Series:
    """What was measured of one contender at one work, a value a round."""

    figures: list = field(default_factory=list)
    cpu: list = field(default_factory=list)
    largest: int = 0
    together: int = 0

    def add(self, figure, cpu=None, memory=None):
        self.figures.append(figure)
        if cpu is not None:
            self.cpu.append(cpu)
        if memory is not None:
            self.largest = max(self.largest, memory.largest)
            self.together = max(self.together, memory.sum)

    @property
    def median(self):
        return statistics.median(self.figures)


def rounded(number):
    """Three digits that mean something."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def spread(values):
    return f"{rounded(statistics.median(values))} ({rounded(min(values))}–{rounded(max(values))})"


def table(head, rows):
    """A table in Markdown that reads well as text."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def write_rate(folder):
    """MB/s of one stream of writes to a new file with an fsync at the end."""
    path, block, blocks = os.path.join(folder, "rate"), os.urandom(1 << 20), 512
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())
    rate = blocks * len(block) / 1e6 / (time.perf_counter() - begin)
    os.remove(path)
    return rate


def machine(folder):
    """The lines that describe the machine."""

    def first(path, key):
        with open(path) as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "unknown")

    memory = int(first("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20)
    kind = output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", folder)
    return (
        f"{os.cpu_count()} cores ({first('/proc/cpuinfo', 'model name')}), {memory:.0f} GiB, "
        f"Linux {os.uname().release}, {kind}, {write_rate(folder):.0f} MB/s of writes with one fsync"
    )
