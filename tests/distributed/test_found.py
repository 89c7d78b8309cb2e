"""Two real processes find each other by what a scheduler sets in their environment, and agree."""

import json
import os
import subprocess
import sys

import pytest

from tests.configs import ROOT
from tests.faults.processes import free_port

PROGRAM = """
import argparse, json
import jax
from jldm.distributed import multihost, sharding
parser = argparse.ArgumentParser()
sharding.add_arguments(parser)
args = parser.parse_args()
sharding.configure(args.devices, args)
number = jax.process_index()
results = [multihost.broadcast(number + 5)]
results += [multihost.any_process(number == 1), multihost.all_processes(number == 1)]
results += [bool(multihost.start_any(False)), len(sharding.choose_devices())]
results += [sharding.layout_from_args(args).devices, multihost.is_primary()]
multihost.barrier("end")
print(json.dumps(results))
"""
SLURM = {
  "SLURM_JOB_ID": "{job}",
  "SLURM_STEP_NODELIST": "localhost",
  "SLURM_NTASKS": "2",
  "SLURM_STEP_NUM_TASKS": "2",
  "SLURM_PROCID": "{number}",
  "SLURM_LOCALID": "{number}",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "{job4096}.0;tcp://127.0.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "{number}",
  "OMPI_COMM_WORLD_LOCAL_RANK": "{number}",
}


@pytest.mark.slow
@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI], ids=["slurm", "open mpi"])
def test_two_processes_find_each_other(variables):
  job = free_port()  # JAX makes a port of it
  started = []
  for number in range(2):
    own = {
      name: value.format(job=job, job4096=job * 4096, number=number) for name, value in variables.items()
    }
    environment = (
      os.environ | own | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    )
    started.append(
      subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--devices", "2"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  for number, process in enumerate(started):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert json.loads(out.splitlines()[-1]) == [5, True, False, False, 4, 4, number == 0]
