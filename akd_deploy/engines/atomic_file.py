"""Write a file whole or not at all."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from akd_deploy.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it; the folder is made where it is missing.

    Raises:
        StorageError: the place cannot be written.
    """
    draft = path.with_name(f".{path.name}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            asked=f"to write {path}", found=str(error), next="Free some space, or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # already renamed, or never made
            draft.unlink()
