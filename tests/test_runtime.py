"""Device, precision, threads and seeds."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import mtrain_environment

from mtrain.errors import DeviceError
from mtrain.machine import runtime
from mtrain.machine.runtime import (
    autocast,
    choose_device,
    choose_precision,
    seed_of,
    set_up,
)
from mtrain.run import RunDir
from mtrain.training.resume import note_environment

CPU = torch.device("cpu")


OLD, T4, RTX_4090, H100 = (6, 1), (7, 5), (8, 9), (9, 0)
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # of CUDA 13


@pytest.fixture
def has_cuda(monkeypatch):
    """Pretend that there is a GPU of some capability, or none, and a torch for some of them."""

    def pretend(
        capability: tuple[int, int] | None, architectures: list[str] = WHEEL, n_gpus: int = 1
    ) -> None:
        runtime._warn_of_old_gpu.cache_clear()
        answers = {
            "is_available": capability is not None,
            "device_count": n_gpus,
            "get_device_capability": capability,
            "get_device_name": "NVIDIA Test",
            "get_arch_list": architectures,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    return pretend


@pytest.mark.parametrize("capability", [None, H100])
def test_auto_is_cuda_where_there_is_one(has_cuda, capability, capsys):
    has_cuda(capability)
    assert choose_device("auto").type == ("cuda" if capability else "cpu")
    assert choose_device("cpu") == CPU
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_asked_for_and_absent(has_cuda, name):
    has_cuda(None)
    with pytest.raises(DeviceError, match=f"`{name}` was requested, but .* finds no GPU") as raised:
        choose_device(name)
    assert raised.value.exit_code == 2
    assert raised.value.fix is not None


def test_a_gpu_has_a_number(has_cuda):
    has_cuda(H100, n_gpus=2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="`cuda:2` was requested, but this machine has 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "mps", "", "cuda:x"])
def test_other_devices_are_unknown(name):
    with pytest.raises(DeviceError, match="there is no device"):
        choose_device(name)


@pytest.mark.parametrize(
    ("capability", "architectures", "is_supported"),
    [
        (OLD, WHEEL, False),
        (T4, WHEEL, True),
        (RTX_4090, WHEEL, True),  # by the code for 8.6
        ((8, 0), ["sm_86"], False),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((11, 0), [*WHEEL, "compute_100"], True),  # compiled when it is loaded
        ((9, 0), ["sm_90a"], True),
        (OLD, [], True),  # nothing is known
        ((9, 4), ["gfx942"], True),  # AMD's
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_not_chosen(
    has_cuda, capability, architectures, is_supported, capsys
):
    has_cuda(capability, architectures)
    assert choose_device("auto").type == ("cuda" if is_supported else "cpu")
    said = capsys.readouterr().err
    if is_supported:
        assert not said
        assert choose_device("cuda").type == "cuda"
        return
    version = ".".join(map(str, capability))
    assert said.count("\n") == 1
    assert f"does not support this GPU, NVIDIA Test (compute capability {version}; " in said
    assert "using the CPU" in said
    with pytest.raises(DeviceError, match="does not support this GPU") as raised:
        choose_device("cuda")
    assert "install a build of PyTorch" in raised.value.fix


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


@pytest.mark.parametrize(
    ("capability", "asked", "expected", "warning"),
    [
        (T4, "auto", "fp32", "without its tensor cores: several times slower"),
        (T4, "bf16", "bf16", "has no bf16 and emulates it: `precision: fp32` is faster"),
        (T4, "fp32", "fp32", ""),
        ((8, 0), "auto", "bf16", ""),
        ((8, 0), "bf16", "bf16", ""),
    ],
)
def test_precision_on_a_gpu_goes_by_its_generation(
    has_cuda, capability, asked, expected, warning, capsys
):
    has_cuda(capability)
    for _ in range(2):  # what is to be said is said once
        assert choose_precision(asked, torch.device("cuda")) == expected
    said = capsys.readouterr().err
    assert warning in said
    assert said.count("\n") == bool(warning)


@pytest.fixture
def float_settings():
    cuda = torch.backends.cuda
    before = cuda.cudnn_sdp_enabled(), cuda.matmul.allow_tf32
    yield
    cuda.enable_cudnn_sdp(before[0])
    cuda.matmul.allow_tf32 = before[1]


@pytest.mark.usefixtures("float_settings")
def test_a_gpu_multiplies_in_fp32_and_attends_by_kernels_that_need_no_plan():
    cuda = torch.backends.cuda
    cuda.enable_cudnn_sdp(True)
    cuda.matmul.allow_tf32 = True
    set_up(torch.device("cuda"), 1, "training")
    assert not cuda.cudnn_sdp_enabled()
    assert cuda.flash_sdp_enabled()
    assert cuda.mem_efficient_sdp_enabled()
    assert cuda.math_sdp_enabled()
    assert not cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_autocast_concerns_products_only():
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype is torch.float32


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


def test_another_c_library_keeps_its_allocator(monkeypatch):
    def missing(name: str | None) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(runtime.ctypes, "CDLL", missing)
    set_up(CPU, 1, "decoding")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(runtime._of_glibc("malloc_trim") is None, reason="needs glibc")
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
from mtrain.machine import runtime
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


def test_the_environment_of_a_gpu_names_its_libraries(has_cuda):
    has_cuda(H100)
    found = runtime.environment(torch.device("cuda"))
    assert found["device"] == "cuda: NVIDIA Test"
    assert {"CUDA", "cuDNN", "driver"} < found.keys()
    assert "CUDA" not in runtime.environment(CPU)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cuda_out_of_memory() -> None:
    raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ...", 2)


OUT_OF_MEMORY = [
    out_of_memory,
    cuda_out_of_memory,
    lambda: torch.empty(1 << 50),  # really
    lambda: bytearray(1 << 60),
]


@pytest.mark.parametrize("run_out", OUT_OF_MEMORY)
def test_every_way_to_run_out_of_memory_is_known(run_out):
    assert runtime.unless_out_of_memory(run_out) is None
    assert runtime.unless_out_of_memory(lambda: 1) == 1


@pytest.mark.parametrize("message", ["CUDA error: no kernel image", "shapes do not match", ""])
def test_other_errors_are_no_lack_of_memory(message):
    def fail() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError) as raised:
        runtime.unless_out_of_memory(fail)
    assert str(raised.value) == message


def test_what_was_computed_is_gone_when_a_gpu_hands_back_its_memory(monkeypatch):
    activations: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: alive.append(activations[0]() is not None)
    )

    def forward() -> None:
        activation = torch.ones(3)
        activations.append(weakref.ref(activation))
        out_of_memory()

    assert runtime.unless_out_of_memory(forward) is None
    assert alive == [False]


def test_what_a_gpu_can_spare_is_what_was_never_in_use(monkeypatch):
    gpu, gib = torch.device("cuda"), 1 << 30
    numbers = {
        "mem_get_info": (2 * gib, 24 * gib),
        "memory_reserved": 10 * gib,
        "memory_allocated": 4 * gib,
        "max_memory_allocated": 9 * gib,
    }
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, number=number: number)
    assert runtime.free_bytes(gpu) == 8 * gib
    assert runtime.spare_bytes(gpu) == 3 * gib
    assert runtime.free_bytes(CPU) is None
    assert runtime.spare_bytes(CPU) is None


def test_the_environment_is_noted_once_and_again_where_it_changes(tmp_path):
    here = runtime.environment(torch.device("cpu"))
    assert here["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert here["threads"] == str(torch.get_num_threads())
    run = RunDir(tmp_path)
    note_environment(run, here)
    note_environment(run, here)
    elsewhere = here | {"threads": "64"}
    note_environment(run, elsewhere)
    assert json.loads(run.environment.read_text(encoding="utf-8")) == [here, elsewhere]
