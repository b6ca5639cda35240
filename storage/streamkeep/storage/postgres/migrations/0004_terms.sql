-- What a claim asks for beside its key: whose limits it counts towards, and how long it goes on without a reader.

alter table streamkeep.generations
    add column holder               text,
    -- Null: the generation goes on whoever reads.
    add column cancel_after_seconds double precision;

create index generations_held on streamkeep.generations (tenant, holder, created_at) where holder is not null;
create index generations_held_live on streamkeep.generations (tenant, holder)
    where holder is not null and ended_at is null;
