"""What a data set is: the contract of `Experiment.data`."""

import abc
from collections.abc import Mapping
import dataclasses
from types import MappingProxyType
from typing import Any, ClassVar, Self

from jldm.core.errors import UserError
from jldm.core.specs import Spec


class Dataset(abc.ABC):
  """Two splits of examples; subclass it as a frozen dataclass, and register it.

  train, held_out: the names of the splits, of which the second is never trained on.
  data_dir: the folder that it is read from; None if it is not read from a folder.
  balance: whether every class is drawn equally often in training, which needs the array `label`.
  augmentation: the fields that change the training split, with the values that change nothing.
  """

  train: str
  held_out: str
  data_dir: str | None = None
  balance: bool = False
  augmentation: ClassVar[Mapping[str, Any]] = MappingProxyType({})

  @property
  @abc.abstractmethod
  def specs(self) -> tuple[Spec, ...]:
    """The arrays of one example, one spec per shape of pictures; the first is the default."""

  @abc.abstractmethod
  def open(self, split: str) -> Any:
    """A split as a `Source`, or as `Buckets`; UserError for a split that does not exist."""

  def fingerprint(self) -> dict[str, Any]:
    """What the examples are, as JSON that differs if they do; {} if the fields say it all.

    A run keeps it, and refuses to go on with other examples under the same name.
    """
    return {}

  def title(self) -> str:
    """What a report calls the data set."""
    return type(self).__name__

  def class_names(self) -> list[str]:
    """The names of the classes in the order of their labels; [] if there are none, or they are not known."""
    return []

  def notes(self) -> list[str]:
    """Lines that a run says about the data when it begins; [] if there is nothing to say."""
    return []

  def without_augmentation(self) -> Self:
    """The same data set with every label kept and no picture changed: what samples are compared with."""
    return dataclasses.replace(self, **self.augmentation)


def check_dataset(data: Any) -> Dataset:
  """`data` itself; UserError unless it is a `Dataset`."""
  if not isinstance(data, Dataset):
    raise UserError(
      f"data is of type {type(data).__name__}; expected a subclass of jldm.data.dataset.Dataset"
    )
  return data
