-- Only listings walk the generations of a tenant, and they say so with `id > 0`. In a table that has no statistics yet, the
-- server took this index for as good as the key's, and read all of a tenant's generations to find one of them.

drop index streamkeep.generations_by_tenant;
create index generations_by_tenant on streamkeep.generations (tenant, id) where id > 0;
