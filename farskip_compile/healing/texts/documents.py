# SPDX-License-Identifier: Apache-2.0
"""Documents of local files: plain text, and JSON Lines of text, of prompts with completions, or of conversations.

In:    files in UTF-8; which format they have, or None: by the suffix.
Out:   `TextSource`: what the files hold, without having read them; `rows(source)`: its documents, one at a time, each
       with its file, line and a hash of its content.
Never: guesses: a line of another kind than the first, a key that is missing, or text that is not UTF-8 is an error that
       names file and line. Tokenizes; opens anything but local files.

    plain      a file is a document                  any suffix but the following ones
    text       {"text": "..."} on each line          .jsonl, .ndjson, .json: by the keys of the first line
    pairs      {"prompt": "...", "completion": "..."}
    chat       {"messages": [{"role": "user", "content": "..."}, ...]}, with `tools` if there are any

Other keys of a line, such as its number or source, are not read. Blank lines separate nothing and are skipped.

The split: a document is held out if the hash of its content, as a number from 0 to 1, is below the fraction. So it
depends on nothing but the document: not on order, files or other documents; and two that are equal are never split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.errors import ConfigError

Format = Literal["text", "jsonl", "chat"]
DocumentKind = Literal["plain", "text", "pairs", "chat"]
TextUse = Literal["train", "held_out"]

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMS = 'one JSON object a line: {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}'
KEYS: dict[str, DocumentKind] = {"prompt": "pairs", "completion": "pairs", "messages": "chat"}
MESSAGES = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


@dataclass(frozen=True)
class TextSource:
    """Files of one kind, and which of their documents are meant."""

    files: tuple[str, ...]
    stamps: tuple[tuple[int, ...], ...]
    """Of each file: size and time of its last change; what is cached for others is not used."""
    kind: DocumentKind
    text_field: str = "text"
    held_out_fraction: float | None = None
    part: TextUse = "train"
    """Which side of the split; only read together with a fraction."""


def read_source(
    files: Sequence[str | Path],
    format: Format | None = None,
    text_field: str | None = None,
    held_out_fraction: float | None = None,
    part: TextUse = "train",
) -> TextSource:
    """What `files` hold.

    Args:
        format: "text": each file is a document, whatever its suffix; "jsonl": JSON Lines, of the kind that the keys of
            the first line say; "chat": JSON Lines of conversations; None: by the suffix.
        text_field: the key of the text in JSON Lines; None: "text". If given, the lines must be of that kind.
        held_out_fraction: of the documents, above 0 and below 1; None: `part` is not asked for, all are meant.

    Raises:
        ConfigError: a file is missing, the suffixes are of several formats, or the first line can't be understood.
    """
    paths = [Path(file) for file in files]
    if missing := [path for path in paths if not path.is_file()]:
        raise ConfigError(f"there is no file {missing[0]}", way_out="files of text, or JSON Lines, in UTF-8")
    if held_out_fraction is not None and not 0 < held_out_fraction < 1:
        raise ConfigError(f"held_out_fraction={held_out_fraction} is not a fraction", way_out="such as 0.02")
    if format is None:
        lines = [path for path in paths if path.suffix.lower() in JSON_LINES]
        plain = [path for path in paths if path not in lines]
        if lines and plain:
            raise ConfigError(
                f"{plain[0]} is text and {lines[0]} is JSON Lines by its suffix",
                way_out="files of one format; or format = ..., if the suffix is wrong",
            )
        format = "jsonl" if lines else "text"
    kind: DocumentKind = "plain"
    if format == "chat":
        kind = "chat"
    elif format == "jsonl":
        kind = "text" if text_field is not None else _kind_of_first(paths)
    if text_field is not None and kind != "text":
        raise ConfigError(f"text_field={text_field!r}, and the files hold {_words(kind)}", way_out='format = "jsonl"')
    stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths))
    names = tuple(map(str, paths))
    return TextSource(names, stamps, kind, text_field if text_field is not None else "text", held_out_fraction, part)


def rows(source: TextSource, version: str = "") -> Iterator[dict[str, Any]]:
    """The documents, in order: `content` (the text; of other kinds, the JSON of what is used), `digest` (of it),
    `file` and `line` (from 1; 0 of a plain file). `version` is for caches.

    Raises:
        ConfigError: a line is malformed, and the error names it; or no document is meant.
    """
    count = 0
    for name in source.files:
        for line, content in _contents(Path(name), source):
            digest = hashlib.sha256(content.encode()).digest()
            if source.held_out_fraction is not None:
                held_out = int.from_bytes(digest[:8], "big") < source.held_out_fraction * 2**64
                if held_out != (source.part == "held_out"):
                    continue
            count += 1
            yield {"content": content, "digest": digest[:16].hex(), "file": name, "line": line}
    if not count:
        side = "" if source.held_out_fraction is None else f" on the side {source.part!r} of the split"
        raise ConfigError(
            f"{', '.join(source.files)[:200]} has no document{side}",
            way_out="more documents (a file of plain text is one), another held_out_fraction, or held_out = [...]",
        )


def place(file: str, line: int) -> str:
    """Where a document is, in words."""
    return f"{file}, line {line}" if line else file


def _contents(path: Path, source: TextSource) -> Iterator[tuple[int, str]]:
    if source.kind == "plain":
        try:
            yield 0, path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not text in UTF-8: {error}", way_out="convert it to UTF-8") from error
        return
    for line, found in _objects(path):
        yield line, _content(found, source, place(str(path), line))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = line.decode()
                found = parse_json(text)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{place(str(path), number)}: not JSON: {error}", way_out=FORMS) from error
            if not isinstance(found, dict):
                raise ConfigError(
                    f"{place(str(path), number)}: {type(found).__name__}, not a JSON object", way_out=FORMS
                )
            yield number, found


def _kind_of_first(paths: Sequence[Path]) -> DocumentKind:
    for path in paths:
        for line, found in _objects(path):
            return _kind(found, place(str(path), line), "text")
    raise ConfigError(f"{paths[0]} has no line", way_out=FORMS)


def _kind(found: dict[str, Any], where: str, text_field: str) -> DocumentKind:
    keys: dict[str, DocumentKind] = {text_field: "text", **KEYS}
    kinds = {keys[key]: key for key in found if key in keys}
    if not kinds:
        raise ConfigError(
            f"{where}: its keys are {', '.join(map(repr, found)) or 'none'}",
            way_out=f"{FORMS}; text under another key: text_field = ...",
        )
    if len(kinds) > 1:
        raise ConfigError(
            f"{where}: it has {' and '.join(map(repr, kinds.values()))}",
            way_out='format = "chat", or text_field = ...: which of them is meant',
        )
    return next(iter(kinds))


def _content(found: dict[str, Any], source: TextSource, where: str) -> str:
    """What is used of a line: the text, or JSON."""
    wanted = {"text": [source.text_field], "pairs": ["prompt", "completion"], "chat": ["messages"]}[source.kind]
    if missing := [key for key in wanted if key not in found]:
        raise ConfigError(
            f"{where}: it has no {missing[0]!r}, and the data is {_words(source.kind)}",
            way_out="lines of one kind; files of others for themselves",
        )
    if source.kind == "chat":
        _check_messages(found["messages"], where)
        used = {key: found[key] for key in ("messages", "tools") if found.get(key) is not None}
        content = json.dumps(used, ensure_ascii=False)
    else:
        for key in wanted:
            if not isinstance(found[key], str):
                raise ConfigError(f"{where}: {key!r} is {type(found[key]).__name__}, not a string", way_out=FORMS)
        content = (
            found[source.text_field]
            if source.kind == "text"
            else json.dumps({key: found[key] for key in wanted}, ensure_ascii=False)
        )
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: half of a surrogate pair: {error}", way_out="text that UTF-8 can hold") from error
    return content


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{where}: 'messages' is not a list of messages", way_out=MESSAGES)
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{where}: message {number} has no role", way_out=MESSAGES)
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ConfigError(f"{where}: the content of message {number} is not a string", way_out=MESSAGES)


def _words(kind: DocumentKind) -> str:
    return {"plain": "plain text", "text": "text", "pairs": "prompts with completions", "chat": "conversations"}[kind]
