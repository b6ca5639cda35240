-- Encryption at rest. In `chunks.encoding`, 2 is added for what is encrypted; the key's id stands in the bytes.

alter table streamkeep.generations add column is_refusal_sealed boolean not null default false;

-- Which keys were ever used for a tenant, so that a start can say which ones are missing.
create table streamkeep.sealing_keys (
    tenant        text not null,
    key_id        bytea not null,
    first_used_at timestamptz not null default clock_timestamp(),
    primary key (tenant, key_id)
);
