-- Who reads the generations that are to be stopped once nobody does: a row for each process that has such readers.

create table streamkeep.audiences (
    generation_id bigint not null,
    process       text not null,
    counts_until  timestamptz not null,
    primary key (generation_id, process)
) with (
    fillfactor = 50, vacuum_truncate = off, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = 2000, autovacuum_analyze_threshold = 2000
);
