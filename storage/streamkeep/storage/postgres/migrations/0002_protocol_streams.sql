-- Streams that anybody may write by path, beside those of generations: content type, expiry, forks, producers.
--
-- A stream with a content type is of this kind. Its tail stands in its row, under whose lock everything that concerns it
-- is written. A generation's stream has neither, and goes on as before: its row is not touched by appends.

alter table streamkeep.streams
    -- A generation's stream whose bytes are kept for forks alone has no path any more: its key may be claimed again.
    alter column path drop not null,
    add column content_type        text,
    add column is_message_stream   boolean not null default false,
    add column tail                bigint,
    -- Sliding: `ends_at` moves with touches. Without a TTL it is the instant that was asked for.
    add column ttl_seconds         bigint,
    add column ends_at             timestamptz,
    add column is_expiry_inherited boolean not null default false,
    -- A fork: positions below `fork_position` are the source's. What was asked for stands beside it.
    add column source_id           bigint,
    add column fork_position       bigint,
    add column source_path         text,
    add column asked_position      bigint,
    add column asked_sub_offset    bigint,
    -- Deleted, and kept for forks.
    add column deleted_at          timestamptz,
    add column writer_sequence     text,
    add column closing_producer    text,
    add column closing_epoch       bigint,
    add column closing_sequence    bigint,
    add constraint streams_tail_with_content_type check ((content_type is null) = (tail is null)),
    add constraint streams_fork_with_position check ((source_id is null) = (fork_position is null)),
    add constraint streams_named_until_deleted check (path is not null or deleted_at is not null);

-- An append changes no indexed column but, for a sliding TTL and then seldom, `ends_at`: room for heap-only updates.
alter table streamkeep.streams set (fillfactor = 80);

create index streams_by_path on streamkeep.streams (tenant, path collate "C")
    where content_type is not null and deleted_at is null;
create index streams_to_expire on streamkeep.streams (ends_at) where ends_at is not null and deleted_at is null;
create index streams_forks on streamkeep.streams (source_id) where source_id is not null;

-- Written in the transaction of the data, under the lock of the stream's row.
create table streamkeep.producers (
    stream_id     bigint not null,
    producer_id   text not null,
    epoch         bigint not null,
    last_sequence bigint not null,
    updated_at    timestamptz not null default clock_timestamp(),
    primary key (stream_id, producer_id)
) with (
    fillfactor = 80, vacuum_truncate = off, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = 2000, autovacuum_analyze_threshold = 2000
);
