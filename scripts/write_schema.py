"""Write configs/schema.json, by which editors complete and check a config, from the config tree.

python scripts/write_schema.py            writes it
python scripts/write_schema.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = REPOSITORY / "configs" / "schema.json"


def main(arguments: list[str]) -> int:
    """0 when the file is (now) up to date."""
    sys.path.insert(0, str(REPOSITORY))
    from mtrain.config.load import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments == ["--check"]:
        if SCHEMA.is_file() and SCHEMA.read_text(encoding="utf-8") == text:
            return 0
        print(f"{SCHEMA} is out of date: run python scripts/write_schema.py", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    SCHEMA.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
