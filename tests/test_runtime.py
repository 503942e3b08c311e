"""Device, precision, threads and seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import mtrain_environment

from mtrain import runtime
from mtrain.errors import DeviceError
from mtrain.run import RunDir
from mtrain.runtime import (
    autocast,
    choose_device,
    choose_precision,
    seed_of,
    set_up,
    side_by_side,
)
from mtrain.training.resume import note_environment

CPU = torch.device("cpu")


@pytest.fixture
def has_cuda(monkeypatch):
    def pretend(is_available: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)

    return pretend


@pytest.mark.parametrize("is_available", [False, True])
def test_auto_is_cuda_where_there_is_one(has_cuda, is_available):
    has_cuda(is_available)
    assert choose_device("auto").type == ("cuda" if is_available else "cpu")
    assert choose_device("cpu") == CPU


def test_cuda_asked_for_and_absent(has_cuda):
    has_cuda(False)
    with pytest.raises(DeviceError, match="finds no GPU") as raised:
        choose_device("cuda")
    assert raised.value.exit_code == 2
    assert raised.value.fix is not None


@pytest.mark.parametrize(
    ("has_amx", "has_avx512_bf16", "expected"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_precision_on_a_cpu_is_what_it_multiplies_fast(
    monkeypatch, has_amx, has_avx512_bf16, expected
):
    probes = {"_is_amx_tile_supported": has_amx, "_is_avx512_bf16_supported": has_avx512_bf16}
    for name, answer in probes.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_precision_on_a_gpu_goes_by_its_generation(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n_workers", [1, 2])
def test_work_side_by_side_gives_every_result_and_the_threads_back(n_workers):
    torch.set_num_threads(2)
    seen = set()

    def work(item):
        seen.add(torch.get_num_threads())
        return item * item

    assert dict(side_by_side(work, range(9), n_workers)) == {i: i * i for i in range(9)}
    assert seen == {1 if n_workers == 2 else 2}
    assert dict(side_by_side(work, [3], n_workers, threads_of_one=1)) == {3: 9}
    assert 1 in seen
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_an_error_of_one_worker_ends_them_all():
    torch.set_num_threads(2)
    done = []

    def work(item):
        if item == 1:
            raise ValueError("no")
        time.sleep(0.01)  # all together take seconds, in which the error is seen
        done.append(item)

    with pytest.raises(ValueError, match="no"):
        list(side_by_side(work, range(500), 2))
    assert len(done) < 499
    assert torch.get_num_threads() == 2


def test_autocast_concerns_products_only():
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype is torch.float32


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("threads")
def test_threads_are_those_asked_for(monkeypatch):
    set_up(CPU, 2, "decoding")
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_up(CPU, "auto", "decoding")
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    set_up(CPU, "auto", "decoding")
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("threads")
def test_another_c_library_keeps_its_allocator(monkeypatch):
    def missing(name: str | None) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(runtime.ctypes, "CDLL", missing)
    set_up(CPU, 1, "decoding")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(runtime._of_glibc("malloc_trim") is None, reason="needs glibc")
@pytest.mark.usefixtures("threads")
def test_memory_between_what_is_still_used_is_given_back():
    set_up(CPU, 1, "decoding")
    blocks = [torch.ones(1 << (18 if i % 2 else 10)) for i in range(128)]  # 1 MiB, or 4 KiB
    del blocks[1::2]
    before = resident_mib()
    runtime.give_memory_back()
    assert resident_mib() < before - 48
    assert all(bool(block.eq(1).all()) for block in blocks)


@pytest.mark.skipif(runtime._of_glibc("mallopt") is None, reason="needs glibc")
def test_large_buffers_of_a_thread_are_used_again():
    """Pages that are touched for the first time are counted, in a process of its own."""
    script = """
import resource, threading, torch
from mtrain import runtime
runtime.set_up(torch.device("cpu"), 1, "decoding")
def use(numbers):
    for n_mib in range(100, 70, -3):  # ever smaller: the place of another has room for it
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(n_mib << 18)
        numbers.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
numbers = []
thread = threading.Thread(target=use, args=(numbers,))
thread.start()
thread.join()
print(*numbers)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=mtrain_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    counts = [int(count) for count in done.stdout.split()]
    assert sum(counts) < counts[0] * len(counts) / 2


@pytest.mark.usefixtures("threads")
def test_as_many_kernels_are_kept_as_the_user_says(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "7")
    set_up(CPU, 1, "decoding")
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    set_up(CPU, 1, "decoding")
    assert os.environ[name] == str(runtime.KERNELS["decoding"])


def test_seeds_differ_in_every_part_and_fit_a_generator():
    seeds = {seed_of(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) != seed_of(2, 1)
    torch.manual_seed(max(seeds))


def test_a_seed_is_the_same_on_every_machine():
    assert seed_of(1, 2, 3) == 7_602_938_901_349_714_354


def test_the_environment_is_noted_once_and_again_where_it_changes(tmp_path: Path) -> None:
    here = runtime.environment(torch.device("cpu"))
    assert here["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert here["threads"] == str(torch.get_num_threads())
    run = RunDir(tmp_path)
    note_environment(run, here)
    note_environment(run, here)
    elsewhere = here | {"threads": "64"}
    note_environment(run, elsewhere)
    assert json.loads(run.environment.read_text(encoding="utf-8")) == [here, elsewhere]
