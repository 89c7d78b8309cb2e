"""Latent diffusion in pure, functional JAX: the public names, such as `jldm.load("runs/digits")`.

Each is imported when it is first used: `import jldm` itself imports neither JAX nor NumPy.
"""

from typing import Any

PUBLIC = {  # name -> the module that has it
  "Evaluation": "jldm.config.experiment",
  "Experiment": "jldm.config.experiment",
  "Need": "jldm.config.experiment",
  "Pretrained": "jldm.config.experiment",
  "Request": "jldm.inference.generate",
  "Sampling": "jldm.config.experiment",
  "Samples": "jldm.inference.generate",
  "Stage": "jldm.config.experiment",
  "UserError": "jldm.core.errors",
  "generate": "jldm.inference.generate",
  "load": "jldm.inference.load",
  "register": "jldm.config.registry",
  "show": "jldm.media.sheets",
}
__all__ = [*PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
  """A public name, imported now, or the installed version.

  Raises:
    AttributeError: no such name, with the nearest one.
  """
  if name == "__version__":
    from importlib import metadata

    value = metadata.version("jldm")
  elif name in PUBLIC:
    import importlib

    value = vars(importlib.import_module(PUBLIC[name]))[name]
  else:
    import difflib

    near = difflib.get_close_matches(name, PUBLIC, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(PUBLIC)}"
    raise AttributeError(f"module 'jldm' has no attribute {name!r}; {hint}")
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(__all__)
