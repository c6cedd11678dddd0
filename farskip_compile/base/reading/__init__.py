# SPDX-License-Identifier: Apache-2.0
"""Files that others may have written, read within bounds.

Contract: what is not as it should be is an error, soon, and before it has cost much memory: `files` bounds what is read
and unpacked and never waits for a pipe, `strict_json` bounds what is parsed. What the content means is checked by those
who use it (`json_files.JsonReader`).
"""
