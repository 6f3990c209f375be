"""One cluster and one WAL load; Walden, pgBackRest, `cp && sync` and the floor side by side. `run` calls this."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from measure import (
    Memory, Series, adopt_orphans, cpu_of_children, machine, output, rounded, shell, spread, table, wait_for_orphans,
)

CORES = os.cpu_count()
CLOCK_REALTIME_COARSE = 5
# Segments of one round of single pushes.
PUSHES = 8
# Some 250 bytes of text, of which zstd makes half: with pgbench's own rows, about as compressible as the WAL of an application.
TEXT = " || ".join(["md5(random()::text)"] * 8)
INSERT = f"INSERT INTO notes (text) SELECT {TEXT} FROM generate_series(1, 20) g;\n"
CONF = """
listen_addresses = ''
unix_socket_directories = '{place}'
port = {port}
shared_buffers = 512MB
synchronous_commit = off
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 64GB
wal_keep_size = 64GB
log_line_prefix = '%n '
"""
FLOOR, COPY, ONE, ASYNC, WALDEN = "floor", "cp && sync", "pgBackRest", "pgBackRest async", "Walden"
SOLO, FAST = "Walden, nothing ahead", "Walden, level -3 under backlog"
# Each work, and the units of its figures and of its CPU time.
WORKS = {
    "push": ("one push", "ms", "ms"),
    "ahead": ("a push that look-ahead has stored", "ms", "ms"),
    "drain": ("drain of {} ready segments", "segments/s", "s"),
    "recovery": ("recovery of {} segments", "s", "s"),
    "backup": ("full backup", "s", "s"),
    "restore": ("restore", "s", "s"),
    "stored WAL": ("stored WAL", "MB", ""),
    "stored backup": ("stored backup", "MB", ""),
}


@dataclass
class Contender:
    name: str
    # In which of the works it takes part.
    works: tuple
    # archive_command, and where it keeps WAL.
    archive: str
    wal: Path
    # restore_command
    fetch: str = ""
    # Calls that take a base backup, and restore it into the directory `restored`.
    backup: str = ""
    restore: str = ""
    # What it keeps of backups, and what must be gone when its WAL is.
    backups: list = field(default_factory=list)
    scratch: list = field(default_factory=list)


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def size(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())


class Bench:
    def __init__(self, options):
        self.options = options
        self.place = Path(options.place)
        self.data = self.place / "data"
        self.results = {}
        self.server = None
        self.names = []
        self.end = None

    # The cluster

    def start(self):
        log = open(self.place / "server.log", "ab")
        self.server = subprocess.Popen(["postgres", "-D", self.data], stdout=log, stderr=log).pid
        while subprocess.run(["pg_isready", "-q"], check=False).returncode != 0:
            time.sleep(0.05)

    def stop(self):
        if self.server is not None:
            os.kill(self.server, signal.SIGINT)
            os.wait4(self.server, 0)
            self.server = None

    def ask(self, sql):
        return output("psql", "-XAtqc", sql)

    def append(self, text, to=None):
        with open((to or self.data) / "postgresql.conf", "a") as file:
            file.write(text)

    def make_cluster(self):
        say(f"a cluster of pgbench scale {self.options.scale}")
        shell(f"initdb -D {self.data} -U postgres --auth=trust --no-locale -E UTF8 --data-checksums --no-sync")
        self.append(CONF.format(place=self.place, port=5432))
        # No WAL of the load itself, and none of it in the race.
        self.append("wal_level = minimal\nmax_wal_senders = 0\n")
        self.start()
        shell(f"pgbench -i -q -s {self.options.scale}")
        self.ask("CREATE TABLE notes (id bigserial PRIMARY KEY, text text)")
        self.ask(f"INSERT INTO notes (text) SELECT {TEXT} FROM generate_series(1, {self.options.scale} * 10000) g")
        self.stop()
        # Without a command the archiver waits, and segments stay ready.
        self.append("wal_level = replica\nmax_wal_senders = 4\narchive_mode = on\ninclude = 'archive.conf'\n")
        self.set_archive_command("")
        self.start()
        self.stop()
        shell(f"cp -a {self.data} {self.place}/base")
        for path in (self.place / "base/pg_wal").rglob("*"):
            if path.is_file():
                path.unlink()

    def load(self):
        self.start()
        say(f"{self.options.segments} segments of WAL")
        (self.place / "insert.sql").write_text(INSERT)
        round_ = 0
        while len(list((self.data / "pg_wal/archive_status").glob("*.ready"))) < self.options.segments:
            round_ += 1
            shell(
                f"pgbench -n -c 4 -j {CORES} -T 3 --random-seed={round_} -b tpcb-like@6 -f {self.place}/insert.sql@4"
            )
        self.ask("SELECT pg_switch_wal()")
        self.ask("CHECKPOINT")
        status = self.data / "pg_wal/archive_status"
        self.names = sorted(path.stem for path in status.glob("*.ready"))
        for name in self.names:
            (status / f"{name}.ready").rename(status / f"{name}.done")

    def archiver(self):
        return int(self.ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'"))

    @contextmanager
    def archiving(self, command):
        """The server archives with this command, from now on. Yields now, by the clock of files' change times."""
        begin = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        self.set_archive_command(command)
        os.kill(self.server, signal.SIGHUP)
        yield begin
        self.set_archive_command("")
        os.kill(self.server, signal.SIGHUP)
        # An archiver that still looks for more would push what is made ready next with the old command.
        while self.ask("SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'archiver'") != "ArchiverMain":
            time.sleep(0.01)

    def set_archive_command(self, command):
        new = self.data / "archive.conf.new"
        new.write_text(f"archive_command = '{command}'\n")
        new.rename(self.data / "archive.conf")

    def mark(self, names, ready):
        old, new = ("done", "ready") if ready else ("ready", "done")
        for name in names:
            status = self.data / "pg_wal/archive_status" / name
            status.with_name(f"{name}.{old}").rename(status.with_name(f"{name}.{new}"))

    def wait_archived(self):
        status = self.data / "pg_wal/archive_status"
        while any(entry.name.endswith(".ready") for entry in os.scandir(status)):
            time.sleep(0.01)

    # The contenders

    def contenders(self):
        place, level = self.place, self.options.level
        (place / "cp").mkdir()
        found = {
            FLOOR: Contender(
                FLOOR, ("push", "drain", "recovery", "backup"), "true", place / "none", fetch="false",
                backup="pg_basebackup -c fast -X none -Ft -D - >/dev/null",
            ),
            COPY: Contender(
                COPY, ("push", "drain", "recovery"), f"cp %p {place}/cp/%f && sync {place}/cp/%f", place / "cp",
                fetch=f"cp {place}/cp/%f %p 2>/dev/null",
            ),
        }
        one, several = "archive-async=n", f"archive-async=y\nprocess-max={CORES}"
        found[ONE] = self.pgbackrest(ONE, ("push", "drain", "recovery", "backup"), "one", one)
        found[ASYNC] = self.pgbackrest(ASYNC, ("drain", "recovery"), "async", several)
        variants = (
            (WALDEN, ("push", "drain", "recovery", "backup"), ""),
            (SOLO, ("drain", "recovery"), "push: {ahead: 0}\nfetch: {ahead: 0}"),
            (FAST, ("drain",), "push: {backlog_level: -3}"),
        )
        for number, (name, works, more) in enumerate(variants):
            folder = place / f"walden-{number}"
            folder.mkdir()
            config = folder / "walden.yaml"
            config.write_text(
                f"clusters:\n  main:\n    pgdata: {self.data}\n    connection: host={place} user=postgres dbname=postgres\n"
                f"repositories:\n  - name: here\n    path: {folder}/repository\ncompression: {{level: {level}}}\n"
                f"log_level: error\n{more}\n"
            )
            init = subprocess.run(["walden", "--config", config, "init"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if init.returncode == 2 and more:
                # A version without this setting.
                continue
            if init.returncode != 0:
                raise SystemExit(init.stderr)
            (home,) = [path.parent.parent for path in folder.glob("repository/main/identity/*.json")]
            (system,) = [path.stem for path in (home / "identity").glob("*.json")]
            found[name] = Contender(
                name, works,
                archive=f"walden-wal-push --config {config} %p",
                fetch=f"walden-wal-fetch --config {config} %f %p",
                wal=home / system / "wal",
                backup=f"walden --config {config} backup --checkpoint fast",
                restore=f"walden --config {config} restore {place}/restored",
                backups=[home / system / "backups", home / system / "commits"],
                scratch=[self.data / "pg_wal/walden.ahead"],
            )
        return found

    def pgbackrest(self, name, works, key, more):
        folder = self.place / f"pgbackrest-{key}"
        for part in ("repository", "spool", "lock", "log"):
            (folder / part).mkdir(parents=True)
        (folder / "pgbackrest.conf").write_text(
            f"[global]\nrepo1-path={folder}/repository\nrepo1-retention-full=99\nspool-path={folder}/spool\n"
            f"lock-path={folder}/lock\nlog-path={folder}/log\nlog-level-console=off\nlog-level-file=off\n"
            f"compress-type=zst\ncompress-level={self.options.level}\nstart-fast=y\n{more}\n"
            f"[main]\npg1-path={self.data}\npg1-socket-path={self.place}\npg1-port=5432\npg1-user=postgres\n"
        )
        call = f"pgbackrest --config={folder}/pgbackrest.conf --stanza=main"
        shell(f"{call} --no-online stanza-create")
        return Contender(
            name, works,
            archive=f"{call} archive-push %p",
            fetch=f"{call} --pg1-path={self.place}/recovery archive-get %f %p",
            wal=folder / "repository/archive/main/15-1",
            backup=f"{call} --process-max={CORES} --type=full backup",
            restore=f"{call} --process-max={CORES} --pg1-path={self.place}/restored restore",
            backups=[folder / "repository/backup"],
            scratch=[folder / "spool"],
        )

    def empty(self, contender):
        for folder in (contender.wal, *contender.scratch):
            if folder.is_dir():
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def add(self, work, contender, *figures, **more):
        self.results.setdefault(work, {}).setdefault(contender.name, Series()).add(*figures, **more)

    # The works

    def push(self, contenders, round_):
        """Single pushes, called as the archiver calls, of segments none of which is ready: there is nothing ahead."""
        step = max(1, len(self.names) // PUSHES)
        names = self.names[round_ % step :: step][:PUSHES]
        for contender in contenders:
            self.empty(contender)
        os.sync()
        for name in names:
            for contender in contenders:
                wall, cpu = shell(expand(contender.archive, name))
                self.add("push", contender, wall * 1e3, cpu * 1e3)
        for contender in contenders:
            if contender.name == WALDEN:
                self.push_ahead(contender, names)

    def push_ahead(self, contender, names):
        """The pushes after one that has stored what was ready."""
        self.empty(contender)
        self.mark(names, ready=True)
        shell(expand(contender.archive, names[0]))
        ahead = self.data / "pg_wal/walden.ahead"
        for name in names[1:]:
            if ahead.is_dir() and any(path.name.startswith(name) for path in ahead.iterdir()):
                wall, cpu = shell(expand(contender.archive, name))
                self.add("ahead", contender, wall * 1e3, cpu * 1e3)
        self.mark(names, ready=False)

    def drain(self, contenders, _):
        """From before the archiver is given its command to the change time of the last `.done` file."""
        for contender in contenders:
            self.empty(contender)
            self.mark(self.names, ready=True)
            os.sync()
            archiver = self.archiver()
            cpu = cpu_of_children(archiver)
            with Memory(self.place) as memory, self.archiving(contender.archive) as begin:
                self.wait_archived()
            status = self.data / "pg_wal/archive_status"
            end = max((status / f"{name}.done").stat().st_ctime_ns for name in self.names)
            background = wait_for_orphans({self.server})
            cpu = cpu_of_children(archiver) - cpu + background
            self.add("drain", contender, len(self.names) / (max(end - begin, 1) / 1e9), cpu, memory)
            if contender.name == FLOOR:
                continue
            stored = [path for path in contender.wal.rglob("0*") if path.is_file() and path.name[:24] in self.names]
            if missing := set(self.names) - {path.name[:24] for path in stored}:
                raise SystemExit(f"bench: the archiver was told that {contender.name} has {missing}, which is not there")
            self.add("stored WAL", contender, sum(path.stat().st_size for path in stored) / 1e6)

    def recovery(self, contenders, _):
        """From the start of a server on a copy of the cluster as it was before the load to "redo done" in its log."""
        recovery = self.place / "recovery"
        for contender in contenders:
            shutil.rmtree(recovery, ignore_errors=True)
            for folder in contender.scratch:
                if folder.name == "spool":
                    shutil.rmtree(folder)
                    folder.mkdir()
            shell(f"cp -a {self.place}/base {recovery}")
            self.append(f"port = 5433\narchive_mode = off\nrestore_command = '{contender.fetch}'\n", recovery)
            (recovery / "recovery.signal").touch()
            if contender.name == FLOOR:
                # Replay alone. The `false` that is its restore_command takes a millisecond a segment.
                for name in self.names:
                    shutil.copy(self.data / "pg_wal" / name, recovery / "pg_wal")
            os.sync()
            log = self.place / "recovery.log"
            with Memory(self.place) as memory, open(log, "wb") as stderr:
                begin = time.time()
                server = subprocess.Popen(["postgres", "-D", recovery], stdout=stderr, stderr=stderr).pid
                done = None
                while done is None:
                    time.sleep(0.01)
                    text = log.read_text()
                    done = re.search(r"^(\S+) LOG:  redo done at (\S+) ", text, re.M)
                    if "FATAL" in text:
                        raise SystemExit(f"bench: {contender.name}: the recovery failed:\n{text}")
                os.kill(server, signal.SIGQUIT)
                _, _, usage = os.wait4(server, 0)
            cpu = usage.ru_utime + usage.ru_stime + wait_for_orphans({self.server})
            if self.end not in (None, done[2]):
                raise SystemExit(f"bench: {contender.name} recovered to {done[2]}, another one to {self.end}")
            self.end = done[2]
            self.add("recovery", contender, float(done[1]) - begin, cpu, memory)
        shutil.rmtree(recovery, ignore_errors=True)

    def backup(self, contenders, _):
        """A full backup and its restore into an empty directory."""
        restored = self.place / "restored"
        for contender in contenders:
            before = sum(map(size, contender.backups))
            with self.archiving(contender.archive):
                self.ask("SELECT pg_logical_emit_message(false, 'bench', ''); SELECT pg_switch_wal(); CHECKPOINT")
                self.wait_archived()
                os.sync()
                server_cpu = cpu_of_children(self.server)
                with Memory(self.place) as memory:
                    wall, cpu = shell(f"{contender.backup}")
                cpu += cpu_of_children(self.server) - server_cpu
                self.add("backup", contender, wall, cpu, memory)
                self.wait_archived()
            wait_for_orphans({self.server})
            if not contender.restore:
                continue
            self.add("stored backup", contender, (sum(map(size, contender.backups)) - before) / 1e6)
            os.sync()
            with Memory(self.place) as memory:
                wall, cpu = shell(f"{contender.restore}")
            self.add("restore", contender, wall, cpu, memory)
            if not (restored / "global/pg_control").exists() or size(restored / "base") < 0.9 * size(self.data / "base"):
                raise SystemExit(f"bench: {contender.name} has not restored all of the cluster")
            shutil.rmtree(restored)

    def run(self):
        adopt_orphans()
        load = os.getloadavg()[0]
        os.environ |= {"PGHOST": str(self.place), "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres"}
        self.make_cluster()
        # As the archiver, whose %p is a path below it.
        os.chdir(self.data)
        try:
            self.load()
            contenders = list(self.contenders().values())
            for work in self.options.works:
                for round_ in range(self.options.rounds):
                    say(f"{work}, round {round_ + 1} of {self.options.rounds}")
                    racing = [contender for contender in contenders if work in contender.works]
                    # Each has its turn at being the first.
                    turn = round_ % len(racing)
                    getattr(self, work)(racing[turn:] + racing[:turn], round_)
            self.report(contenders, load)
        finally:
            self.stop()

    # The tables

    def report(self, contenders, load):
        names = [contender.name for contender in contenders]
        wal = len(self.names) * 16.777216
        print(f"Walden {self.options.revision}, {output('pgbackrest', 'version')}, PostgreSQL {self.ask('SHOW server_version')}, "
              f"zstd level {self.options.level}, {time.strftime('%Y-%m-%d')}.")
        print(f"{machine(self.place)}. Cluster {size(self.place / 'base') / 1e6:.0f} MB, WAL {wal:.0f} MB, "
              f"{self.options.rounds} rounds: median (least–most). Load average before the run: {load:.1f}.\n")

        def rows(cell, unit):
            found = []
            for work, words in WORKS.items():
                of = self.results.get(work, {})
                cells = [cell(of[name]) if name in of else "" for name in names]
                if any(cells):
                    found.append([words[0].format(len(self.names)) + (f", {words[unit]}" if unit else ""), *cells])
            return table(["", *names], found)

        print(rows(lambda series: spread(series.figures), 1))
        print("\nCPU time of the same (recovery: with PostgreSQL's replay)\n")
        print(rows(lambda series: spread(series.cpu) if series.cpu else "", 2))
        print("\nMost memory, MiB: the largest process, and all of them together\n")
        print(rows(lambda series: f"{series.largest / 1024:.0f}, {series.together / 1024:.0f}" if series.largest else "", 0))
        print("\nAgainst what is aimed for\n")
        print(table(["", "aim", "found", ""], self.aims()))

    def aims(self):
        rows = []

        def ratio(work, mine, other, aim, what):
            of = self.results.get(work, {})
            if mine in of and other in of:
                found = of[mine].median / of[other].median
                least = aim.startswith("≥")
                met = found >= float(aim[1:]) if least else found <= float(aim[1:])
                rows.append([what, f"{aim[0]} {aim[1:]}", rounded(found), "met" if met else "missed"])

        ratio("drain", WALDEN, ASYNC, "≥2.2", "drain, against pgBackRest async")
        ratio("drain", FAST, ASYNC, "≥2.5", "drain with a faster level, against pgBackRest async")
        ratio("push", WALDEN, ONE, "≤0.5", "one push, against pgBackRest")
        ratio("recovery", WALDEN, ASYNC, "≤0.95", "recovery, against pgBackRest async")
        ratio("recovery", WALDEN, FLOOR, "≤1.1", "recovery, against WAL in pg_wal")
        ratio("backup", WALDEN, ONE, "≤1.0", f"full backup, against pgBackRest with {CORES} processes")
        ratio("restore", WALDEN, ONE, "≤0.9", f"restore, against pgBackRest with {CORES} processes")
        for work, most in (("drain", 128), ("backup", 512), ("restore", 512)):
            series = self.results.get(work, {}).get(WALDEN)
            if series:
                found = series.largest / 1024
                what = "memory of a push" if work == "drain" else f"memory of a {work}"
                rows.append([f"{what}, MiB", f"≤ {most}", f"{found:.0f}", "met" if found <= most else "missed"])
        return rows


def expand(command, name):
    return command.replace("%p", f"pg_wal/{name}").replace("%f", name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--scale", type=int, default=80)
    parser.add_argument("--segments", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--level", type=int, default=1)
    known = ("push", "drain", "recovery", "backup")
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(known)} [default: all]")
    options = parser.parse_args()
    options.works = options.works or known
    if unknown := set(options.works) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}")
    if "recovery" in options.works and "drain" not in options.works:
        parser.error("recovery needs what drain archives")
    Bench(options).run()


if __name__ == "__main__":
    main()
