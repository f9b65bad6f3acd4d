"""Write a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from akd_deploy.errors import StorageError


def write_file_atomically(path: Path, data: bytes) -> None:
    """Write beside the destination, flush to the disk, then rename over it; a failure leaves the old file.

    Raises:
        StorageError: the place is full, read-only or not a folder.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(
            asked=f"the file {path}, written whole", found=str(error), next="Free some space or choose another place."
        ) from error
