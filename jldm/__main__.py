"""`python -m jldm`: the `jldm` command."""

import sys

from jldm.cli import main

sys.exit(main())
