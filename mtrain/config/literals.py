"""Words to choose from that several rooms accept, each set named once.

It imports nothing, so that the command line knows the choices before any stage is loaded.
"""

from __future__ import annotations

from typing import Literal

DeviceOrAuto = Literal["auto", "cpu", "cuda"]
PrecisionOrAuto = Literal["auto", "fp32", "bf16"]  # of matrix products
PenaltyForm = Literal["power", "gnmt"]  # what divides a log-probability: decoding.search
Method = Literal["beam", "diverse", "sample", "mbr"]  # how translations are found
Format = Literal["text", "jsonl"]  # how translations are written
Engine = Literal["mtrain", "ctranslate2"]  # what searches
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
