"""The kinds of hostile inputs: how one is made from a generator, and how it is tried.

`make` returns what can be printed: files by their names, arguments. `check` hands it to mtrain; it
returns where the input was accepted and came back the same, raises an MtrainError where it was
refused, and anything else is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import fuzz_configs as configs
import fuzz_data as data
import fuzz_runs as runs
from fuzz_bench import Bench, Given, Random


@dataclass(frozen=True)
class Kind:
    """One kind of inputs, and how many there are of it among others."""

    weight: float
    make: Callable[[Random, Bench], Given]
    check: Callable[[Given, Bench], None]
    needs: tuple[str, ...] = ()  # what of the bench takes long to make

    def prepare(self, bench: Bench) -> None:
        """Make what it needs, before any time is measured."""
        for name in self.needs:
            getattr(bench, name)


KINDS: dict[str, Kind] = {
    "config": Kind(10, configs.make_config, configs.check_config),
    "override": Kind(5, configs.make_override, configs.check_config),
    "text": Kind(16, data.make_text, data.check_files),
    "packed": Kind(9, data.make_packed, data.check_files),
    "bomb": Kind(0.002, data.make_bomb, data.check_bomb),
    "archive": Kind(12, data.make_archive, data.check_archive),
    "tsv": Kind(10, data.make_tsv, data.check_tsv),
    "json-lines": Kind(14, data.make_json_lines, data.check_json_lines),
    "parquet": Kind(10, data.make_parquet, data.check_parquet),
    "location": Kind(5, data.make_location, data.check_location),
    "hub": Kind(0.01, data.make_hub, data.check_hub, ("hub",)),
    "opus": Kind(1, data.make_opus, data.check_opus),
    "sacrebleu": Kind(0.5, data.make_sacrebleu, data.check_sacrebleu),
    "pieces": Kind(2, data.make_pieces, data.check_pieces, ("files",)),
    "lock": Kind(4, data.make_lock, data.check_lock, ("files", "config")),
    "store": Kind(1.5, data.make_store, data.check_store, ("files", "config")),
    "run": Kind(6, runs.make_run, runs.check_run, ("files",)),
    "report": Kind(0.05, runs.make_report, runs.check_report, ("files",)),
    "use": Kind(0.1, runs.make_use, runs.check_use, ("files",)),
    "state": Kind(0.5, runs.make_state, runs.check_state, ("files", "config", "translator")),
    "exported": Kind(0.12, runs.make_exported, runs.check_exported, ("files",)),
    "input": Kind(0.4, runs.make_input, runs.check_input, ("translator",)),
    "scored": Kind(0.1, runs.make_scored, runs.check_scored, ("files",)),
    "prepare": Kind(0.03, runs.make_prepare, runs.check_prepare, ("files",)),
}
