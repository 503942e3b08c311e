"""Hostile run files, weights and exported files; text that is translated, scored or prepared."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzz_bench import Bench, Given, Random
from fuzz_data import TEXT_FILES, packed_texts
from mutations import (
    NUMBERS,
    PATHS,
    TEXTS,
    altered,
    damaged,
    json_bytes,
    maybe_damaged,
)

from mtrain.config.load import read_run_config
from mtrain.run import RunDir
from mtrain.storage import write_json

# -- runs ------------------------------------------------------------------------------------

_RUN_FILES = {
    "data/manifest.json": 4,
    "scores.json": 4,
    "metrics.jsonl": 3,
    "environment.json": 2,
    "data/word_counts.json": 1,
    "data/report.json": 1,
    "alignment.json": 1,
    "attention.json": 1,
    "sweep.json": 1,
    "config.yaml": 1,
    "data/test.source": 1,
    "data/valid.target": 1,
    "translations/test.best.analysis.json": 3,
    "translations/test.best.jsonl": 3,
    "translations/test.best.txt": 1,
    "tokenizer.model": 1,
}


def _damaged_run_file(random: Random, bench: Bench) -> tuple[str, bytes | None]:
    run = bench.files_in("runs/x")
    known = [name for name in _RUN_FILES if name in run]
    (name,) = random.choices(known, [_RUN_FILES[name] for name in known])
    data = run[name]
    what = random.random()
    if what < 0.02:
        return name, None  # the file is not there
    if what < 0.04:
        return name, random.choice((b"", b"{}", b"[]", b"3", b"null", b'""', b"\xff", b"{"))
    if what < 0.75 and name.endswith(".json"):
        return name, json_bytes(random, altered(random, json.loads(data)))
    if what < 0.75 and name.endswith(".jsonl"):
        lines = [json.loads(line) for line in data.splitlines()]
        i = random.randrange(len(lines))
        lines[i] = altered(random, lines[i])
        return name, b"".join(json_bytes(random, line) + b"\n" for line in lines)
    return name, damaged(random, data)


def make_run(random: Random, bench: Bench) -> Given:
    name, data = _damaged_run_file(random, bench)
    return {"name": name, "data": data, "with_link": random.random() < 0.1}


def _write_run(given: Given, bench: Bench) -> RunDir:
    """The good run with one file changed, in `runs/x`."""
    path = bench.work / "runs" / "x"
    good = bench.files_in("runs/x")
    if not path.is_dir():
        bench.write({f"runs/x/{name}": data for name, data in good.items()})
    changed = path / given["name"]
    if given["data"] is None:
        changed.unlink()
    else:
        changed.write_bytes(given["data"])
    return RunDir("runs/x")


def _mend_run(given: Given, bench: Bench) -> None:
    """Put the good file back into its place."""
    bench.write({f"runs/x/{given['name']}": bench.files[f"runs/x/{given['name']}"]})
    if given["with_link"]:
        bench.clear()


def check_run(given: Given, bench: Bench) -> None:
    run = _write_run(given, bench)
    try:
        if given["with_link"]:  # to a file that is not the run's
            for path in (run.scores, run.metrics):
                path.with_name(path.name + ".tmp").symlink_to(bench.secret)
        _read_run(run, given["name"])
    finally:
        _mend_run(given, bench)


def _read_run(run: RunDir, name: str) -> None:
    """Everything that is read of a run without a model; scores and metrics are written again."""
    if name == "config.yaml":
        read_run_config(run)
    for split in run.splits():
        text = run.read_split(split)
        assert len(text.sources) == len(text.references)
    run.prepared_data()
    run.read_word_counts()
    run.read_alignment()
    scores = run.read_scores()
    for key in scores:
        run.read_translations(key)
        run.read_analysis(key)
    write_json(run.scores, scores)
    assert repr(run.read_scores()) == repr(scores), "scores are others"
    records = run.read_metrics()
    run.write_metrics(records)
    written = run.metrics.read_bytes()
    run.write_metrics(run.read_metrics())
    assert run.metrics.read_bytes() == written, "metrics are others"


def check_report(given: Given, bench: Bench) -> None:
    _write_run(given, bench)
    try:
        bench.command("report", "runs/x", "-o", "report.html", *given["options"])
        page = Path("report.html").read_text(encoding="utf-8")
        assert "\x1b" not in page
    finally:
        _mend_run(given, bench)


def make_report(random: Random, bench: Bench) -> Given:
    options = random.choice(([], ["--markdown"], ["--markdown"], ["--markdown"]))
    return make_run(random, bench) | {"options": options}


_WEIGHTS = ["model.safetensors", "checkpoints/step-2/weights.safetensors"]


def make_use(random: Random, bench: Bench) -> Given:
    """A damaged run that is translated, scored, exported or trained with."""
    commands = [
        ["translate", "runs/x", "in"],
        ["translate", "runs/x", "in", "-o", "out", "--alignment"],
        ["translate", "runs/x", "in", "--checkpoint", random.choice(("last", "avg", *PATHS[:4]))],
        ["eval", "runs/x"],
        ["eval", "runs/x", "--split", random.choice(("valid", *PATHS[:4]))],
        ["eval", "runs/x", "--hypothesis", "in", "--reference", "in"],
        ["export", "runs/x", "--to", "safetensors", "-o", "out.safetensors"],
        ["train", "c.yaml", "--set", f"train.max_steps={random.choice((2, 3))}"],
    ]
    note = {"input": {"path": "in", "inode": 1}, "model": "x", "options": {"n_best": 1}}
    files = {"in": b"a b\nc\n"}
    if random.random() < 0.5:
        files["out.part"] = damaged(random, b"x\ny\n")
        files["out.part.json"] = json_bytes(random, altered(random, note))
    given = make_run(random, bench)
    if random.random() < 0.2:
        name = random.choice(_WEIGHTS)
        given |= {"name": name, "data": _altered_tensors(random, bench.files[f"runs/x/{name}"])}
    return given | {"command": random.choice(commands), "files": files}


def check_use(given: Given, bench: Bench) -> None:
    bench.clear()
    bench.write(bench.files | given["files"])
    _write_run(given, bench)
    bench.command(*given["command"])


# -- weights ---------------------------------------------------------------------------------


def make_state(random: Random, bench: Bench) -> Given:
    name = random.choice(
        ("state.json", "state.json", "weights.safetensors", "optimizer.safetensors")
    )
    data = bench.files_in("runs/x/checkpoints/step-2")[name]
    if name == "state.json" and random.random() < 0.9:
        tree = altered(random, json.loads(data))
        if isinstance(tree, dict) and random.random() < 0.7:  # sealed by who changed it
            numbers = {k: v for k, v in tree.items() if k not in ("format", "sha256")}
            text = json.dumps(numbers, sort_keys=True).encode()
            tree |= {"sha256": hashlib.sha256(text).hexdigest()}
        return {name: json_bytes(random, tree)}
    if name != "state.json" and random.random() < 0.7:
        return {name: _altered_tensors(random, data)}
    return {name: damaged(random, data)}


def _altered_tensors(random: Random, data: bytes, seal: bool = True) -> bytes:
    """A safetensors file with another header; its parts mostly remain where they were."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    note = json.loads(header["__metadata__"]["mtrain"])
    if random.random() < 0.6:
        header["__metadata__"]["mtrain"] = json_bytes(random, altered(random, note)).decode(
            "utf-8", "replace"
        )
    else:
        header = altered(random, header)
    text = json_bytes(random, header)
    size = len(text) if random.random() < 0.95 else random.choice(NUMBERS[:22]) % 2**64
    return int(size).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def check_state(given: Given, bench: Bench) -> None:
    import torch

    from mtrain.model.transformer import Transformer
    from mtrain.model.weights import weights_of
    from mtrain.training.checkpoints import copy_state, load_newest, save_state
    from mtrain.training.optim import Ema, make_optimizers

    bench.clear()
    states = bench.files_in("runs/x/checkpoints/step-2")
    bench.write({f"states/x/checkpoints/step-2/{k}": v for k, v in (states | given).items()})
    run, train = RunDir("states/x"), bench.config.train
    size = len(bench.translator.src_tokenizer.all_pieces())

    def load() -> tuple[Any, ...]:
        model = Transformer(bench.config.model, size, size)
        ema = Ema(weights_of(model), train.optim.ema_decay)
        optimizers = make_optimizers(model, train.optim, torch.float32)
        learner = SimpleNamespace(model=model, ema=ema, optimizers=optimizers)
        return learner, load_newest(run, learner)  # type: ignore[arg-type]

    learner, progress = load()
    assert progress is not None, "the state was overlooked"
    progress.step = 3
    save_state(run, copy_state(learner, progress), keep=1)
    assert load()[-1] == progress, "progress is another"


def make_exported(random: Random, bench: Bench) -> Given:
    data = bench.files["x.safetensors"]
    what = random.random()
    if what < 0.5:
        return {"x.safetensors": _repacked(random, data)}
    if what < 0.8:
        return {"x.safetensors": _altered_tensors(random, data)}
    return {"x.safetensors": maybe_damaged(random, data)}


def _repacked(random: Random, data: bytes) -> bytes:
    """The file with other small files in it, which it vouches for: as a stranger would make it."""
    from safetensors.torch import load

    from mtrain.model.weights import digest, safetensors_parts

    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    note = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["mtrain"])
    files = {name: tensors.pop(f"file:{name}").numpy().tobytes() for name in note["facts"]["files"]}
    name = random.choice(list(files))
    what = random.randrange(4)
    if what == 0:
        files[random.choice(PATHS)] = b"stranger"
    elif what == 1:
        files[random.choice(PATHS)] = files.pop(name)
    elif what == 2 and name.endswith(".json"):
        files[name] = json_bytes(random, altered(random, json.loads(files[name])))
    else:
        files[name] = damaged(random, files[name])
    return _sealed(files, tensors, note, digest, safetensors_parts)


def _sealed(files: dict[str, bytes], tensors: Any, note: Any, digest: Any, parts: Any) -> bytes:
    import torch

    files = {name.encode(errors="replace").decode(): data or b"\0" for name, data in files.items()}
    for name, content in files.items():
        tensors[f"file:{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    note["facts"]["files"] = {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    note["sha256"] = digest(tensors, note["facts"])
    return b"".join(parts(tensors, {"mtrain": json.dumps(note, sort_keys=True)}))


def check_exported(given: Given, bench: Bench) -> None:
    import mtrain

    bench.write(given)
    run = RunDir.open("x.safetensors")
    for path in run.files.rglob("*"):
        assert not path.is_symlink()
    translator = mtrain.load("x.safetensors", device="cpu")
    assert len(translator.translate(["a b", ""])) == 2
    bench.command("export", "x.safetensors", "--to", "safetensors", "-o", "y.safetensors")
    first = Path("y.safetensors").read_bytes()
    bench.command("export", "y.safetensors", "--to", "safetensors", "-o", "z.safetensors")
    assert Path("z.safetensors").read_bytes() == first, "a file that is packed again is another"
    if given["x.safetensors"] == bench.files["x.safetensors"]:
        assert first == given["x.safetensors"], "a file that is packed again is another"


# -- what is translated and scored -----------------------------------------------------------

_INPUTS = [
    *(b"a b\nc\n\nA dog.\n", b"two cats", b"1 2\r\nb\ta\n\xff\xfe\nx\n"),
    *("e\u0301 字\u2028\n".encode(), "a b\nc\n".encode("utf-16"), b"a\rb\rc\r"),
    *packed_texts()[:4],
]


def make_input(random: Random, bench: Bench) -> Given:
    data = damaged(random, random.choice(_INPUTS), _INPUTS)[:2000]
    options = random.choice(({}, {"format": "jsonl"}, {"n_best": 2, "beam_size": 2}))
    return {"in": data, "options": options}


def check_input(given: Given, bench: Bench) -> None:
    from mtrain.decoding.engine import Search
    from mtrain.decoding.stream import Job

    data: bytes = given["in"]
    out = io.StringIO()
    output = {k: given["options"][k] for k in ("format",) if k in given["options"]}
    changes = {k: v for k, v in given["options"].items() if k not in output}
    search = Search.of(bench.translator.config.decode, **changes)
    Job(bench.translator, io.BytesIO(data), search, **output).to_stream(out)
    n_lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    answers = out.getvalue().split("\n")
    assert answers.pop() == "", "the last line has no end"
    assert len(answers) == n_lines * search.n_best, "another number of lines"
    out.getvalue().encode()


def make_scored(random: Random, bench: Bench) -> Given:
    files = [
        maybe_damaged(random, random.choice(TEXT_FILES[:2] + packed_texts()[:4])) for _ in range(3)
    ]
    options = random.choice(([], ["--json"], ["--source", "s"], ["--reference", "s"]))
    return {"h": files[0], "r": files[1], "s": files[2], "options": options}


def check_scored(given: Given, bench: Bench) -> None:
    bench.write({name: given[name] for name in "hrs"})
    run = str(bench.good / "runs/x")
    out = bench.command("eval", run, "--hypothesis", "h", "--reference", "r", *given["options"])
    if "--json" in given["options"]:
        json.loads(out)


def make_prepare(random: Random, bench: Bench) -> Given:
    files = {name: bench.files[name] for name in ("train.en", "train.de", "valid.en", "valid.de")}
    name = random.choice(list(files))
    files[name] = maybe_damaged(random, files[name], TEXT_FILES)
    symbols = [random.choice((*TEXTS[:20], "<s>", "</s>", "<a>", "a", "a")) for _ in range(2)]
    settings = [
        [],
        [f"tokenizer.user_defined_symbols={json.dumps(symbols)}"],
        ["data.train.0.tag=a", "data.valid.tag=a", 'tokenizer.user_defined_symbols=["<a>"]'],
        [f"tokenizer.type={random.choice(('char', 'bpe'))}"],
        ["data.clean=true", f"data.clean.script={random.random()}"],
        ["tokenizer.shared=false", "tokenizer.character_coverage=0.95"],
        [f"source={random.choice(('zh', 'xx', 'ben_Beng', 'a' * 40, 'en-', '__'))}"],
        [f"data.max_length={random.choice((1, 4, 4096))}", "data.deduplicate=true"],
    ]
    sets = [f"--set={setting}" for setting in random.choice(settings)]
    return {"files": files, "sets": sets}


def check_prepare(given: Given, bench: Bench) -> None:
    bench.clear()
    bench.write({"c.yaml": bench.files["c.yaml"]} | given["files"])
    bench.command("prepare", "c.yaml", "--processes", "1", *given["sets"])
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    bench.command("prepare", "c.yaml", "--processes", "1", *given["sets"])
    after = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert after == before, "prepared again, the data is other"
