"""What XLA is asked for where a program runs once or twice and compiling takes longer than running.

A small transformer and a U-Net compile with their gradients in 2.4 CPU-seconds so, and in 15 as
they are shipped.
"""

UNOPTIMIZED = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
  "xla_cpu_parallel_codegen_split_count": 1,
}
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in UNOPTIMIZED.items())
