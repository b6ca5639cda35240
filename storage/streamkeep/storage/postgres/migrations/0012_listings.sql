-- What listings show of a generation beside its state, and the order in which they page through a tenant's.

alter table streamkeep.generations
    -- Whom it calls: a name or a host, for people.
    add column upstream text,
    -- Tokens, as the terminal event tells them.
    add column usage    json;

create index generations_by_tenant on streamkeep.generations (tenant, id);
