-- What became of streams, noted in the transaction that made or removed them, until the registries tell it.

create table streamkeep.stream_changes (
    id           bigint generated always as identity primary key,
    tenant       text not null,
    path         text not null,
    content_type text not null,
    created_at   timestamptz not null,
    is_deletion  boolean not null
);
