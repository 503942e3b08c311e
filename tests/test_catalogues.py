"""Corpora by name: archives of OPUS, and sacreBLEU's test sets as sacreBLEU reads them."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from sacrebleu.dataset import DATASETS
from test_files import make_zip
from test_sources import read
from web_server import running_server

from mtrain.config.entries import Entry, OpusEntry, SacrebleuEntry
from mtrain.data import catalogues
from mtrain.data.lock import Lock
from mtrain.data.reading import Pair, Reading
from mtrain.data.sources import open_source
from mtrain.errors import DataError, DownloadError


@pytest.fixture
def server():
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTRAIN_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Lock.open(tmp_path / "my.yaml")


def files_of(entry: Entry, lock: Lock, may_ask: bool = True) -> dict[str, str | None]:
    return open_source(entry, Reading("data.train.0", lock)).files(may_ask)


class TestOpus:
    """`opus: Corpus/version`"""

    @pytest.fixture(autouse=True)
    def _opus(self, server, lock, monkeypatch):
        make_zip(
            "de-en.txt.zip",
            {
                "README": b"about",
                "LICENSE": b"CC-BY 4.0:\n  do as you like\n",
                "Toy.de-en.de": b"Hund\nKatze\n",
                "Toy.de-en.en": b"dog\ncat\n",
                "Toy.de-en.xml": b"<links/>",
            },
        )
        server.files = {"/OPUS-Toy/v1/moses/de-en.txt.zip": Path("de-en.txt.zip").read_bytes()}
        monkeypatch.setattr(
            catalogues,
            "OPUS_URL",
            server.address + "/OPUS-{corpus}/{version}/moses/{languages}.txt.zip",
        )

    @pytest.mark.parametrize("languages", [("en", "de"), ("de", "en")])
    def test_either_direction_comes_from_one_archive(self, lock, languages):
        entry = OpusEntry(opus="Toy/v1", languages=languages)
        pairs = read(entry, lock)
        expected = [Pair("dog", "Hund"), Pair("cat", "Katze")]
        assert pairs == (
            expected if languages[0] == "en" else [Pair(p.tgt, p.src) for p in expected]
        )
        facts = lock.sources[f"opus:Toy/v1 {languages[0]}-{languages[1]}"]
        assert facts["licence"] == "CC-BY 4.0: do as you like"
        assert facts["pairs"] == 2

    def test_its_own_codes_and_the_lock(self, lock, server):
        entry = OpusEntry(opus="Toy/v1", languages=("en", "de"), name="toy")
        ((url, sha256),) = files_of(entry, lock).items()
        assert url.endswith("/OPUS-Toy/v1/moses/de-en.txt.zip")
        assert sha256 == hashlib.sha256(Path("de-en.txt.zip").read_bytes()).hexdigest()

    def test_a_changed_archive_is_an_error(self, lock, server, cache):
        entry = OpusEntry(opus="Toy/v1", languages=("en", "de"))
        read(entry, lock)
        for path in cache.iterdir():
            path.unlink()
        server.files = {path: content + b"\0" for path, content in server.files.items()}
        with pytest.raises(DownloadError, match=r"data.train.0: .*de-en\.txt\.zip has changed"):
            read(entry, lock)

    def test_the_lock_and_the_mirror_need_no_network(self, lock, server, cache, monkeypatch):
        entry = OpusEntry(opus="Toy/v1", languages=("en", "de"))
        files_of(entry, lock)
        for path in cache.iterdir():
            path.unlink()
        server.files.clear()
        monkeypatch.setenv("MTRAIN_MIRROR", ".")
        assert len(read(entry, lock)) == 2

    def test_what_opus_does_not_have(self, lock):
        for keys in ({"opus": "Toy/v2"}, {"opus": "Toy/v1", "languages": ("en", "fr")}):
            entry = OpusEntry(**{"languages": ("en", "de")} | keys)
            with pytest.raises(DownloadError, match=r"data.train.0: .* answered 404") as error:
                read(entry, lock)
            assert "opus.nlpl.eu" in str(error.value)

    def test_an_archive_without_a_side(self, lock, server):
        make_zip("x.zip", {"Toy.de-en.de": b"Hund\n"})
        server.files["/OPUS-Toy/v1/moses/de-en.txt.zip"] = Path("x.zip").read_bytes()
        entry = OpusEntry(opus="Toy/v1", languages=("en", "de"))
        with pytest.raises(DataError, match=r"has 0 files in `en` \(files: Toy\.de-en\.de\)"):
            read(entry, lock)


def test_the_address_of_opus():
    entry = OpusEntry(opus="Europarl/v8", languages=("fr", "en"))
    url = "https://object.pouta.csc.fi/OPUS-Europarl/v8/moses/en-fr.txt.zip"
    assert files_of(entry, Lock(Path("my.lock")), may_ask=False) == {url: None}


SGM = """<srcset setid="newstest2014" srclang="any">
<doc docid="1" genre="news" origlang="de">
<seg id="1">{first}</seg>
<seg id="2">  Two   &amp; words </seg>
</doc>
</srcset>
"""


def archive_of_newstest(first: str = "One.") -> bytes:
    """What `wmt14/full` downloads, with two lines."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for side, text in (
            ("src.en", first),
            ("ref.de", "Eins."),
            ("src.de", "x"),
            ("ref.en", "y"),
        ):
            content = SGM.format(first=text).encode()
            info = tarfile.TarInfo(f"test-full/newstest2014-deen-{side}.sgm")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class TestSacrebleu:
    """`sacrebleu: wmt14/full`"""

    @pytest.fixture
    def test_set(self, tmp_path, server, monkeypatch):
        content = archive_of_newstest()
        known = DATASETS["wmt14/full"]
        monkeypatch.setattr(known, "data", [server.url("/wmt14/test-full.tgz")])
        monkeypatch.setattr(known, "md5", [hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(known, "_rawdir", str(tmp_path / "sacrebleu" / "raw"))
        server.files = {"/wmt14/test-full.tgz": content}
        return known

    def test_source_and_reference(self, lock, test_set, server):
        entry = SacrebleuEntry(sacrebleu="wmt14/full", languages=("en", "de"))
        ((_, sha256),) = files_of(entry, lock).items()
        assert sha256 == hashlib.sha256(archive_of_newstest()).hexdigest()
        pairs = read(entry, lock)
        assert pairs == [Pair("One.", "Eins."), Pair("Two &amp; words", "Two &amp; words")]
        assert lock.sources["sacrebleu:wmt14/full en-de"]["pairs"] == 2
        assert read(entry, lock) == pairs
        assert len(server.ranges) == 1

    def test_what_sacrebleu_has_itself_needs_no_network(self, lock, test_set, server):
        raw = Path(test_set._rawdir, "wmt14_full.test-full.tgz")
        raw.parent.mkdir(parents=True)
        raw.write_bytes(archive_of_newstest())
        entry = SacrebleuEntry(sacrebleu="wmt14/full", languages=("de", "en"))
        assert len(read(entry, lock)) == 2
        assert server.ranges == []

    def test_the_lock_and_the_mirror_need_no_network(self, lock, test_set, server, monkeypatch):
        Path("test-full.tgz").write_bytes(archive_of_newstest())
        lock.record(test_set.data[0], hashlib.sha256(archive_of_newstest()).hexdigest(), 1)
        monkeypatch.setenv("MTRAIN_MIRROR", ".")
        entry = SacrebleuEntry(sacrebleu="wmt14/full", languages=("en", "de"))
        assert len(read(entry, lock)) == 2
        assert server.ranges == []

    def test_bytes_that_sacrebleu_does_not_know(self, lock, test_set, server):
        server.files = {"/wmt14/test-full.tgz": archive_of_newstest("Other.")}
        entry = SacrebleuEntry(sacrebleu="wmt14/full", languages=("en", "de"))
        with pytest.raises(DownloadError, match=r"test-full\.tgz has the wrong md5: sacreBLEU ex"):
            read(entry, lock)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"sacrebleu": "wmt14/ful"}, "sacreBLEU has no test set `wmt14/ful`"),
            (
                {"languages": ("en", "xx")},
                r"`wmt14/full` has no en-xx \(found: cs-en, en-cs",
            ),
        ],
    )
    def test_what_sacrebleu_does_not_have(self, lock, keys, message):
        entry = SacrebleuEntry(**{"sacrebleu": "wmt14/full", "languages": ("en", "de")} | keys)
        with pytest.raises(DataError, match=message):
            read(entry, lock)
