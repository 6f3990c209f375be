#!/usr/bin/env python3
"""Brings a cluster back from a Walden repository, without Walden.

    recover-by-hand.py REPOSITORY CLUSTER BACKUP-ID TARGET-DIRECTORY

Needs Python 3.9, its standard library, the zstd program, and age where objects are encrypted (--identity). Written from FORMAT.md alone; its words are used here.
Run it as the user who will run PostgreSQL. WAL goes to TARGET-DIRECTORY.wal, configuration files that the server
kept outside its data directory go to TARGET-DIRECTORY.extras.

Every object is checked against its digests. Each file is then read back and held against its CRC32C, which Python
computes at some 20 MB a second and core: a large cluster wants --no-crc, and pg_verifybackup -n afterwards.
"""
import argparse
import array
import concurrent.futures
import functools
import hashlib
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MAGIC = (0x184D2A5D).to_bytes(4, "little")
COPY = 4 << 20
SEAL = 512
identity = None  # the file that opens encrypted objects


def fail(message):
    sys.exit(f"recover-by-hand: {message}")


def readable(what, where, known=()):
    """FORMAT.md, "Versions"."""
    if what["format"] != 1:
        fail(f"{where} has format {what['format']}; this program reads 1")
    unknown = set(what["required_features"]) - set(known)
    if unknown:
        fail(f"{where} requires {sorted(unknown)}, which this program does not know")
    return what


def document(path, kind):
    """FORMAT.md, "Documents": JSON, and a last line with the digest of everything before it."""
    text = path.read_bytes()
    body, line = text[:-78], text[-78:]
    if line != b'{"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode():
        fail(f"{path} is damaged: its digest line does not fit")
    value = readable(json.loads(body), path)
    if value["kind"] != kind:
        fail(f"{path} is of kind {value['kind']}, not {kind}")
    return value


def metadata(frame, mark, path):
    """FORMAT.md, "Metadata frames": the JSON of one, and the JSON's digest."""
    text, digest = bytes(frame[8:-44]), bytes(frame[-44:-12])
    sizes = (int.from_bytes(frame[4:8], "little"), int.from_bytes(frame[-12:-8], "little"))
    if frame[:4] != MAGIC or frame[-8:] != mark or sizes != (len(text) + 44, len(text)):
        fail(f"{path} is damaged: {mark.decode()} is not whole")
    if hashlib.sha256(text).digest() != digest:
        fail(f"{path} is damaged: the digest of {mark.decode()} does not fit")
    return json.loads(text), "sha256:" + digest.hex()


def opened(path, out):
    """FORMAT.md, "Encrypted objects": writes the object inside to the file `out` and returns the envelope; None where it is not encrypted."""
    with open(path, "rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head_end = 8 + int.from_bytes(data[4:8], "little")
        envelope, _ = metadata(data[:head_end], b"WLDNHEAD", path)
        if "age" not in readable(envelope, path, ["age"])["required_features"]:
            return None
        before = len(data) - SEAL
        seal, _ = metadata(data[max(before, 0):], b"WLDNSEAL", path)
        if seal["size"] != before or seal["sha256"] != "sha256:" + hashlib.sha256(memoryview(data)[:before]).hexdigest():
            fail(f"{path} is damaged: its seal does not fit")
        if identity is None:
            fail(f"{path} is encrypted: say --identity FILE")
        age = subprocess.run(["age", "-d", "-i", identity], input=data[head_end:before], stdout=out)
        if age.returncode != 0:
            fail(f"{path} cannot be opened with {identity}")
        envelope["required_features"].remove("age")
        return envelope


def content(path, kind, key, archive_id, out, table=None):
    """Writes the content of an object, encrypted or not, to the file `out`. Returns the tail."""
    with tempfile.NamedTemporaryFile() as inner:
        envelope = opened(path, inner)
        if envelope is None:
            return plain_content(path, path, None, kind, key, archive_id, out, table)
        return plain_content(path, inner.name, envelope, kind, key, archive_id, out, table)


def plain_content(path, plain, envelope, kind, key, archive_id, out, table):
    """FORMAT.md, "Framed objects": proves the object in the file `plain`, and writes its content to the file `out`. Returns the tail."""
    with open(plain, "rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head_end = 8 + int.from_bytes(data[4:8], "little")
        tail_start = len(data) - 52 - int.from_bytes(data[-12:-8], "little")
        head, _ = metadata(data[:head_end], b"WLDNHEAD", path)
        tail, digest = metadata(data[max(tail_start, 0):], b"WLDNTAIL", path)
        readable(head, path)
        if envelope not in (None, head):
            fail(f"{path} is damaged: what is in it belongs elsewhere")
        if (head["kind"], head["key"], head["archive_id"]) != (kind, key, archive_id):
            fail(f"{path} belongs elsewhere: it is {head['kind']} {head['key']} of archive {head['archive_id']}")
        if table is not None and digest != table:
            fail(f"{path} is not the object that the commit document names: its tail differs")
        at = head_end
        for stored_length, _, expected in tail["frames"]:
            if "sha256:" + hashlib.sha256(data[at:at + stored_length]).hexdigest() != expected:
                fail(f"{path} is damaged: the frame at byte {at} does not fit its digest")
            at += stored_length
        if at != tail_start:
            fail(f"{path} is damaged: its frames end at byte {at}, its tail begins at {tail_start}")
        # zstd skips the metadata frames by itself.
        stored.seek(0)
        subprocess.run(["zstd", "-dcq"], stdin=stored, stdout=out, check=True)
    sizes = {out.seek(0, os.SEEK_END), tail["content_size"], head.get("content_size", tail["content_size"])}
    if len(sizes) != 1:
        fail(f"{path}: its content has other sizes than it says: {sizes}")
    if "sha256" in tail:
        out.seek(0)
        found = hashlib.sha256()
        while piece := out.read(COPY):
            found.update(piece)
        if "sha256:" + found.hexdigest() != tail["sha256"]:
            fail(f"{path} is damaged: its content does not fit its digest")
    out.seek(0)
    return tail


@functools.lru_cache
def crc_tables():
    """CRC32C (polynomial 0x82F63B78, reflected) for 16 bits at a time."""
    byte = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        byte.append(value)
    return [byte[byte[word & 255] & 255 ^ word >> 8] ^ byte[word & 255] >> 8 for word in range(1 << 16)], byte


def crc32c(path):
    words, single = crc_tables()
    crc = 0xFFFFFFFF
    with open(path, "rb") as file:
        while piece := file.read(COPY):
            pairs = array.array("H", piece[:len(piece) & ~1])
            if sys.byteorder == "big":
                pairs.byteswap()
            for pair in pairs:
                crc = words[crc & 0xFFFF ^ pair] ^ crc >> 16
            if len(piece) & 1:
                crc = single[crc & 255 ^ piece[-1]] ^ crc >> 8
    return f"{crc ^ 0xFFFFFFFF:08x}"


def name_of(entry, key):
    """A path or a link's target: text, or hexadecimal digits where it is not UTF-8."""
    return os.fsdecode(bytes.fromhex(entry[key + "_hex"])) if key + "_hex" in entry else entry[key]


def must_be_empty(directory):
    if directory.exists() and any(directory.iterdir()):
        fail(f"{directory} is not empty")


def read_map(base, key_base, commit, backup):
    entries = []
    for shard in commit["file_map"]:
        name = f"files/{shard['number']:08x}.zst"
        with tempfile.TemporaryFile() as out:
            content(base / name, "file-map", f"{key_base}/{name}", commit["archive_id"], out, shard["table"])
            lines = [json.loads(line) for line in out]
        if len(lines) != shard["entries"]:
            fail(f"{base / name} has {len(lines)} entries, the commit document says {shard['entries']}")
        entries += lines
    for entry in entries:
        entry["name"] = name_of(entry, "path")
        if any(part in ("", ".", "..") for part in entry["name"].removeprefix("/").split("/")):
            fail(f"backup {backup} names the impossible path {entry['name']}")
    return entries


def write_files(entries, place, system_dir, commit, spool):
    """Goes through the packs once; writes from each what the extents say."""
    pieces = {}
    for entry in entries:
        if "extents" not in entry:
            continue
        path = place(entry)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(entry["mode"], 8)), "wb") as file:
            file.truncate(entry["size"])  # "zero" extents are thereby done
        end = 0
        for kind, offset, length, *where in entry["extents"]:
            if kind == "data":
                pieces.setdefault(where[0], []).append((where[1], where[2], length, path, offset))
            elif kind != "zero":
                fail(f"{entry['name']} needs another backup's bytes ({kind})")
            if offset != end:
                fail(f"the extents of {entry['name']} do not follow each other")
            end += length
        if end != entry["size"]:
            fail(f"the extents of {entry['name']} do not cover it")
    for index, pack in enumerate(commit["packs"]):
        name = f"backups/{pack['backup']}/packs/{pack['number']:08x}.zst"
        with tempfile.TemporaryFile(dir=spool) as out:
            tail = content(system_dir / name, "pack", f"{system_dir.name}/{name}", commit["archive_id"], out, pack["table"])
            starts = [0]
            for _, length, _ in tail["frames"]:
                starts.append(starts[-1] + length)
            for frame, frame_offset, length, path, offset in sorted(pieces.pop(index, []), key=lambda piece: piece[:2]):
                out.seek(starts[frame] + frame_offset)
                with open(path, "r+b") as file:
                    file.seek(offset)
                    while length > 0:
                        bytes_here = out.read(min(length, COPY))
                        if not bytes_here:
                            fail(f"{path} reaches beyond the end of {name}")
                        file.write(bytes_here)
                        length -= len(bytes_here)
    if pieces:
        fail(f"files stand in packs that the commit document does not name: {sorted(pieces)}")


def bring_wal(system_dir, commit, target):
    """Decompresses the WAL from the backup's first segment on, of every timeline, and the history files."""
    segment_size = commit["wal_segment_size"]
    per_log = (1 << 32) // segment_size

    def number(lsn):
        high, low = lsn.split("/")
        return (int(high, 16) << 32 | int(low, 16)) // segment_size

    first = min(number(span["start"]) for span in commit["wal_ranges"])
    have = {}
    target.mkdir(mode=0o700, exist_ok=True)
    for path in sorted((system_dir / "wal").rglob("*.zst")):
        name = path.name[:-4]
        if re.fullmatch("[0-9A-F]{24}", name):
            at = int(name[8:16], 16) * per_log + int(name[16:], 16)
            if at < first:
                continue
            have.setdefault(int(name[:8], 16), set()).add(at)
        elif not re.fullmatch(r"[0-9A-F]{8}\.history", name):
            continue  # .backup and .partial files, for which recovery never asks
        key = f"{system_dir.name}/{path.relative_to(system_dir).as_posix()}"
        with open(target / name, "x+b") as out:
            content(path, "wal", key, commit["archive_id"], out)
    for span in commit["wal_ranges"]:
        # A segment in which a timeline begins repeats its parent's bytes: it may stand on the newer one alone.
        newer = set().union(*(ats for timeline, ats in have.items() if timeline >= span["timeline"]))
        last = max(number(span["start"]), number(span["end"]) - (int(span["end"].split("/")[1], 16) % segment_size == 0))
        missing = [at for at in range(number(span["start"]), last + 1) if at not in newer]
        if missing:
            fail(f"the backup needs WAL that is not there: {len(missing)} segments on timeline {span['timeline']}")
    for timeline, ats in sorted(have.items()):
        unbroken = next(at for at in range(min(ats), max(ats) + 2) if at not in ats) - 1
        print(f"timeline {timeline}: {len(ats)} segments, unbroken until {unbroken // per_log:08X}{unbroken % per_log:08X}")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("repository", type=Path)
    options.add_argument("cluster")
    options.add_argument("backup", metavar="BACKUP-ID")
    options.add_argument("target", type=Path, metavar="TARGET-DIRECTORY", help="absent or empty")
    options.add_argument("--system", metavar="ID", help="the system identifier, where the cluster has had several")
    options.add_argument("--tablespace", action="append", default=[], metavar="OLD=NEW", help="put tablespace OLD into NEW")
    options.add_argument("--no-crc", action="store_true", help="do not read the files back to check their CRC32C")
    options.add_argument("--identity", metavar="FILE", help="what opens encrypted objects, as age-keygen writes it")
    given = options.parse_args()
    global identity
    identity = given.identity

    found = sorted((given.repository / given.cluster).glob(f"{given.system or '*'}/commits/{given.backup}.json"))
    if len(found) != 1:
        fail(f"{len(found)} commit documents of backup {given.backup} in {given.repository / given.cluster}")
    commit = document(found[0], "commit")
    system_dir = found[0].parent.parent
    if (commit["cluster"], commit["system_identifier"], commit["backup_id"]) != (given.cluster, system_dir.name, given.backup):
        fail(f"{found[0]} is of another cluster or backup")
    target = Path(os.path.abspath(given.target))
    wal, extras = Path(f"{target}.wal"), Path(f"{target}.extras")
    moved = dict(pair.split("=", 1) for pair in given.tablespace)
    for unknown in moved.keys() - {tablespace["path"] for tablespace in commit["tablespaces"]}:
        fail(f"the backup has no tablespace in {unknown}")
    key_base = f"backups/{given.backup}"
    entries = read_map(system_dir / key_base, f"{system_dir.name}/{key_base}", commit, given.backup)
    links = {entry["name"]: name_of(entry, "target") for entry in entries if entry["type"] == "link"}
    links = {name: moved.get(old, old) for name, old in links.items()}
    for directory in [target, wal, extras, *map(Path, links.values())]:
        must_be_empty(directory)

    print(f"backup {given.backup}: {len(entries)} entries, {commit['cluster_size']} bytes, PostgreSQL {commit['pg_version']}")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    (target / "pg_tblspc").mkdir(mode=0o700, exist_ok=True)
    for name, new in links.items():
        Path(new).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.symlink(new, target / name)
    for entry in entries:
        if entry["type"] == "directory":
            (target / entry["name"]).mkdir(mode=int(entry["mode"], 8), parents=True, exist_ok=True)
    # Without pg_control no server starts: it gets its name when everything else is on disk.
    control, waiting = target / "global/pg_control", target / "global/pg_control.last"

    def place(entry):
        path = extras / entry["name"].lstrip("/") if entry["type"] == "extra" else target / entry["name"]
        return waiting if path == control else path

    write_files(entries, place, system_dir, commit, target)
    files = [entry for entry in entries if "extents" in entry]
    if not given.no_crc:
        with concurrent.futures.ProcessPoolExecutor() as pool:
            for entry, crc in zip(files, pool.map(crc32c, map(place, files), chunksize=16)):
                if crc != entry["crc32c"]:
                    fail(f"{place(entry)} is damaged: CRC32C {crc}, expected {entry['crc32c']}")
    bring_wal(system_dir, commit, wal)
    if links:
        # PostgreSQL makes the links anew from this file, so the links alone would lead back to the old places.
        quoted = (f"{name[10:]} " + re.sub(r"([\n\r\\])", r"\\\1", new) + "\n" for name, new in links.items())
        (target / "tablespace_map").write_bytes(os.fsencode("".join(quoted)))
    (target / "standby.signal").unlink(missing_ok=True)
    os.sync()
    waiting.rename(control)
    os.sync()
    print(f"""
{target} is ready. Before PostgreSQL {commit['pg_version']} starts on it:

  1. In {target}/postgresql.auto.conf remove each recovery_target, primary_conninfo and primary_slot_name line, and add

         restore_command = 'cp "{wal}/%f" "%p"'
         archive_cleanup_command = ''
         recovery_end_command = ''
         recovery_min_apply_delay = 0
         primary_conninfo = ''
         # unless this takes the original's place, or it would do its work beside it:
         archive_mode = off
         max_logical_replication_workers = 0
         synchronous_standby_names = ''
         # and, to stop before the end of the WAL, one of recovery_target_time, _lsn, _xid or _name

  2. touch {target}/recovery.signal""")
    if not (target / "postgresql.conf").exists():
        print(f"  3. The server's own configuration is in {extras}: start it with -c config_file=..., or copy it from there.")


if __name__ == "__main__":
    main()
