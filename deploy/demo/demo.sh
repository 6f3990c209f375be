#!/usr/bin/env bash
# The story of a lost table, told on a throwaway PostgreSQL. `make demo` builds what it needs, and runs it.
# Everything is in one folder under /tmp, which goes at the end, as do the servers.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
programs=${1:-$project/target/release}
pg=$("$project/integration/scripts/bring-postgres" 17)
started=$SECONDS

# Nobody's own settings for PostgreSQL or Walden are part of the story.
for name in $(compgen -e | grep -E '^(PG|WALDEN_)' || true); do unset "$name"; done

place=$(mktemp -d /tmp/walden-demo-XXXXXX)
as=()
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root.
    as=(setpriv "--reuid=nobody" "--regid=$(id -g nobody)" --clear-groups --)
    chown "nobody:$(id -gn nobody)" "$place"
fi
chmod 755 "$place"
writer=

finish() {
    local status=$?
    [ -z "$writer" ] || kill "$writer" 2>/dev/null || true
    for data in "$place/shop" "$place/restored"; do
        [ ! -f "$data/postmaster.pid" ] || "${as[@]}" pg_ctl stop -D "$data" -m immediate -s || true
    done
    [ "$status" = 0 ] || { echo; echo "The demo failed. The servers' last words:"; tail -n 15 "$place"/*.log; } >&2 2>/dev/null || true
    rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Copied, because a checkout may be closed to the servers' user.
umask 022
mkdir "$place/bin"
cp "$programs"/walden "$programs"/walden-wal-push "$programs"/walden-wal-fetch "$place/bin/"
export PATH=$place/bin:$pg/bin:$PATH LD_LIBRARY_PATH=$pg/lib LC_ALL=C TZ=UTC HOME=$place
export PGHOST=$place PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
export WALDEN_CONFIG=$place/walden.yaml
cd "$place"

say() { printf '\n'; printf '%s\n' "$@"; }
# Shows a command and runs it, just as it is shown.
show() {
    printf '\n    $ %s\n' "$1"
    "${as[@]}" bash -euc "$1" </dev/null 2>&1 | sed -e '/^$/d' -e 's/^/    /'
}
quietly() { "${as[@]}" bash -euc "$1" </dev/null; }
ask() { quietly "psql -XAtqc \"$1\"" ; }
current_segment() { ask "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"; }
wait_archived() {
    for _ in $(seq 300); do
        [ "$(ask "SELECT last_archived_wal >= '$1' FROM pg_stat_archiver")" != t ] || return 0
        sleep 0.1
    done
    echo "$1 was not archived within 30 seconds" >&2
    return 1
}

say "Walden: a table is lost, and comes back as it was a moment before." \
    "Everything happens in $place, as user $("${as[@]}" id -un)."

say "1. A shop's database. It archives its write-ahead log with one setting, archive_command."
quietly "initdb -D shop -U postgres --auth=trust --no-locale -E UTF8 --no-sync >/dev/null"
"${as[@]}" tee -a shop/postgresql.conf >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$place'
lock_timeout = 20s
archive_mode = on
archive_command = 'walden-wal-push %p'
CONF
"${as[@]}" tee walden.yaml >/dev/null <<YAML
clusters:
  shop:
    pgdata: $place/shop
    connection: host=$place user=postgres
repositories:
  - name: here
    path: $place/repository
YAML
show "grep ^archive_ shop/postgresql.conf"
show "cat walden.yaml"
show "pg_ctl start -D shop -l shop.log -s"

say "2. The repository is made, and the cluster registered in it. Nothing is archived for a cluster" \
    "that nobody registered."
show "walden init"

say "3. Orders come in, and will go on coming in while the backup is taken."
show 'psql -qc "CREATE TABLE orders (id bigserial PRIMARY KEY, item text, at timestamptz DEFAULT clock_timestamp());
             INSERT INTO orders (item) SELECT md5(i::text) FROM generate_series(1, 100000) AS i"'
"${as[@]}" tee order.sql >/dev/null <<<"INSERT INTO orders (item) VALUES (md5(random()::text));"
"${as[@]}" pgbench -n -c 2 -T 3600 -f order.sql >/dev/null 2>pgbench.log &
writer=$!
segment=$(current_segment)
quietly "psql -qc 'SELECT pg_switch_wal()' >/dev/null"
wait_archived "$segment"
before=$(ask "SELECT count(*) FROM orders")
show "walden backup"
during=$(($(ask "SELECT count(*) FROM orders") - before))
say "   $during orders were placed while the backup was taken."
show "walden list-backups"

say "4. The shop closes for today, so that we can count what there is."
kill "$writer"
wait "$writer" 2>/dev/null || true
writer=
summary="SELECT count(*) AS orders, max(id) AS last, sum(hashtext(orders::text)::bigint) AS checksum FROM orders"
show "psql -c \"$summary\""
truth=$(ask "$summary")
moment=$(ask "SELECT clock_timestamp()")
say "   It is $moment. Remember that moment."

say "5. Somebody takes it for the test system:"
sleep 0.1
show 'psql -c "DROP TABLE orders"'
say "   PostgreSQL archives a segment of its log, 16 MB, when it is full. We do not wait for that."
segment=$(current_segment)
show 'psql -qAtc "SELECT pg_switch_wal()"'
wait_archived "$segment"

say "6. What would it take to go back to $moment? The plan, before anything is written:"
show "walden restore --dry-run --target-time '$moment' --target-action promote $place/restored"

say "7. The same without --dry-run, into a second directory. The shop's own is not touched."
show "walden restore --target-time '$moment' --target-action promote $place/restored | tail -n 3"
show "grep ^restore_command restored/postgresql.auto.conf"

say "8. PostgreSQL starts on it. It asks walden-wal-fetch for the log since the backup, and stops reading" \
    "at the moment: the transaction that dropped the table is rolled back, and the copy takes queries."
show "pg_ctl start -D restored -l restored.log -s -o '-p 5433'"
for _ in $(seq 300); do
    [ "$(PGPORT=5433 ask "SELECT pg_is_in_recovery()")" != f ] || break
    sleep 0.1
done
show "grep -E 'restored log file|recovery stopping' restored.log"
show "psql -p 5433 -c \"$summary\""
back=$(PGPORT=5433 ask "$summary")
if [ "$back" != "$truth" ]; then
    echo "The restored orders differ: $back, expected $truth" >&2
    exit 1
fi
say "   The same orders, to the last one."

say "9. Into the shop with them."
show "pg_dump -p 5433 -t orders | psql -q -o /dev/null"
show "psql -c \"$summary\""
if [ "$(ask "$summary")" != "$truth" ]; then
    echo "The shop's orders differ from what they were" >&2
    exit 1
fi

say "The table is back, $((SECONDS - started)) seconds after this story began. The servers are stopped now, and" \
    "$place is removed. README.md has the same for your own cluster."
