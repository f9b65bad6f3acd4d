"""Search spaces by name, or as a run.toml describes them."""

from __future__ import annotations

from pathlib import Path

from akd_deploy.configuration import read_configuration
from akd_deploy.search_space import SearchSpace, load_space


def named_space(text: str) -> SearchSpace:
    """`mobile` (with its default settings), or the path of a run.toml whose `[space]` is meant.

    Raises:
        UnknownNameError: no such space.
        MissingFileError: a path that ends in `.toml`, and no such file.
    """
    if text.endswith(".toml"):
        table = read_configuration(Path(text)).space
        return load_space(table.name, table.settings)
    return load_space(text)
