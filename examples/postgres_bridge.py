"""A Postgres table on a stream: every change of its rows, in order and exactly once, for whoever reads it.

Start `make run` first; then `python examples/postgres_bridge.py DSN TABLE http://127.0.0.1:4000/v1/stream/tables/TABLE`, with a table
whose primary key is one column named `id`. Stop it or kill it whenever you like, and start it again; one runs at a time.

A trigger writes each change into an outbox, in the transaction that makes it. The bridge numbers what is there, which is committed
before anything is sent, and appends it under those numbers: what is sent again after a kill is known to the server by its number, and
stored once. The numbers are the producer's, so they have no gaps. What is stored leaves the outbox.
"""

import sys
import time
from typing import Any

import psycopg
from psycopg import sql

from streamkeep.client import DurableStream, IdempotentProducer

SETUP = """
CREATE TABLE IF NOT EXISTS stream_outbox (
    id bigserial PRIMARY KEY, source text NOT NULL, event jsonb NOT NULL, sequence bigint
);
CREATE TABLE IF NOT EXISTS stream_bridge (source text PRIMARY KEY, next_sequence bigint NOT NULL);
CREATE OR REPLACE FUNCTION stream_event(operation text, source text, key text, value jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO stream_outbox (source, event) VALUES (source, jsonb_build_object(
        'type', source, 'key', key, 'headers', jsonb_build_object('operation', operation)
    ) || CASE WHEN value IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('value', value) END)
$$;
CREATE OR REPLACE FUNCTION stream_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO stream_outbox (source, event) VALUES (TG_TABLE_NAME, '{"headers": {"control": "reset"}}');
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id IS DISTINCT FROM NEW.id) THEN
        PERFORM stream_event('delete', TG_TABLE_NAME, OLD.id::text, NULL);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM stream_event('upsert', TG_TABLE_NAME, NEW.id::text, to_jsonb(NEW));
    END IF;
    RETURN NULL;
END $$;
"""
TRIGGERS = """
LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE;
CREATE TRIGGER stream_rows AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION stream_change();
CREATE TRIGGER stream_truncate AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION stream_change();
SELECT stream_event('upsert', {name}, id::text, to_jsonb({table})) FROM {table} ORDER BY id;
"""
NUMBER = """
WITH bridge AS (SELECT next_sequence FROM stream_bridge WHERE source = %(source)s FOR UPDATE),
fresh AS (
    SELECT id, row_number() OVER (ORDER BY id) - 1 AS rank FROM (
        SELECT id FROM stream_outbox WHERE source = %(source)s AND sequence IS NULL ORDER BY id LIMIT 1000
    ) AS waiting
),
numbered AS (
    UPDATE stream_outbox SET sequence = next_sequence + rank FROM fresh, bridge
    WHERE stream_outbox.id = fresh.id RETURNING stream_outbox.id
)
UPDATE stream_bridge SET next_sequence = next_sequence + (SELECT count(*) FROM numbered) WHERE source = %(source)s
"""
NUMBERED = (
    "SELECT sequence, event::text FROM stream_outbox WHERE source = %s AND sequence IS NOT NULL ORDER BY sequence"
)


def prepare(database: psycopg.Connection[Any], table: str) -> None:
    """Triggers, and at first an event for each row that is there already, all in one transaction."""
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(hashtext('stream_outbox'))")
        database.execute(SETUP)
        is_new = database.execute(
            "INSERT INTO stream_bridge VALUES (%s, 0) ON CONFLICT DO NOTHING RETURNING source", (table,)
        ).fetchone()
        if is_new:
            for statement in TRIGGERS.strip().split("\n"):
                database.execute(sql.SQL(statement).format(table=sql.Identifier(table), name=sql.Literal(table)))


def send(database: psycopg.Connection[Any], stream: DurableStream, table: str) -> int:
    """Number what waits, append what is numbered, and forget it; how many that were."""
    database.execute(NUMBER, {"source": table})
    rows = database.execute(NUMBERED, (table,)).fetchall()
    if rows:
        first, last = rows[0][0], rows[-1][0]
        with IdempotentProducer(stream, f"bridge-{table}", sequence=first, max_batch_items=1) as producer:
            for _, event in rows:
                producer.append(event)
        database.execute("DELETE FROM stream_outbox WHERE source = %s AND sequence <= %s", (table, last))
    return len(rows)


def main(dsn: str, table: str, url: str) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as database,
        DurableStream.create(url, content_type="application/json") as stream,
    ):
        # Held as long as the connection is: a second bridge waits here.
        database.execute("SELECT pg_advisory_lock(hashtext(%s))", (f"bridge-{table}",))
        prepare(database, table)
        print("bridging", flush=True)
        while True:
            if not send(database, stream, table):
                time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
