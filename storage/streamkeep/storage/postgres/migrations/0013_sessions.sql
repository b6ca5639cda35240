-- Records of durable sessions: names, agents, and which owner works for them. A session's events are a stream.
--
-- Only what is due and free is in the index that runners ask, so asking costs nothing while nothing is. Whoever ends an
-- owner frees its sessions in the same transaction, so nobody has to look whether a holder is alive.

create table streamkeep.sessions (
    number           bigint generated always as identity primary key,
    tenant           text not null,
    id               text not null,
    name             text,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    agents           bytea not null default '',
    is_agents_sealed boolean not null default false,
    -- How often it was marked, and since when it is due: null when every mark is settled.
    due              bigint not null default 0,
    due_at           timestamptz,
    owner_id         bigint,
    owner_epoch      bigint,
    constraint sessions_key unique (tenant, id),
    constraint sessions_held_by_an_epoch check ((owner_id is null) = (owner_epoch is null))
) with (fillfactor = 80);

create index sessions_by_tenant on streamkeep.sessions (tenant, number);
create index sessions_to_claim on streamkeep.sessions (due_at) where due_at is not null and owner_id is null;
create index sessions_held on streamkeep.sessions (owner_id) where owner_id is not null;
