# SPDX-License-Identifier: Apache-2.0
"""A database of SQLite that others may have written: the rows of its plain tables.

In:    the path of a file, and the tables and columns that are asked for.
Out:   rows, with None for a column that is not there and no rows for a table that is not there.
Never: writes; runs what a file may bring with it (views, virtual tables, functions in its schema); gives a value of the
       wrong type for a whole number: whatever is wrong is a `TraceError` that names it.

Algorithm:
1. Open the file for reading alone: SQLite leaves no journal and takes no lock, also where a folder can't be written.
2. Note the columns of those tables that are plain ones.
3. Give rows; each error of SQLite on the way means that the file is damaged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from farskip_compile.base.json_files import shown
from farskip_compile.base.reading.files import open_file
from farskip_compile.measure.profiling.chrome import LATEST, SQLITE, NotATraceError, TraceError
from farskip_compile.text_utils import shortened

SqlValue = int | float | str | bytes | None
LONGEST = 2**20
"""Bytes of a name."""
AGAIN = "export the report again: nsys export --type sqlite"


def is_database(path: Path) -> bool:
    """Whether a file begins as those of SQLite do. What can't be read is none: whoever opens it will say why."""
    try:
        with open_file(path) as file:
            return file.read(len(SQLITE)) == SQLITE.encode()
    except OSError:
        return False


class Database:
    """An open database; `columns`: of each table that it has."""

    def __init__(self, connection: sqlite3.Connection, path: Path, tables: Sequence[str]) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        connection.text_factory = lambda text: text.decode("utf-8", errors="replace")
        self.path = path
        self._connection = connection
        plain = {
            str(name)  # 2
            for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            if not str(sql).upper().startswith("CREATE VIRTUAL")
        }
        self.columns = {
            table: {str(column[1]) for column in connection.execute(f'PRAGMA table_info("{table}")')}
            for table in tables
            if table in plain
        }

    def rows(
        self, table: str, *columns: str, needs: Sequence[str] = (), where: str = "1"
    ) -> Iterator[tuple[SqlValue, ...]]:
        """The rows of a table.

        Args:
            table: one of those that were named before.
            columns: names, or expressions with brackets.
            needs: columns without which the table is of no use.
            where: a condition of SQL, or more.
        """
        has = self.columns.get(table)
        if has is None:
            return
        if missing := [one for one in needs if one not in has]:
            raise NotATraceError(f"{self.path}: table {table} has no column {', '.join(missing)}", way_out=AGAIN)
        chosen = ", ".join(f'"{one}"' if one in has else one if "(" in one else "NULL" for one in columns)
        yield from self._connection.execute(f'SELECT {chosen} FROM "{table}" WHERE {where}')  # 3

    def whole(self, value: SqlValue, table: str) -> int:
        """`value`, if it is a whole number that may be a time, an id or a count."""
        if not isinstance(value, int) or not 0 <= value <= LATEST:
            raise NotATraceError(
                f"{self.path}: table {table} has {shortened(shown(value))} where a whole number belongs", way_out=AGAIN
            )
        return value


@contextmanager
def database(path: Path, tables: Sequence[str], largest: int) -> Iterator[Database]:
    """Open the database in `path`, which may have `largest` bytes, to read some of its tables.

    Raises:
        TraceError: it has more bytes, or can't be read.
        NotATraceError: it is damaged.
    """
    try:
        if path.stat().st_size > largest:
            raise TraceError(
                f"can't read {path}: Has more than {largest:,} bytes",
                way_out="if you trust the file, raise the limit (farskip overlap --largest, read_trace(..., largest=))",
            )
        address = f"file:{quote(bytes(path.absolute()))}?mode=ro&immutable=1"  # 1
        with closing(sqlite3.connect(address, uri=True)) as connection:
            yield Database(connection, path, tables)
    except OSError as error:
        raise TraceError(f"can't read {path}: {error.strerror}", way_out="give a file that can be read") from None
    except sqlite3.Error as error:
        raise NotATraceError(f"{path} is damaged, or cut off: {shortened(str(error))}", way_out=AGAIN) from None
