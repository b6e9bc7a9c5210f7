"""Downloads, from a server on this machine."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from functools import partial

import pytest
from rich.console import Console

from transformer_xl.data import download as module
from transformer_xl.data.corpora import KNOWN
from transformer_xl.data.download import REMOTES, Remote, download_corpus
from transformer_xl.data.opening import CorpusOptions, assign
from transformer_xl.data.preparation import prepare
from transformer_xl.data.sources import TextError

QUIET = Console(quiet=True)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and remembers what was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_arguments):
        """Stay quiet."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of `folder` on a free port of this machine; retries do not wait."""
    monkeypatch.setattr(module, "RETRIES", 0)
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        running.asked, running.folder = [], folder
        running.home = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def zipped(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def served(server, name, data):
    (server.folder / name).write_bytes(data)
    return Remote((f"{server.home}/{name}",), hashlib.sha256(data).hexdigest())


def test_a_zip_is_fetched_checked_unpacked_and_prepared(server, tmp_path):
    texts = {f"wikitext-2/wiki.{split}.tokens": f" the {split} \n".encode() for split in ("train", "valid", "test")}
    remotes = {"wikitext-2": [served(server, "wikitext-2-v1.zip", zipped(texts))]}
    paths = download_corpus("wikitext-2", tmp_path / "raw", QUIET, remotes)
    assert paths == [tmp_path / "raw" / "wikitext-2-v1"]
    corpus = prepare(assign(paths, CorpusOptions(corpus="wikitext-2")), tmp_path / "out")
    assert {split: len(corpus.tokens(split)) for split in corpus.splits} == {"train": 3, "valid": 3, "test": 3}
    assert download_corpus("wikitext-2", tmp_path / "raw", QUIET, remotes) == paths
    assert server.asked == ["/wikitext-2-v1.zip"]


def test_a_tar_and_a_file_without_a_known_hash_are_fetched(server, tmp_path):
    home = "1-billion-word-language-modeling-benchmark-r13output"
    texts = {
        f"{home}/training-monolingual.tokenized.shuffled/news.en-00001-of-00100": b"a b\nb\n",
        f"{home}/heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050": b"a\n",
    }
    archive = served(server, f"{home}.tar.gz", tarred(texts))
    words = served(server, "1b_word_vocab.txt", b"<S> 3\n<UNK> 2\na 1\n")
    remotes = {"lm1b": [archive, Remote(words.urls, None)]}
    corpus = prepare(assign(download_corpus("lm1b", tmp_path / "raw", QUIET, remotes)), tmp_path / "out")
    assert corpus.tokens("train").tolist() == [0, 2, 1, 0, 1, 0]
    assert corpus.meta["sources"][-1]["name"] == "1b_word_vocab.txt"
    assert corpus.meta["sources"][-1]["sha256"] == words.sha256


def test_another_file_than_the_published_one_is_refused_and_not_kept(server, tmp_path):
    remote = served(server, "text8.zip", zipped({"text8": b"abc"}))
    (server.folder / "text8.zip").write_bytes(zipped({"text8": b"evil"}))
    message = (
        f"{remote.urls[0]} is not the file that was published: its SHA-256 differs from {remote.sha256}. Try again"
    )
    with pytest.raises(TextError, match=re.escape(message)):
        download_corpus("text8", tmp_path / "raw", QUIET, {"text8": [remote]})
    assert list((tmp_path / "raw").iterdir()) == []


def test_the_next_home_is_tried_where_one_fails(server, tmp_path):
    remote = served(server, "enwik8.zip", zipped({"enwik8": b"<xml>"}))
    remotes = {"enwik8": [Remote((f"{server.home}/gone/enwik8.zip", *remote.urls), remote.sha256)]}
    (folder,) = download_corpus("enwik8", tmp_path / "raw", QUIET, remotes)
    assert (folder / "enwik8").read_bytes() == b"<xml>"
    assert server.asked == ["/gone/enwik8.zip", "/enwik8.zip"]


def test_a_file_that_cannot_be_fetched_is_one_line_with_the_reason(server, tmp_path):
    remotes = {"enwik8": [Remote((f"{server.home}/enwik8.zip", "http://127.0.0.1:1/enwik8.zip"), "0" * 64)]}
    with pytest.raises(OSError, match=r"enwik8\.zip cannot be fetched \(.*404.*; .*refused.*\): try again") as caught:
        download_corpus("enwik8", tmp_path / "raw", QUIET, remotes)
    assert str(tmp_path / "raw") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_cannot_write_outside_of_its_folder(server, tmp_path, make):
    name = "text8.zip" if make is zipped else "text8.tar.gz"
    remotes = {"text8": [served(server, name, make({"text8": b"abc", "../../evil": b"x"}))]}
    with pytest.raises(TextError, match=r"holds '\.\./\.\./evil', which lies outside of its folder"):
        download_corpus("text8", tmp_path / "raw", QUIET, remotes)
    assert not (tmp_path / "evil").exists()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [name]


def test_progress_is_shown_on_a_terminal(server, tmp_path):
    remotes = {"ptb": [served(server, "ptb.train.txt", b"x" * 300_000)]}
    screen = io.StringIO()
    download_corpus("ptb", tmp_path, Console(file=screen, force_terminal=True, width=100), remotes)
    assert "fetching ptb.train.txt" in screen.getvalue()
    assert "300.0/300.0 kB" in screen.getvalue()


def test_without_pooch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"--download needs pooch: pip install 'transformer-xl\[download\]'\."):
        download_corpus("ptb", tmp_path, QUIET)


def test_an_unknown_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--download 'c4' is unknown: give one of enwik8, text8, wikitext-103"):
        download_corpus("c4", tmp_path, QUIET)


def test_every_known_corpus_has_a_home():
    assert set(REMOTES) == set(KNOWN)
    for remotes in REMOTES.values():
        for remote in remotes:
            assert all(url.rpartition("/")[2] == remote.name for url in remote.urls)
            assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)
