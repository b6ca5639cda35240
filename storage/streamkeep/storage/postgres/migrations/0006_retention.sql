-- How long a generation's data stay where that is its own or its tenant's, and since when and why they are gone.

create table streamkeep.tenants (
    tenant            text primary key,
    -- Null: the operator's default.
    retention_seconds double precision,
    updated_at        timestamptz not null default clock_timestamp()
);

alter table streamkeep.generations
    -- Null: the operator's default, whatever it is when the sweep comes. Otherwise `sweep_at` is set at the end.
    add column retention_seconds double precision,
    add column sweep_at          timestamptz,
    add column gone_at           timestamptz,
    add column gone_reason       text,
    add constraint generations_gone_for_a_reason check ((gone_at is null) = (gone_reason is null));

drop index streamkeep.generations_to_sweep;
create index generations_to_sweep on streamkeep.generations (ended_at)
    where ended_at is not null and sweep_at is null and not is_swept;
create index generations_to_sweep_at on streamkeep.generations (sweep_at) where sweep_at is not null and not is_swept;

-- A row outlives its data by its own time, however long these stayed.
drop index streamkeep.generations_to_delete;
create index generations_to_delete on streamkeep.generations (coalesce(gone_at, ended_at)) where is_swept;
