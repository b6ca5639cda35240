-- Subscriptions: who is told when streams grow, and how far each one has got.
--
-- A deleted subscription stays as a tombstone, so that its generation never returns to an earlier value. Every
-- transaction locks the subscription before it touches its links.

create table streamkeep.subscriptions (
    tenant       text not null,
    id           text not null,
    delivery     text not null,
    pattern      text,
    streams      text[] not null,
    lease_ttl_ms integer not null,
    webhook_url  text,
    wake_stream  text,
    description  text,
    config_hash  bytea not null,
    base_url     text not null,
    created_at   timestamptz not null default clock_timestamp(),
    deleted_at   timestamptz,
    phase        text not null default 'idle',
    generation   bigint not null default 0,
    wake_id      text,
    holder       text,
    lease_until  timestamptz,
    attempts     integer not null default 0,
    due_at       timestamptz,
    primary key (tenant, id),
    constraint subscriptions_delivery check (
        (delivery = 'webhook' and webhook_url is not null and wake_stream is null)
        or (delivery = 'pull-wake' and wake_stream is not null and webhook_url is null)
    ),
    constraint subscriptions_phase check (phase in ('idle', 'waking', 'leased')),
    constraint subscriptions_wake_has_an_id check (phase = 'idle' or wake_id is not null),
    constraint subscriptions_deleted_are_not_due check (deleted_at is null or due_at is null)
) with (fillfactor = 70);

create index subscriptions_due on streamkeep.subscriptions (due_at) where due_at is not null;
create index subscriptions_to_forget on streamkeep.subscriptions (deleted_at) where deleted_at is not null;

-- `stream_id` is null while there is no stream under the path. Positions are byte positions.
create table streamkeep.subscription_links (
    tenant          text not null,
    subscription_id text not null,
    path            text collate "C" not null,
    is_explicit     boolean not null,
    is_glob         boolean not null,
    stream_id       bigint,
    acked           bigint not null,
    tail            bigint not null,
    primary key (tenant, subscription_id, path),
    foreign key (tenant, subscription_id) references streamkeep.subscriptions on delete cascade,
    constraint subscription_links_are_of_a_kind check (is_explicit or is_glob)
) with (fillfactor = 80);

create index subscription_links_by_path on streamkeep.subscription_links (tenant, path);
create index subscription_links_by_stream on streamkeep.subscription_links (tenant, stream_id);
create index subscription_links_pending on streamkeep.subscription_links (tenant, subscription_id, path)
    where tail > acked;

-- The one that is not retired signs; retired ones are published until nobody can hold a signature of theirs.
create table streamkeep.webhook_keys (
    kid         text primary key,
    private_key bytea not null,
    created_at  timestamptz not null default clock_timestamp(),
    retired_at  timestamptz
);

create unique index webhook_keys_one_in_use on streamkeep.webhook_keys ((true)) where retired_at is null;

-- One row: when the next round of checks begins, over all instances.
create table streamkeep.subscription_rounds (
    is_only boolean primary key default true check (is_only),
    next_at timestamptz not null default clock_timestamp()
);

insert into streamkeep.subscription_rounds default values;
