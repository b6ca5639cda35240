-- What each message of a JSON stream must be like: a JSON Schema in its normal form, and its digest, by which an append
-- says what it was checked by.

alter table streamkeep.streams
    add column schema    text,
    add column schema_id bytea,
    add constraint streams_schema_with_id check ((schema is null) = (schema_id is null));
