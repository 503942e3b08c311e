"""What leaves the house: that it translates as before, and what is said of files that do not."""

import json
import shutil

import pytest
import torch
from conftest import invoke, write_lines
from safetensors.torch import save_file

import mtrain
from mtrain.errors import CheckpointError, ModelError, StorageError, UsageError
from mtrain.export import ctranslate2 as stage
from mtrain.export.ctranslate2 import Check, export_ctranslate2
from mtrain.export.single_file import export_safetensors
from mtrain.run import RunDir


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A copy, as exporting remembers in the run which head shows word links."""
    copy = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained_run.path, copy)
    return copy


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    assert export_safetensors(run, path) == path.stat().st_size
    return path


# -- CTranslate2 -----------------------------------------------------------------------------


def test_a_ctranslate2_model_is_written_and_compared(run, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    done = invoke("export", run, "--to", "ctranslate2", "-o", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "model").iterdir()}
    vocabulary = "shared_vocabulary.json"
    expected = {"model.bin", "config.json", vocabulary, "tokenizer.model", "mtrain.json"}
    assert names == expected
    check = json.loads((tmp_path / "model" / "mtrain.json").read_text(encoding="utf-8"))["check"]
    assert check["n_sentences"] == 80
    assert check["n_same"] >= 76
    assert check["difference"] < 1e-5
    assert f"{check['bleu']:.2f}" in done.stdout
    translator = ctranslate2.Translator(str(tmp_path / "model"))
    (result,) = translator.translate_batch([["▁ba"]], beam_size=1)
    assert "".join(result.hypotheses[0]) == "▁ba"


def test_what_this_machine_cannot_compute_in_is_said(run, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    if "float16" in ctranslate2.get_supported_compute_types("cpu"):
        pytest.skip("this CPU computes in float16")
    options = ("--to", "ctranslate2", "--quantization", "float16")
    done = invoke("export", run, *options, "-o", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "does not compute in float16: the check is made in float32" in done.stderr


def test_an_earlier_export_gives_way_and_nothing_else_does(run, tmp_path):
    pytest.importorskip("ctranslate2")
    for quantization in ("float32", "float16"):
        export_ctranslate2(run, tmp_path / "model", quantization)
    note = json.loads((tmp_path / "model" / "mtrain.json").read_text(encoding="utf-8"))
    assert note["quantization"] == "float16"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(UsageError, match="not an exported model"):
        export_ctranslate2(run, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("check", "quantization", "said"),
    [
        (Check(200, 10, 30.0, 28.9, 0.1), "int8", "BLEU 28.90, mtrain with 30.00"),
        (Check(200, 190, 30.0, 30.0, 0.1), None, "differ from ours by 0.1"),
    ],
)
def test_too_large_a_difference_is_an_error(check, quantization, said):
    with pytest.raises(ModelError, match=said):
        check.require(quantization)


def test_a_wrong_conversion_is_noticed(run, tmp_path, monkeypatch):
    """Weights that are not those of the run, in a model that is well-formed."""
    pytest.importorskip("ctranslate2")
    save = stage.save_ctranslate2

    def save_another(model: torch.nn.Module, *rest: object) -> None:
        with torch.no_grad():
            model.decoder_norm.weight.mul_(-1)  # type: ignore[operator, union-attr]
        save(model, *rest)  # type: ignore[arg-type]
        with torch.no_grad():
            model.decoder_norm.weight.mul_(-1)  # type: ignore[operator, union-attr]

    monkeypatch.setattr(stage, "save_ctranslate2", save_another)
    with pytest.raises(ModelError, match="BLEU"):
        export_ctranslate2(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


# -- one file --------------------------------------------------------------------------------


def test_a_file_stands_for_its_run(run, file, trained_run):
    lines = trained_run.test_sources[:20]
    assert mtrain.load(file).translate(lines) == mtrain.load(run).translate(lines)
    opened = RunDir.open(file)
    assert opened.read_scores() == RunDir.open(run).read_scores()
    assert (
        opened.read_manifest()["split_sha256"] == RunDir.open(run).read_manifest()["split_sha256"]
    )
    assert "path" not in opened.read_manifest()


def test_it_can_be_exported_again(file, tmp_path):
    again = tmp_path / "again.safetensors"
    export_safetensors(file, again)
    assert again.read_bytes() == file.read_bytes()


def test_it_leaves_nothing_behind(file):
    opened = RunDir.open(file)
    assert opened.config.is_file()
    files = opened.files
    del opened
    assert not files.exists()


def test_commands_take_it_as_a_run(file, trained_run, tmp_path):
    lines = trained_run.test_sources[:3]
    done = invoke(
        *("translate", file, "--alignment"), cwd=tmp_path, stdin="".join(f"{x}\n" for x in lines)
    )
    assert done.returncode == 0, done.stderr
    assert [line.count("\t") for line in done.stdout.splitlines()] == [1, 1, 1]
    write_lines(tmp_path / "a", lines)
    done = invoke("eval", file, "--source", "a", "--reference", "a", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"]["sentences"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["eval"], 2, "holds no test sets"),
        (["translate", "--checkpoint", "best"], 4, "leave out --checkpoint"),
    ],
)
def test_what_a_file_cannot_do_is_said(file, tmp_path, arguments, code, said):
    command, *rest = arguments
    done = invoke(command, file, *rest, cwd=tmp_path, stdin="ba\n")
    assert done.returncode == code
    assert said in done.stderr


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_weight(content: bytes) -> bytes:
    middle = len(content) // 3  # tensors of files come first, then those of the encoder
    return content[:-middle] + bytes([content[-middle] ^ 1]) + content[-middle + 1 :]


def _change_config(content: bytes) -> bytes:
    return content.replace(b"name: reverse", b"name: another")


def _newer(content: bytes) -> bytes:
    return content.replace(rb"\"format\": 1,", rb"\"format\": 2,")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "damaged or cut short"),
        (_flip_weight, "damaged"),
        (_change_config, "config.yaml in it was changed"),
        (_newer, "upgrade mtrain"),
        (lambda _: b"", "damaged or cut short"),
        (lambda _: b"name: reverse\n" * 100, "damaged or cut short"),
    ],
    ids=["cut", "flipped", "changed", "newer", "empty", "text"],
)
def test_a_file_that_is_not_whole_is_recognised(file, tmp_path, damage, said):
    content = file.read_bytes()
    damaged = damage(content)
    assert damaged != content
    (tmp_path / "x.safetensors").write_bytes(damaged)
    done = invoke("translate", "x.safetensors", cwd=tmp_path, stdin="ba\n")
    assert done.returncode == 4
    assert said in done.stderr
    assert "fix:" in done.stderr


def test_a_file_of_others_and_a_mere_checkpoint_are_recognised(run, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by mtrain"):
        RunDir.open(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="only weights") as caught:
        RunDir.open(run / "model.safetensors")
    assert "export" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("name", "error"),
    [("model.bin", UsageError), ("nowhere/model.safetensors", StorageError)],
)
def test_where_it_cannot_be_written(run, tmp_path, name, error):
    with pytest.raises(error):
        export_safetensors(run, tmp_path / name)
    assert not list(tmp_path.iterdir())
