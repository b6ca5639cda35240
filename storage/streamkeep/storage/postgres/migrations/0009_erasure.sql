-- Deletion on request. A generation that is to go says so in `gone_reason`, and is finished once it has ended; streams that
-- are erased, forks among them, have no path any more and wait for their chunks to be deleted, a batch at a time.

alter table streamkeep.streams add column is_erased boolean not null default false;

create index streams_to_purge on streamkeep.streams (id) where is_erased;
create index generations_to_erase on streamkeep.generations (id) where gone_reason = 'deleted' and not is_swept;
