"""Decides whether the text of a SQL statement writes. It reads only the text: it knows neither tables nor a user's functions, and sends
nothing to a database.

What is not certainly a read counts as a write, and so does an unknown statement; a comment or literal that only looks like a write does
not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

# Statements that leave rows and schema as they are. EXPLAIN, COPY and PRAGMA are examined further.
_READS = frozenset({
    "SELECT", "VALUES", "TABLE", "WITH", "SHOW", "EXPLAIN", "COPY", "PRAGMA",
    "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "SET", "RESET", "DISCARD", "LOCK",
    "DECLARE", "FETCH", "MOVE", "CLOSE", "DEALLOCATE", "LISTEN", "UNLISTEN", "NOTIFY", "LOAD", "ATTACH", "DETACH",
})  # fmt: skip

# Keyword -> the words of which one must follow it to begin a statement inside of another; else it is a name, a function or FOR UPDATE.
# None: any word or name may follow.
_AFTER_WRITE = {"INSERT": {"INTO", "OR"}, "REPLACE": {"INTO"}, "DELETE": {"FROM"}, "UPDATE": None, "MERGE": None}

# PostgreSQL's own functions that write. nextval is not among them: an extra call only leaves a gap in a sequence.
_WRITING_FUNCTIONS = frozenset({
    "SETVAL", "LO_CREAT", "LO_CREATE", "LO_FROM_BYTEA", "LO_IMPORT", "LO_PUT", "LO_TRUNCATE", "LO_TRUNCATE64", "LO_UNLINK", "LOWRITE",
    "DBLINK_EXEC", "PG_LOGICAL_EMIT_MESSAGE", "PG_LOGICAL_SLOT_GET_CHANGES", "PG_LOGICAL_SLOT_GET_BINARY_CHANGES",
    "PG_REPLICATION_SLOT_ADVANCE", "PG_CREATE_LOGICAL_REPLICATION_SLOT", "PG_CREATE_PHYSICAL_REPLICATION_SLOT",
    "PG_COPY_LOGICAL_REPLICATION_SLOT", "PG_COPY_PHYSICAL_REPLICATION_SLOT", "PG_DROP_REPLICATION_SLOT",
    "PG_REPLICATION_ORIGIN_CREATE", "PG_REPLICATION_ORIGIN_DROP", "PG_REPLICATION_ORIGIN_ADVANCE", "PG_IMPORT_SYSTEM_COLLATIONS",
})  # fmt: skip

# Functions that carry out the statement given to them as text -> the index of that argument. It is the last text for dblink's, which may
# begin with the connection and end with a boolean.
_CARRYING_OUT = {
    "DBLINK": -1, "DBLINK_SEND_QUERY": -1, "QUERY_TO_XML": 0, "QUERY_TO_XMLSCHEMA": 0, "QUERY_TO_XML_AND_XMLSCHEMA": 0,
}  # fmt: skip

# PRAGMAs of SQLite that write to the file: the first set always, the second where a value is given (some of these let others write the
# schema as rows). PRAGMAs on how the file is written, as journal_mode or wal_checkpoint, leave rows and schema as they are.
_WRITING_PRAGMAS = frozenset({"INCREMENTAL_VACUUM", "OPTIMIZE"})
_SETTING_PRAGMAS = frozenset({
    "APPLICATION_ID", "AUTO_VACUUM", "DEFAULT_CACHE_SIZE", "ENCODING", "HEXREKEY", "PAGE_SIZE", "REKEY", "SCHEMA_VERSION", "USER_VERSION",
    "WRITABLE_SCHEMA",
})  # fmt: skip

_COMMON = r"""
      (?P<space>   \s+ | --[^\n]* )
    | (?P<comment> /\* )
    | (?P<string>  {escaped} (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*' )
    | (?P<name>    (?:[uU]&)?"(?:[^"]|"")*" {quoted} )
    | (?P<dollar>  {dollar} )
    | (?P<word>    [^\W\d][\w$]* )
    | (?P<number>  [\d$][\w.]* )
    | (?P<mark>    . )
"""
_FLAGS = re.VERBOSE | re.DOTALL
_POSTGRES = re.compile(_COMMON.format(escaped=r"[eE]'(?:[^'\\]|\\.|'')*' |", quoted="", dollar=r"\$(?:[^\W\d]\w*)?\$"), _FLAGS)
_SQLITE = re.compile(_COMMON.format(escaped="", quoted=r"| `(?:[^`]|``)*` | \[[^\]]*\]", dollar=r"(?!)"), _FLAGS)
# A text without any of these is a read if its first word says so. This is checked first, since most statements are long and harmless.
_SUSPECT = re.compile(
    rf"""; | [uU]&" | \b(?: insert|update|delete|merge|replace|into | {"|".join([*_WRITING_FUNCTIONS, *_CARRYING_OUT])} )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LOOKED_AT = frozenset({"EXPLAIN", "COPY", "PRAGMA"})
_COMMENT_MARK = re.compile(r"/\*|\*/")

_Token = tuple[str, str]  # a token's kind and text: a word is in capitals, a string is as written
_REMEMBERED_LENGTH = 20_000  # characters: the result for a longer text is not cached
_TOLD = 8  # tokens of a statement that are examined to describe what it writes


def what_it_writes(statement: str, *, postgres: bool) -> str | None:
    """Return a short description of what this text writes, without any literal, such as 'UPDATE orders'; None where it only reads.

    The text may hold several statements separated by semicolons. It is read as PostgreSQL reads it if `postgres`, else as SQLite does.
    """
    look = _look if len(statement) <= _REMEMBERED_LENGTH else _look.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _look(statement: str, postgres: bool) -> str | None:
    tokens = _tokens(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # this token is an opening parenthesis or a semicolon
        if first[1] not in _READS:
            return _told([first, *islice(tokens, _TOLD)])
        if first[1] not in _LOOKED_AT and not _SUSPECT.search(statement):
            return None
        found = _in_a_read([first, *_up_to_semicolon(tokens)])
        if found is not None:
            return found
    return None


# These begin or end a transaction: PREPARE TRANSACTION does, ROLLBACK TO SAVEPOINT does not.
_ENDS = frozenset({"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "PREPARE"})
# A single statement that begins otherwise ends no transaction. Only the beginning is matched, because a text may be very long.
_MAY_END = re.compile(rf"\W*?(?:--|/\*|(?:{'|'.join(_ENDS)})\b)", re.IGNORECASE)


def what_ends_it(statement: str, *, postgres: bool) -> str | None:
    """Return the keyword by which this text ends or begins a transaction, such as 'COMMIT'; None where it does neither.

    The text may hold several statements separated by semicolons. It is read as PostgreSQL reads it if `postgres`, else as SQLite does.
    """
    look = _look_for_an_end if len(statement) <= _REMEMBERED_LENGTH else _look_for_an_end.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _look_for_an_end(statement: str, postgres: bool) -> str | None:
    if ";" not in statement and not _MAY_END.match(statement):
        return None
    tokens = _tokens(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # a semicolon
        if first[1] == "CREATE":
            words = _created(tokens)
            if not postgres and "TRIGGER" in words:
                return None  # a trigger's body has semicolons and an END, and SQLite accepts no statement after it
            continue
        words = [text for kind, text in [first, *_up_to_semicolon(tokens)] if kind == "word"]
        if first[1] == "PREPARE" and words[1:2] == ["TRANSACTION"]:
            return "PREPARE TRANSACTION"
        if first[1] in _ENDS - {"PREPARE"} and "TO" not in words:
            return first[1]
    return None


def _created(tokens: Iterator[_Token]) -> list[str]:
    """Return the words of a CREATE up to its semicolon; those inside of a function's or procedure's body (BEGIN ATOMIC ... END) do not end
    it.
    """
    words: list[str] = []
    depth = 0
    for kind, text in tokens:
        if kind == "mark" and text == ";" and depth == 0:
            break
        if kind != "word":
            continue
        if (text == "ATOMIC" and words[-1:] == ["BEGIN"]) or (text == "CASE" and depth):
            depth += 1
        elif text == "END" and depth:
            depth -= 1
        words.append(text)
    return words


# A single statement that begins otherwise sets nothing. Only the beginning is matched, because a text may be very long.
_MAY_SET = re.compile(r"\W*?(?:--|/\*|(?:SET|RESET|PRAGMA)\b)", re.IGNORECASE)
_ENDS_WITH_IT = frozenset({"LOCAL", "TRANSACTION", "CONSTRAINTS"})  # what SET changes of these ends with the transaction
# PRAGMAs that take a value and change nothing of the connection for longer than a transaction, though some write to the file.
_LEAVES_NOTHING = _WRITING_PRAGMAS | _SETTING_PRAGMAS - {"ENCODING", "PAGE_SIZE"} | frozenset({
    "DEFER_FOREIGN_KEYS", "FOREIGN_KEY_CHECK", "FOREIGN_KEY_LIST", "INDEX_INFO", "INDEX_LIST", "INDEX_XINFO", "INTEGRITY_CHECK",
    "QUICK_CHECK", "SHRINK_MEMORY", "TABLE_INFO", "TABLE_LIST", "TABLE_XINFO", "WAL_CHECKPOINT",
})  # fmt: skip


def what_it_sets(statement: str, *, postgres: bool) -> str | None:
    """Return what this text sets for the connection beyond the end of its transaction, such as 'SET datestyle'; None where it sets nothing.

    What a function sets, as set_config does, is not detected. The text is read as PostgreSQL reads it if `postgres`, else as SQLite does.
    """
    look = _look_for_a_setting if len(statement) <= _REMEMBERED_LENGTH else _look_for_a_setting.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _look_for_a_setting(statement: str, postgres: bool) -> str | None:
    if ";" not in statement and not _MAY_SET.match(statement):
        return None
    tokens = _tokens(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # a semicolon
        rest = list(_up_to_semicolon(tokens))
        found = _set_by(first[1], rest) if postgres else _set_by_pragma(first[1], rest)
        if found is not None:
            return found
    return None


def _set_by(word: str, rest: list[_Token]) -> str | None:
    names = [text.strip('"') for kind, text in rest[:4] if kind in ("word", "name")]
    if word not in ("SET", "RESET") or not names or names[0] in _ENDS_WITH_IT:
        return None
    if names[0] == "SESSION" and names[1:2] not in (["CHARACTERISTICS"], ["AUTHORIZATION"]):
        names = names[1:]
    many = 2 if names[0] in ("SESSION", "TIME") else 1
    return f"{word} {' '.join(names[:many]).lower()}"


def _set_by_pragma(word: str, rest: list[_Token]) -> str | None:
    if word != "PRAGMA":
        return None
    given = next((place for place, (kind, text) in enumerate(rest) if kind == "mark" and text in "=("), 0)
    name = rest[given - 1][1].strip('"`[]') if given else ""
    return f"PRAGMA {name.lower()}" if name and name.upper() not in _LEAVES_NOTHING else None


def _up_to_semicolon(tokens: Iterator[_Token]) -> Iterator[_Token]:
    for token in tokens:
        if token == ("mark", ";"):
            return
        yield token


def _in_a_read(tokens: list[_Token]) -> str | None:
    match tokens[0][1]:
        case "EXPLAIN":
            explained = _explained(tokens)
            return None if explained is None else what_it_writes(explained, postgres=True) or _inside(tokens)
        case "COPY":
            return _inside(tokens) or _copies(tokens)
        case "PRAGMA":
            return _pragma(tokens)
        case _:
            return _inside(tokens)


def _inside(tokens: list[_Token]) -> str | None:
    """Return a description of what a reading statement writes by a statement within or after WITH, by SELECT ... INTO, or by a function."""
    before, depth = "", 0
    listing = set[int]()  # the depths of each WITH whose main statement has not begun: its list may end in any word, such as CYCLE
    for place, (kind, text) in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ("", "")
        if following == ("mark", "(") and kind in ("word", "name") and _function_writes(_named(kind, text), tokens, place + 2):
            return f"{_named(kind, text).lower()}()"
        if kind == "word":
            may_begin = before in ("", "(", ")") or (depth in listing and following[1] != "AS")  # else it is a name
            if may_begin and text in _AFTER_WRITE and place > 0 and _begins(text, following):
                return _told(tokens[place : place + _TOLD])
            if text == "INTO":
                return f"SELECT {_told(tokens[place : place + _TOLD])}"
            if text == "WITH" and before in ("", "("):
                listing.add(depth)
            elif text in ("SELECT", "TABLE"):
                listing.discard(depth)
        elif kind == "mark" and text == "(":
            depth += 1
        elif kind == "mark" and text == ")":
            listing.discard(depth)
            depth -= 1
        before = text if kind == "mark" else "."
    return None


def _begins(word: str, following: _Token) -> bool:
    allowed = _AFTER_WRITE[word]
    return following[0] in ("word", "name", "string") if allowed is None else following[0] == "word" and following[1] in allowed


_UNICODE = re.compile(r"\\(?:\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4}))")


def _named(kind: str, text: str) -> str:
    """Return the name in capitals, as a word token has it; '' for a quoted name with capitals, which no built-in function has."""
    if kind == "word":
        return text
    bare = text[text.index('"') + 1 : -1] if '"' in text else text[1:-1]
    if text[0] in "uU":
        bare = _UNICODE.sub(lambda found: chr(min(int(found[1] or found[2], 16), sys.maxunicode)), bare)
    return bare.upper() if bare == bare.lower() else ""


def _function_writes(name: str, tokens: list[_Token], place: int) -> bool:
    """Return whether the function of this name writes; `place` is the index of the first token of its arguments."""
    if name not in _CARRYING_OUT:
        return name in _WRITING_FUNCTIONS
    texts = [one for one in _arguments(tokens, place) if one not in ([("word", "TRUE")], [("word", "FALSE")])]
    statement = texts[_CARRYING_OUT[name]] if texts else []
    said = [_literal(text) for kind, text in statement if kind == "string"]
    alone = len(said) == 1 and all(text in _BESIDE_A_LITERAL for kind, text in statement if kind not in ("word", "string"))
    # A statement that is put together at run time, or given as a parameter, is not certainly a read.
    return not alone or said[0] is None or what_it_writes(said[0], postgres=True) is not None


_BESIDE_A_LITERAL = frozenset(":=>")  # marks that may surround a literal, as in 'select 1'::text and sql => 'select 1'


def _arguments(tokens: list[_Token], place: int) -> list[list[_Token]]:
    """Return the tokens of each argument, split at commas, up to the closing parenthesis."""
    depth, given = 0, list[list[_Token]]([[]])
    for token in tokens[place:]:
        depth += {"(": 1, ")": -1}.get(token[1], 0) if token[0] == "mark" else 0
        if depth < 0:
            break
        if token == ("mark", ",") and depth == 0:
            given.append([])
        else:
            given[-1].append(token)
    return given


def _literal(written: str) -> str | None:
    """Return the text that a string literal stands for; None where it has escapes."""
    if written[0] == "$":
        tag = written.index("$", 1) + 1
        return written[tag:-tag]
    start = written.index("'")
    said = written[start + 1 : -1].replace("''", "'")
    return None if start and "\\" in said else said


def _explained(tokens: list[_Token]) -> str | None:
    """Return the text of the statement that EXPLAIN ANALYZE carries out; None for an EXPLAIN that carries out none."""
    depth, carried_out = 0, False
    for place, (kind, text) in enumerate(tokens[1:], 1):
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "mark" else 0
        carried_out = carried_out or text in {"ANALYZE", "ANALYSE"}
        if depth == 0 and kind == "word" and text not in ("ANALYZE", "ANALYSE", "VERBOSE", "QUERY", "PLAN"):
            return " ".join(text for _, text in tokens[place:]) if carried_out else None
    return None


def _copies(tokens: list[_Token]) -> str | None:
    """Return a description of a COPY that fills a table; None for a COPY that reads one."""
    depth = 0
    for kind, text in tokens:
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "mark" else 0
        if depth == 0 and kind == "word" and text in ("FROM", "TO"):
            return _told(tokens) if text == "FROM" else None
    return _told(tokens)


def _pragma(tokens: list[_Token]) -> str | None:
    names, given = set[str](), False  # the PRAGMA's name, and a schema's before it; each may be quoted, even as a string
    for kind, text in tokens[1:]:
        if kind == "mark" and text in ("=", "("):
            given = True
            break
        names.add((text if kind == "word" else text[1:-1]).upper())
    if _WRITING_PRAGMAS.intersection(names) or (given and _SETTING_PRAGMAS.intersection(names)):
        return _told(tokens)
    return None


_TO_THE_NAME = frozenset({"SET", "VALUES", "SELECT", "DEFAULT", "WHERE", "USING", "AS", "ON", "WITH", "STDIN"})


def _told(tokens: list[_Token]) -> str:
    """Return the first words of the statement up to the name of what it writes. It never contains a literal, which may be a secret."""
    words: list[str] = []
    for place, (kind, text) in enumerate(tokens[:_TOLD]):
        if place and ((kind not in ("word", "name") and text != ".") or text in _TO_THE_NAME or (text == "FROM" and place > 1)):
            break
        keyword = kind == "word" and (place == 0 or text in _KEYWORDS)
        shown = text if keyword or kind != "word" else text.lower()
        if words and (text == "." or words[-1].endswith(".")):
            words[-1] += shown
        else:
            words.append(shown)
        if kind == "name" or not (keyword or text == "." or (place + 1 < len(tokens) and tokens[place + 1][1] == ".")):
            break
    return " ".join(words)


_KEYWORDS = frozenset({
    "INTO", "OR", "REPLACE", "IGNORE", "ABORT", "FAIL", "ROLLBACK", "FROM", "ONLY", "TABLE", "INDEX", "UNIQUE", "VIEW", "MATERIALIZED",
    "TEMP", "TEMPORARY", "UNLOGGED", "IF", "NOT", "EXISTS", "CONCURRENTLY", "SEQUENCE", "SCHEMA", "TRIGGER", "FUNCTION", "PROCEDURE",
    "TYPE", "DATABASE", "EXTENSION", "ROLE", "USER", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "PRAGMA", "REFRESH", "COLUMN",
})  # fmt: skip


def _tokens(text: str, *, postgres: bool) -> Iterator[_Token]:
    pattern, place = _POSTGRES if postgres else _SQLITE, 0
    while (found := pattern.match(text, place)) is not None:
        kind, said, place = found.lastgroup or "", found.group(), found.end()
        match kind:
            case "space":
                pass
            case "comment":
                place = _after_comment(text, place, nests=postgres)
            case "dollar":
                end = text.find(said, place)
                begin, place = found.start(), len(text) if end < 0 else end + len(said)
                yield "string", text[begin:place]
            case "number":
                yield kind, ""
            case "word":
                yield kind, said.upper()
            case _:
                yield kind, said


def _after_comment(text: str, place: int, *, nests: bool) -> int:
    depth = 1
    for found in _COMMENT_MARK.finditer(text, place):
        if found.group() == "*/":
            depth -= 1
        elif nests:
            depth += 1
        if depth == 0:
            return found.end()
    return len(text)
