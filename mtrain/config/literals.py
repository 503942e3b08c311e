"""Choices shared by several packages, and the names of metrics.

This module imports nothing heavy, so the command line knows the choices before a stage is loaded.
"""

from __future__ import annotations

from typing import Literal

METRIC_NAMES = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER", "comet": "COMET"}

DeviceOrAuto = Literal["auto", "cpu", "cuda"]
PrecisionOrAuto = Literal["auto", "fp32", "bf16"]  # of matrix products
PenaltyForm = Literal["power", "gnmt"]  # the divisor of log-probabilities: decoding.search
Method = Literal["beam", "diverse", "sample", "mbr"]  # of finding translations
Format = Literal["text", "jsonl"]  # of the output
Engine = Literal["mtrain", "ctranslate2"]  # search programs
AttentionKind = Literal["encoder", "decoder", "cross"]  # the three of a Transformer
Quantization = Literal[  # the numbers that CTranslate2 stores and computes with
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
]
