-- Roles, database and extension, as a server's administrator makes them once, on a managed service
-- too: DARKROOM_OWNER_PASSWORD=… psql --file prepare.sql "postgresql://admin@host/postgres"
-- Running it again changes nothing. Other names: --set owner=studio --set database=studio.
\set ON_ERROR_STOP on
\if :{?owner} \else \set owner darkroom \endif
\if :{?database} \else \set database darkroom \endif
\getenv password DARKROOM_OWNER_PASSWORD

-- The owner of the tables: migrations, API and workers log in as it. No superuser, and it may
-- create no roles.
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', :'owner', :'password')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec

-- The role into which the API changes inside each tenant's transaction: row-level security is
-- written for it. It cannot log in.
SELECT 'CREATE ROLE darkroom_api NOLOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'darkroom_api') \gexec
GRANT darkroom_api TO :"owner";

-- An administrator who is no superuser makes a database for another only as a member of it.
SELECT format('GRANT %I TO CURRENT_USER', :'owner')
WHERE NOT pg_has_role(:'owner', 'MEMBER') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;

\connect :"database"
CREATE EXTENSION IF NOT EXISTS vector;
