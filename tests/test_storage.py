import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from akd_deploy.errors import StorageError
from akd_deploy.storage import copied_sha256, exclusive_lock, make_folder, write_atomically, write_text_atomically

HOLDER = """
import sys, time
from pathlib import Path
from akd_deploy.storage import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def no_space(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_args, **_kwargs):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "folder" / "file.json"
    write_atomically(path, b"old")
    return path


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "lock"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_content_is_written_whole_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_text_atomically(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    write_atomically(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["file.txt"]


def test_written_files_can_be_read_by_others(written):
    assert stat.S_IMODE(written.stat().st_mode) == 0o644


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod", "tempfile.mkstemp"])
def test_a_full_disk_leaves_the_old_content_and_no_draft(written, monkeypatch, failing):
    monkeypatch.setattr(failing, lambda *args, **kwargs: no_space())
    with pytest.raises(StorageError, match="No space left") as error:
        write_atomically(written, b"new content")
    assert str(written) in str(error.value)
    assert written.read_bytes() == b"old"
    assert names(written.parent) == [written.name]


def test_a_disk_that_fills_up_halfway_leaves_the_old_content(written, monkeypatch):
    opened = os.fdopen

    class HalfWritten:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            no_space()

    monkeypatch.setattr(os, "fdopen", lambda *args: HalfWritten(opened(*args)))
    with pytest.raises(StorageError, match="No space left"):
        write_atomically(written, b"new content")
    monkeypatch.undo()
    assert written.read_bytes() == b"old"
    assert names(written.parent) == [written.name]


def test_a_symbolic_link_stays_one_and_what_it_points_to_is_written(written, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(written.relative_to(tmp_path))
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert written.read_bytes() == b"new"
    assert names(tmp_path) == ["folder", "link.json"]
    assert names(written.parent) == [written.name]


def test_symbolic_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StorageError):
        write_atomically(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("through_link", [False, True])
def test_a_pipe_is_refused_and_stays_one(tmp_path, through_link):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(StorageError, match="no regular file"):
        write_atomically(link if through_link else pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_an_interrupted_write_leaves_the_old_content_and_no_draft(written, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(written, b"new content")
    assert written.read_bytes() == b"old"
    assert names(written.parent) == [written.name]


def test_a_read_only_file_system_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", read_only)
    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    for attempt in (
        lambda: write_atomically(tmp_path / "file", b"x"),
        lambda: make_folder(tmp_path / "folder"),
    ):
        with pytest.raises(StorageError, match=rf"{tmp_path}.*Read-only"):
            attempt()


def test_a_folder_without_write_permission_is_refused(written):
    written.parent.chmod(0o555)
    try:
        if os.access(written.parent, os.W_OK):
            pytest.skip("permissions do not bind this user")
        with pytest.raises(StorageError):
            write_atomically(written, b"new")
        assert written.read_bytes() == b"old"
    finally:
        written.parent.chmod(0o755)


def test_a_file_where_a_folder_should_be_is_refused(written):
    for attempt in (lambda: write_atomically(written / "below", b"x"), lambda: make_folder(written)):
        with pytest.raises(StorageError):
            attempt()
    with pytest.raises(StorageError), exclusive_lock(written / "lock"):
        pass
    assert written.read_bytes() == b"old"


def test_concurrent_writers_leave_one_of_their_contents(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([i]) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_a_lock_held_by_another_process_is_refused_and_names_it(tmp_path, holder):
    with pytest.raises(StorageError, match=rf"process {holder.pid} on "), exclusive_lock(tmp_path / "lock"):
        pass
    assert holder.poll() is None


def test_a_lock_is_free_once_its_holder_was_killed(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_lock_is_held_once_within_one_process_too(tmp_path):
    path = tmp_path / "made" / "lock"
    with exclusive_lock(path):
        with pytest.raises(StorageError, match=f"process {os.getpid()}"), exclusive_lock(path):
            pass
        with pytest.raises(StorageError), exclusive_lock(path):
            pass
    with exclusive_lock(path):
        pass


def test_a_lock_is_released_when_its_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "lock"):
        raise ZeroDivisionError
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_refusal_does_not_need_the_holder_to_have_written_its_name(tmp_path):
    path = tmp_path / "lock"
    with exclusive_lock(path):
        path.write_text("{")
        with pytest.raises(StorageError, match="another process"), exclusive_lock(path):
            pass


@pytest.mark.parametrize("failing", ["flock", "open"])
def test_a_place_that_cannot_lock_is_refused_and_not_left_open(tmp_path, monkeypatch, failing):
    import fcntl

    monkeypatch.setattr(*((fcntl, "flock") if failing == "flock" else (os, "open")), read_only)
    with pytest.raises(StorageError, match="Read-only"), exclusive_lock(tmp_path / "lock"):
        pass
    monkeypatch.undo()
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_copy_is_hashed_as_it_is_written_and_a_place_without_room_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10_000)  # more than is read at once
    copy = tmp_path / "a" / "b" / "copy"
    assert copied_sha256(tmp_path / "file", copy) == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert copy.read_bytes() == (tmp_path / "file").read_bytes()
    with pytest.raises(StorageError, match="a copy of"):
        copied_sha256(tmp_path / "file", tmp_path / "file" / "copy")
