-- Who may use the service, and the secrets that sign its URLs.

create table streamkeep.api_keys (
    id             text primary key,
    tenant         text not null,
    -- SHA-256 of 32 random bytes, which nobody can guess: no salt, and no slow hash.
    digest         bytea not null,
    created_at     timestamptz not null,
    name           text,
    -- Null: all that the service may call.
    upstreams      text[],
    max_running    integer,
    max_per_minute integer,
    is_operator    boolean not null default false,
    expires_at     timestamptz,
    revoked_at     timestamptz,
    constraint api_keys_digest check (length(digest) = 32),
    constraint api_keys_limits check (max_running > 0 and max_per_minute > 0)
);

-- The first signing key, number 1, is the row `url_signing` of streamkeep.secrets.
create table streamkeep.signing_keys (
    id         integer generated always as identity (start with 2) primary key,
    secret     bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    is_only    boolean not null default false
);
