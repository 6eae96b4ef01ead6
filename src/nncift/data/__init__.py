"""Instruction examples: what a row is, and how rows are read and written."""

from nncift.data.examples import Example, Examples, Message, Rejection, content_hash
from nncift.data.file_rows import write_rejected, write_rows
from nncift.data.python_rows import rows_from
from nncift.data.reading import read

__all__ = [
    "Example",
    "Examples",
    "Message",
    "Rejection",
    "content_hash",
    "read",
    "rows_from",
    "write_rejected",
    "write_rows",
]
