"""Which texts write: told by the words that SQL reads, and not by those that stand in comments, literals and names."""

from __future__ import annotations

import pytest

from groundstate.rules.sql_statements import describe_setting, describe_write, transaction_ending_keyword

WRITES = {
    "INSERT INTO notes VALUES (1)": "INSERT INTO notes",
    "insert\tinto notes (words) select 'x'": "INSERT INTO notes",
    "UPDATE ONLY shop.\"Notes\" SET words = 'secret'": 'UPDATE ONLY shop."Notes"',
    "DELETE FROM notes": "DELETE FROM notes",
    "MERGE INTO notes USING other ON true WHEN MATCHED THEN DELETE": "MERGE INTO notes",
    "-- a comment\n/* another */ update notes set words = null": "UPDATE notes",
    "WITH gone AS (DELETE FROM notes RETURNING *) SELECT * FROM gone": "DELETE FROM notes",
    "WITH gone AS MATERIALIZED (\n DELETE FROM notes RETURNING *) SELECT * FROM gone": "DELETE FROM notes",
    "WITH some AS (SELECT 1) INSERT INTO notes SELECT * FROM some": "INSERT INTO notes",
    "WITH some AS (SELECT 1), new AS (INSERT INTO notes SELECT * FROM some RETURNING id) TABLE new": "INSERT INTO notes",
    "(WITH new AS (UPDATE notes SET words = '' RETURNING id) SELECT id FROM new)": "UPDATE notes",
    "WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET isc USING path UPDATE notes SET words = '' FROM t": "UPDATE notes",
    "WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET c TO 1 DEFAULT 0 USING p MERGE INTO notes USING t ON true": "MERGE INTO notes",
    "WITH RECURSIVE t(n) AS (SELECT 1) SEARCH DEPTH FIRST BY n SET o DELETE FROM notes USING t": "DELETE FROM notes",
    "WITH RECURSIVE t AS (SELECT 1) SEARCH BREADTH FIRST BY n SET o CYCLE n SET c USING p INSERT INTO notes TABLE t": "INSERT INTO notes",
    "WITH a AS (WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET c USING p DELETE FROM notes RETURNING 1) TABLE a": "DELETE FROM notes",
    "COPY (WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET c USING p DELETE FROM notes RETURNING 1) TO STDOUT": "DELETE FROM notes",
    "EXPLAIN ANALYZE WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET c USING p UPDATE notes SET words = ''": "UPDATE notes",
    "SELECT 1; DROP TABLE notes": "DROP TABLE notes",
    ";; TRUNCATE notes": "TRUNCATE notes",
    "CREATE TABLE IF NOT EXISTS notes (id int)": "CREATE TABLE IF NOT EXISTS notes",
    "ALTER TABLE notes ADD COLUMN other int": "ALTER TABLE notes",
    "VACUUM": "VACUUM",
    "ANALYZE notes": "ANALYZE notes",
    "REINDEX notes": "REINDEX notes",
}
POSTGRES_WRITES = {
    "SELECT id INTO copied FROM notes": "SELECT INTO copied",
    "COPY notes FROM STDIN": "COPY notes",
    "COPY notes (id, words) FROM PROGRAM 'cat'": "COPY notes",
    "COPY (DELETE FROM notes RETURNING id) TO STDOUT": "DELETE FROM notes",
    "EXPLAIN ANALYZE INSERT INTO notes VALUES (1)": "INSERT INTO notes",
    "EXPLAIN (VERBOSE, ANALYZE) WITH x AS (DELETE FROM notes) SELECT 1": "DELETE FROM notes",
    "GRANT SELECT ON notes TO somebody": "GRANT",
    "CALL refresh_notes(1)": "CALL refresh_notes",
    "DO $$ BEGIN PERFORM 1; END $$": "DO",
    "PREPARE later AS INSERT INTO notes VALUES ($1)": "PREPARE later",
    "EXECUTE later (1)": "EXECUTE later",
    "REFRESH MATERIALIZED VIEW totals": "REFRESH MATERIALIZED VIEW totals",
    "CREATE ROLE robot PASSWORD 'secret'": "CREATE ROLE robot",
    "SELECT setval('notes_id_seq', 100)": "setval()",
    "SELECT pg_catalog.\"setval\" ('notes_id_seq', 100)": "setval()",
    "SELECT U&\"s\\0065tval\"('notes_id_seq', 100)": "setval()",
    "SELECT pg_logical_emit_message(true, 'mail', 'secret')": "pg_logical_emit_message()",
    "SELECT pg_drop_replication_slot('one')": "pg_drop_replication_slot()",
    "SELECT dblink_exec('host=secret', 'delete from notes')": "dblink_exec()",
    "SELECT * FROM dblink('host=secret', 'delete from notes returning id') AS gone (id int)": "dblink()",
    "SELECT * FROM \"dblink\"('delete from notes returning id', false) AS gone (id int)": "dblink()",
    "SELECT * FROM dblink('here', $$ select 1; delete from notes $$) AS gone (id int)": "dblink()",
    "SELECT * FROM dblink('here', E'\\x64elete from notes') AS gone (id int)": "dblink()",
    "SELECT * FROM dblink('here', 'dele' || 'te from notes') AS gone (id int)": "dblink()",
    "SELECT * FROM dblink(%(here)s, %(statement)s) AS gone (id int)": "dblink()",
    "SELECT * FROM dblink()": "dblink()",
    "SELECT dblink_send_query('here', 'delete from notes')": "dblink_send_query()",
    "SELECT query_to_xml('delete from notes returning id', true, true, '')": "query_to_xml()",
    "SELECT query_to_xml(query => 'delete from notes', nulls => true, tableforest => true, targetns => '')": "query_to_xml()",
    "EXPLAIN ANALYZE SELECT * FROM dblink('here', 'delete from notes returning id') AS gone (id int)": "dblink()",
    "SELECT $tag$ ; $tag$; UPDATE notes SET id = 1": "UPDATE notes",
    "SELECT E'it\\'s'; DELETE FROM notes": "DELETE FROM notes",
    "/* one /* nested */ still */ DELETE FROM notes": "DELETE FROM notes",
}
SQLITE_WRITES = {
    "REPLACE INTO notes VALUES (1)": "REPLACE INTO notes",
    "INSERT OR IGNORE INTO [my notes] VALUES (1)": "INSERT OR IGNORE INTO [my notes]",
    "WITH some AS (SELECT 1) REPLACE INTO notes SELECT * FROM some": "REPLACE INTO notes",
    "/* one /* is not nested */ DELETE FROM notes": "DELETE FROM notes",
    "PRAGMA user_version = 7": "PRAGMA user_version",
    "PRAGMA main.user_version(7)": "PRAGMA main.user_version",
    "PRAGMA incremental_vacuum": "PRAGMA incremental_vacuum",
    "PRAGMA writable_schema = 1": "PRAGMA writable_schema",
    'PRAGMA main."writable_schema"(on)': 'PRAGMA main."writable_schema"',
    "PRAGMA 'user_version' = 7": "PRAGMA",
    "PRAGMA default_cache_size = 100": "PRAGMA default_cache_size",
    "WITH some AS (SELECT 1) UPDATE 'notes' SET words = 'secret'": "UPDATE",
    "WITH some AS (SELECT 1) UPDATE OR REPLACE 'notes' SET words = 'secret'": "UPDATE OR REPLACE",
    "WITH some AS (SELECT 1) DELETE FROM 'notes'": "DELETE FROM",
    "WITH some AS (SELECT 1) INSERT INTO 'notes' SELECT * FROM some": "INSERT INTO",
}
READS = [
    "SELECT 1",
    "  (SELECT 1) UNION (SELECT 2);",
    "SELECT 'insert into notes', \"delete from\" FROM notes",
    "SELECT 'it''s; delete from notes'",
    "SELECT words -- ; delete from notes\n FROM notes",
    "SELECT /* ; update notes set id = 1 */ words FROM notes",
    "SELECT replace(words, 'a', 'b'), update, (delete) FROM notes",
    "SELECT * FROM notes WHERE id = %(update)s AND words = :insert",
    "SELECT * FROM notes FOR UPDATE",
    "WITH some AS (SELECT * FROM notes FOR NO KEY UPDATE OF notes SKIP LOCKED) SELECT * FROM some",
    "WITH RECURSIVE t(n) AS (SELECT 1) CYCLE n SET isc USING path SELECT * FROM t, notes FOR UPDATE OF notes",
    "WITH RECURSIVE t(n) AS (SELECT 1) SEARCH DEPTH FIRST BY n SET o SELECT n FROM unnest(t) WITH ORDINALITY AS u FOR UPDATE OF notes",
    "WITH update AS (SELECT 1 AS n), merge AS (SELECT 2) SELECT update.n FROM update, merge FOR NO KEY UPDATE OF notes",
    "VALUES (1), (2)",
    "BEGIN",
    "SAVEPOINT sa_savepoint_1",
    "ROLLBACK TO SAVEPOINT sa_savepoint_1",
    "COMMIT",
]
POSTGRES_READS = [
    "SELECT nextval('notes_id_seq')",
    "SELECT $$ insert into notes $$, $1",
    "SELECT E'it\\'s; delete from notes'",
    "SELECT 1 /* one /* nested */ ; delete from notes */",
    'SELECT setval, dblink, "setval" FROM notes',
    'SELECT "SETVAL"(words) FROM notes',  # a function of their own: the server's is in small letters
    "SELECT 'setval(1)', \"dblink('delete from notes')\" FROM notes",
    "SELECT * FROM dblink('host=there', 'select id from notes') AS there (id int)",
    "SELECT * FROM dblink('here', $$ select 'it''s; delete from notes' $$::text, true) AS there (id int)",
    "SELECT query_to_xml('select * from notes', true, true, ''), 'delete from notes'",
    "SELECT query_to_xml(query => 'select * from notes', nulls => true, tableforest => true, targetns => 'delete from notes')",
    "EXPLAIN ANALYZE SELECT query_to_xml('select 1', true, true, '')",
    "TABLE notes",
    "COPY notes TO STDOUT",
    "COPY (SELECT id FROM notes) TO STDOUT",
    "EXPLAIN DELETE FROM notes",
    "EXPLAIN (ANALYZE) SELECT * FROM notes",
    "SET LOCAL statement_timeout = 100",
    "DECLARE some CURSOR FOR SELECT * FROM notes",
    "NOTIFY channel",
]
SQLITE_READS = [
    "SELECT `delete from`, [; update notes set id = 1] FROM notes",
    "EXPLAIN QUERY PLAN DELETE FROM notes",
    "PRAGMA table_info(notes)",
    "PRAGMA user_version",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA writable_schema",
    "PRAGMA table_info(user_version)",
    "PRAGMA main.table_info('optimize')",
    "PRAGMA journal_mode = WAL",
    "PRAGMA foreign_keys = ON",
    "SELECT * FROM pragma_table_info('notes') WHERE name = 'user_version'",
]


@pytest.mark.parametrize(("text", "told"), (WRITES | POSTGRES_WRITES).items())
def test_what_writes_on_postgresql_is_told_without_its_literals(text: str, told: str) -> None:
    assert describe_write(text, postgres=True) == told


@pytest.mark.parametrize(("text", "told"), (WRITES | SQLITE_WRITES).items())
def test_what_writes_on_sqlite_is_told_without_its_literals(text: str, told: str) -> None:
    assert describe_write(text, postgres=False) == told


@pytest.mark.parametrize("text", READS + POSTGRES_READS)
def test_what_only_reads_on_postgresql_is_told_as_a_read(text: str) -> None:
    assert describe_write(text, postgres=True) is None


@pytest.mark.parametrize("text", READS + SQLITE_READS)
def test_what_only_reads_on_sqlite_is_told_as_a_read(text: str) -> None:
    assert describe_write(text, postgres=False) is None


def test_a_long_text_is_read_to_its_end() -> None:
    numbers = ", ".join(str(number) for number in range(20_000))
    assert describe_write(f"SELECT * FROM notes WHERE id IN ({numbers})", postgres=True) is None
    assert describe_write(f"SELECT * FROM notes WHERE id IN ({numbers}); DELETE FROM notes", postgres=True) == "DELETE FROM notes"


ENDS = {
    "COMMIT": "COMMIT",
    "-- a comment\ncommit work": "COMMIT",
    "SELECT 1; END": "END",
    "\ufeff/* a comment */ (COMMIT": "COMMIT",
    "rollback": "ROLLBACK",
    "ROLLBACK AND CHAIN": "ROLLBACK",
    "begin immediate": "BEGIN",
    "START TRANSACTION": "START",
    "ABORT": "ABORT",
    "PREPARE TRANSACTION 'x'": "PREPARE TRANSACTION",
}
ENDS_NOTHING = [
    "ROLLBACK TO SAVEPOINT one",
    "ROLLBACK WORK TO one",
    "RELEASE one",
    "SELECT CASE WHEN a THEN b END FROM commit",
    "UPDATE notes SET words = '; COMMIT'",
    "PREPARE later AS SELECT 1",
]
SQLITE_ENDS_NOTHING = [*ENDS_NOTHING, "CREATE TRIGGER one AFTER INSERT ON notes BEGIN DELETE FROM notes; END"]
POSTGRES_ENDS = ENDS | {
    "CREATE TEMP TABLE some (a int); COMMIT": "COMMIT",
    "CREATE TRIGGER one AFTER INSERT ON notes EXECUTE FUNCTION f(); ROLLBACK": "ROLLBACK",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$; COMMIT": "COMMIT",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; COMMIT": "COMMIT",
}
POSTGRES_ENDS_NOTHING = [
    *ENDS_NOTHING,
    "DO $$ BEGIN PERFORM 1; COMMIT; END $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$",
    "CREATE OR REPLACE PROCEDURE f() BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3",
]


@pytest.mark.parametrize("postgres", [False, True], ids=["sqlite", "postgresql"])
def test_what_ends_a_transaction_is_told_from_savepoints_and_names(postgres: bool) -> None:
    ends, nothing = (POSTGRES_ENDS, POSTGRES_ENDS_NOTHING) if postgres else (ENDS, SQLITE_ENDS_NOTHING)
    assert {one: transaction_ending_keyword(one, postgres=postgres) for one in ends} == ends
    told = {one: transaction_ending_keyword(one, postgres=postgres) for one in nothing}
    assert not any(told.values()), told


POSTGRES_SETS = {
    "SET DateStyle = 'German'": "SET datestyle",
    "set session statement_timeout to 1": "SET statement_timeout",
    "/* a comment */ SET ROLE somebody": "SET role",
    "SET SESSION AUTHORIZATION somebody": "SET session authorization",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": "SET session characteristics",
    "SET TIME ZONE 'Asia/Tokyo'": "SET time zone",
    "SELECT 1;\nSET search_path TO nowhere": "SET search_path",
    "RESET search_path": "RESET search_path",
}
POSTGRES_SETS_NOTHING = [
    "SET LOCAL DateStyle = 'German'",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "UPDATE notes\nSET words = 'SET ROLE somebody'",
    "SELECT '; SET ROLE somebody'",
]
SQLITE_SETS = {
    "PRAGMA query_only=ON": "PRAGMA query_only",
    "-- a comment\npragma main.locking_mode = EXCLUSIVE": "PRAGMA locking_mode",
    'PRAGMA "case_sensitive_like"(1)': "PRAGMA case_sensitive_like",
}
SQLITE_SETS_NOTHING = [
    "PRAGMA query_only",
    'PRAGMA main.table_info("notes")',
    "PRAGMA user_version = 3",
    "PRAGMA defer_foreign_keys = ON",
    "UPDATE notes\nSET words = 'PRAGMA query_only=ON'",
]


@pytest.mark.parametrize("postgres", [False, True], ids=["sqlite", "postgresql"])
def test_what_is_set_for_longer_than_a_transaction_is_told_from_what_ends_with_it(postgres: bool) -> None:
    sets, nothing = (POSTGRES_SETS, POSTGRES_SETS_NOTHING) if postgres else (SQLITE_SETS, SQLITE_SETS_NOTHING)
    assert {one: describe_setting(one, postgres=postgres) for one in sets} == sets
    told = {one: describe_setting(one, postgres=postgres) for one in nothing}
    assert not any(told.values()), told
