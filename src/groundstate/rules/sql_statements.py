"""Decides from its text whether a SQL statement writes, ends a transaction, or changes a setting.

It uses only the text: it does not know the tables or the user's functions, and sends nothing to a database. Every statement that is not
certainly a read counts as a write. Words in comments and literals do not count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

# First words of statements that leave rows and schema as they are. EXPLAIN, COPY and PRAGMA may still write, and are examined further.
_READS = frozenset({
    "SELECT", "VALUES", "TABLE", "WITH", "SHOW", "EXPLAIN", "COPY", "PRAGMA",
    "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "SET", "RESET", "DISCARD", "LOCK",
    "DECLARE", "FETCH", "MOVE", "CLOSE", "DEALLOCATE", "LISTEN", "UNLISTEN", "NOTIFY", "LOAD", "ATTACH", "DETACH",
})  # fmt: skip

# The keywords that begin a write within another statement. A keyword begins a write only if one of its words follows; None means that any
# name may follow. Otherwise the keyword is a name or a function, or part of FOR UPDATE.
_AFTER_WRITE = {"INSERT": {"INTO", "OR"}, "REPLACE": {"INTO"}, "DELETE": {"FROM"}, "UPDATE": None, "MERGE": None}

# PostgreSQL's own functions that write. The function nextval is left out, since an extra call of it only leaves a gap in a sequence.
_WRITING_FUNCTIONS = frozenset({
    "SETVAL", "LO_CREAT", "LO_CREATE", "LO_FROM_BYTEA", "LO_IMPORT", "LO_PUT", "LO_TRUNCATE", "LO_TRUNCATE64", "LO_UNLINK", "LOWRITE",
    "DBLINK_EXEC", "PG_LOGICAL_EMIT_MESSAGE", "PG_LOGICAL_SLOT_GET_CHANGES", "PG_LOGICAL_SLOT_GET_BINARY_CHANGES",
    "PG_REPLICATION_SLOT_ADVANCE", "PG_CREATE_LOGICAL_REPLICATION_SLOT", "PG_CREATE_PHYSICAL_REPLICATION_SLOT",
    "PG_COPY_LOGICAL_REPLICATION_SLOT", "PG_COPY_PHYSICAL_REPLICATION_SLOT", "PG_DROP_REPLICATION_SLOT",
    "PG_REPLICATION_ORIGIN_CREATE", "PG_REPLICATION_ORIGIN_DROP", "PG_REPLICATION_ORIGIN_ADVANCE", "PG_IMPORT_SYSTEM_COLLATIONS",
})  # fmt: skip

# For each function that runs a statement given as text: the index of the statement among the arguments, not counting booleans. For dblink
# the statement is the last argument, since the connection may come first.
_CARRYING_OUT = {
    "DBLINK": -1, "DBLINK_SEND_QUERY": -1, "QUERY_TO_XML": 0, "QUERY_TO_XMLSCHEMA": 0, "QUERY_TO_XML_AND_XMLSCHEMA": 0,
}  # fmt: skip

# PRAGMAs of SQLite that write to the file. The PRAGMAs in the first set always write, and the PRAGMAs in the second set write if a value is
# given. PRAGMAs that choose how the file is written, such as journal_mode, are in neither set, since they leave rows and schema as they
# are.
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
# A text without a match here is a read if its first word is in _READS. This saves reading most texts token by token.
_SUSPECT = re.compile(
    rf"""; | [uU]&" | \b(?: insert|update|delete|merge|replace|into | {"|".join([*_WRITING_FUNCTIONS, *_CARRYING_OUT])} )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LOOKED_AT = frozenset({"EXPLAIN", "COPY", "PRAGMA"})
_COMMENT_MARK = re.compile(r"/\*|\*/")

_Token = tuple[str, str]  # pair (kind of a token, its text); the text of a word is in capitals, that of a string unchanged
_REMEMBERED_LENGTH = 20_000  # length of a text in characters up to which the result for it is cached
_DESCRIBED = 8  # number of tokens that are read to describe what a statement writes


def describe_write(statement: str, *, postgres: bool) -> str | None:
    """Return a short description of what this text writes, such as 'UPDATE orders', without any literal; None where it only reads.

    The text may hold several statements separated by semicolons. postgres: whether the text is for PostgreSQL, and not for SQLite.
    """
    look = _find_write if len(statement) <= _REMEMBERED_LENGTH else _find_write.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _find_write(statement: str, postgres: bool) -> str | None:
    tokens = _tokenize(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # skip an opening parenthesis or a semicolon
        if first[1] not in _READS:
            return _describe_statement([first, *islice(tokens, _DESCRIBED)])
        if first[1] not in _LOOKED_AT and not _SUSPECT.search(statement):
            return None
        found = _describe_write_within_read([first, *_tokens_up_to_semicolon(tokens)])
        if found is not None:
            return found
    return None


# First words of statements that may begin or end a transaction. PREPARE ends a transaction only if TRANSACTION follows; ROLLBACK ends
# none if TO follows.
_ENDS = frozenset({"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "PREPARE"})
# Matches the beginning of a text that may begin or end a transaction, if the text is one statement. The rest of the text is not read, since
# it may be very long.
_MAY_END = re.compile(rf"\W*?(?:--|/\*|(?:{'|'.join(_ENDS)})\b)", re.IGNORECASE)


def transaction_ending_keyword(statement: str, *, postgres: bool) -> str | None:
    """Return the first keyword by which this text ends or begins a transaction, such as 'COMMIT'; None where it does neither.

    The text may hold several statements separated by semicolons. postgres: whether the text is for PostgreSQL, and not for SQLite.
    """
    look = _find_transaction_end if len(statement) <= _REMEMBERED_LENGTH else _find_transaction_end.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _find_transaction_end(statement: str, postgres: bool) -> str | None:
    if ";" not in statement and not _MAY_END.match(statement):
        return None
    tokens = _tokenize(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # skip a semicolon
        if first[1] == "CREATE":
            words = _words_of_create(tokens)
            if not postgres and "TRIGGER" in words:
                return None  # the END in the body of a trigger ends no transaction, and SQLite accepts no statement after a trigger
            continue
        words = [text for kind, text in [first, *_tokens_up_to_semicolon(tokens)] if kind == "word"]
        if first[1] == "PREPARE" and words[1:2] == ["TRANSACTION"]:
            return "PREPARE TRANSACTION"
        if first[1] in _ENDS - {"PREPARE"} and "TO" not in words:
            return first[1]
    return None


def _words_of_create(tokens: Iterator[_Token]) -> list[str]:
    """Return the words of a CREATE statement up to the semicolon that ends it. A semicolon within BEGIN ATOMIC ... END does not end it."""
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


# Matches the beginning of a text that may change a setting, if the text is one statement. The rest of the text is not read, since it may be
# very long.
_MAY_SET = re.compile(r"\W*?(?:--|/\*|(?:SET|RESET|PRAGMA)\b)", re.IGNORECASE)
_ENDS_WITH_IT = frozenset({"LOCAL", "TRANSACTION", "CONSTRAINTS"})  # words after SET that limit the setting to the transaction
# PRAGMAs that take a value, but leave no changed setting on the connection after the transaction; some write to the file.
_LEAVES_NOTHING = _WRITING_PRAGMAS | _SETTING_PRAGMAS - {"ENCODING", "PAGE_SIZE"} | frozenset({
    "DEFER_FOREIGN_KEYS", "FOREIGN_KEY_CHECK", "FOREIGN_KEY_LIST", "INDEX_INFO", "INDEX_LIST", "INDEX_XINFO", "INTEGRITY_CHECK",
    "QUICK_CHECK", "SHRINK_MEMORY", "TABLE_INFO", "TABLE_LIST", "TABLE_XINFO", "WAL_CHECKPOINT",
})  # fmt: skip


def describe_setting(statement: str, *, postgres: bool) -> str | None:
    """Return the first setting of the connection that this text changes for longer than its transaction, such as 'SET datestyle', or None.

    A setting that a function such as set_config changes is not found. postgres: whether the text is written for PostgreSQL, and not for
    SQLite.
    """
    look = _find_setting if len(statement) <= _REMEMBERED_LENGTH else _find_setting.__wrapped__
    return look(statement, postgres)


@lru_cache(maxsize=2048)
def _find_setting(statement: str, postgres: bool) -> str | None:
    if ";" not in statement and not _MAY_SET.match(statement):
        return None
    tokens = _tokenize(statement, postgres=postgres)
    for first in tokens:
        if first[0] != "word":
            continue  # skip a semicolon
        rest = list(_tokens_up_to_semicolon(tokens))
        found = _describe_set_statement(first[1], rest) if postgres else _describe_pragma_setting(first[1], rest)
        if found is not None:
            return found
    return None


def _describe_set_statement(word: str, rest: list[_Token]) -> str | None:
    names = [text.strip('"') for kind, text in rest[:4] if kind in ("word", "name")]
    if word not in ("SET", "RESET") or not names or names[0] in _ENDS_WITH_IT:
        return None
    if names[0] == "SESSION" and names[1:2] not in (["CHARACTERISTICS"], ["AUTHORIZATION"]):
        names = names[1:]
    many = 2 if names[0] in ("SESSION", "TIME") else 1
    return f"{word} {' '.join(names[:many]).lower()}"


def _describe_pragma_setting(word: str, rest: list[_Token]) -> str | None:
    if word != "PRAGMA":
        return None
    given = next((place for place, (kind, text) in enumerate(rest) if kind == "mark" and text in "=("), 0)
    name = rest[given - 1][1].strip('"`[]') if given else ""
    return f"PRAGMA {name.lower()}" if name and name.upper() not in _LEAVES_NOTHING else None


def _tokens_up_to_semicolon(tokens: Iterator[_Token]) -> Iterator[_Token]:
    for token in tokens:
        if token == ("mark", ";"):
            return
        yield token


def _describe_write_within_read(tokens: list[_Token]) -> str | None:
    match tokens[0][1]:
        case "EXPLAIN":
            explained = _statement_run_by_explain(tokens)
            return None if explained is None else describe_write(explained, postgres=True) or _describe_nested_write(tokens)
        case "COPY":
            return _describe_nested_write(tokens) or _describe_copy_into_table(tokens)
        case "PRAGMA":
            return _describe_writing_pragma(tokens)
        case _:
            return _describe_nested_write(tokens)


def _describe_nested_write(tokens: list[_Token]) -> str | None:
    """Return a description of what a statement writes although its first word is that of a read; None if it writes nothing.

    Such a statement may write by a statement within or after WITH, by SELECT ... INTO, or by a function.
    """
    before, depth = "", 0
    listing = set[int]()  # for each WITH whose main statement has not begun yet: how many parentheses are open around it
    for place, (kind, text) in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ("", "")
        if following == ("mark", "(") and kind in ("word", "name") and _function_writes(_function_name(kind, text), tokens, place + 2):
            return f"{_function_name(kind, text).lower()}()"
        if kind == "word":
            may_begin = before in ("", "(", ")") or (depth in listing and following[1] != "AS")  # else the word is a name
            if may_begin and text in _AFTER_WRITE and place > 0 and _begins_write(text, following):
                return _describe_statement(tokens[place : place + _DESCRIBED])
            if text == "INTO":
                return f"SELECT {_describe_statement(tokens[place : place + _DESCRIBED])}"
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


def _begins_write(word: str, following: _Token) -> bool:
    allowed = _AFTER_WRITE[word]
    return following[0] in ("word", "name", "string") if allowed is None else following[0] == "word" and following[1] in allowed


_UNICODE = re.compile(r"\\(?:\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4}))")


def _function_name(kind: str, text: str) -> str:
    """Return the function's name in capitals; '' if it is quoted and contains capitals, since no built-in function has capitals."""
    if kind == "word":
        return text
    bare = text[text.index('"') + 1 : -1] if '"' in text else text[1:-1]
    if text[0] in "uU":
        bare = _UNICODE.sub(lambda found: chr(min(int(found[1] or found[2], 16), sys.maxunicode)), bare)
    return bare.upper() if bare == bare.lower() else ""


def _function_writes(name: str, tokens: list[_Token], place: int) -> bool:
    """Return whether the function of this name writes, or runs a statement that may write.

    name: the function's name in capitals. place: the index in `tokens` of the first token of the function's arguments.
    """
    if name not in _CARRYING_OUT:
        return name in _WRITING_FUNCTIONS
    texts = [one for one in _split_arguments(tokens, place) if one not in ([("word", "TRUE")], [("word", "FALSE")])]
    statement = texts[_CARRYING_OUT[name]] if texts else []
    said = [_text_of_literal(text) for kind, text in statement if kind == "string"]
    alone = len(said) == 1 and all(text in _BESIDE_A_LITERAL for kind, text in statement if kind not in ("word", "string"))
    # A statement that is not one whole literal (built from parts, or given as a parameter) counts as a write.
    return not alone or said[0] is None or describe_write(said[0], postgres=True) is not None


_BESIDE_A_LITERAL = frozenset(":=>")  # marks that may stand beside a literal, as in 'select 1'::text and sql => 'select 1'


def _split_arguments(tokens: list[_Token], place: int) -> list[list[_Token]]:
    """Return one list of tokens for each argument of a function. place: the index of the first token after the opening parenthesis."""
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


def _text_of_literal(written: str) -> str | None:
    """Return the value of a string literal, without its quotes; None if it contains backslash escapes."""
    if written[0] == "$":
        tag = written.index("$", 1) + 1
        return written[tag:-tag]
    start = written.index("'")
    said = written[start + 1 : -1].replace("''", "'")
    return None if start and "\\" in said else said


def _statement_run_by_explain(tokens: list[_Token]) -> str | None:
    """Return the text of the statement that EXPLAIN ANALYZE runs; None for an EXPLAIN without ANALYZE, which runs no statement."""
    depth, carried_out = 0, False
    for place, (kind, text) in enumerate(tokens[1:], 1):
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "mark" else 0
        carried_out = carried_out or text in {"ANALYZE", "ANALYSE"}
        if depth == 0 and kind == "word" and text not in ("ANALYZE", "ANALYSE", "VERBOSE", "QUERY", "PLAN"):
            return " ".join(text for _, text in tokens[place:]) if carried_out else None
    return None


def _describe_copy_into_table(tokens: list[_Token]) -> str | None:
    """Return a description of a COPY that fills a table (COPY ... FROM); None for a COPY that only reads (COPY ... TO)."""
    depth = 0
    for kind, text in tokens:
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "mark" else 0
        if depth == 0 and kind == "word" and text in ("FROM", "TO"):
            return _describe_statement(tokens) if text == "FROM" else None
    return _describe_statement(tokens)


def _describe_writing_pragma(tokens: list[_Token]) -> str | None:
    # names: the name of the PRAGMA and, if one stands before it, the name of a schema. given: whether the PRAGMA is given a value.
    names, given = set[str](), False
    for kind, text in tokens[1:]:
        if kind == "mark" and text in ("=", "("):
            given = True
            break
        names.add((text if kind == "word" else text[1:-1]).upper())
    if _WRITING_PRAGMAS.intersection(names) or (given and _SETTING_PRAGMAS.intersection(names)):
        return _describe_statement(tokens)
    return None


_TO_THE_NAME = frozenset({"SET", "VALUES", "SELECT", "DEFAULT", "WHERE", "USING", "AS", "ON", "WITH", "STDIN"})


def _describe_statement(tokens: list[_Token]) -> str:
    """Return the first words of the statement, up to the name of what it writes.

    The words contain no literal, since a literal may be secret.
    """
    words: list[str] = []
    for place, (kind, text) in enumerate(tokens[:_DESCRIBED]):
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


def _tokenize(text: str, *, postgres: bool) -> Iterator[_Token]:
    pattern, place = _POSTGRES if postgres else _SQLITE, 0
    while (found := pattern.match(text, place)) is not None:
        kind, said, place = found.lastgroup or "", found.group(), found.end()
        match kind:
            case "space":
                pass
            case "comment":
                place = _end_of_comment(text, place, nests=postgres)
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


def _end_of_comment(text: str, place: int, *, nests: bool) -> int:
    depth = 1
    for found in _COMMENT_MARK.finditer(text, place):
        if found.group() == "*/":
            depth -= 1
        elif nests:
            depth += 1
        if depth == 0:
            return found.end()
    return len(text)
