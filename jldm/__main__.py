"""`python -m jldm`: the `jldm` command."""

from jldm.cli import main

main()
