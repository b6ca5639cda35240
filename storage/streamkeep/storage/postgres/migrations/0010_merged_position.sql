-- Up to where a stream's chunks were merged into segments: large streams are merged piece by piece, open ones as they grow.

alter table streamkeep.streams add column merged_position bigint;
