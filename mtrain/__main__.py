"""`python -m mtrain` is `mtrain`."""

from mtrain.cli import main

main()
