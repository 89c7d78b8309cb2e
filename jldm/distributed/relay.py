"""Forwards the connections of JAX to its coordination service, and keeps from it that the network failed."""

import asyncio
import contextlib
import socket

RETRY_S = 0.5  # between two attempts to connect

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(there: Connection, address: str) -> None:
  """On process 0: the JAX of another process connects to the coordination service at `address`."""
  host, _, port = address.rpartition(":")
  while True:
    try:
      here = await asyncio.open_connection(host, int(port))
    except OSError:  # the service has not started yet
      await asyncio.sleep(RETRY_S)
    else:
      return await copy_both(here, there)


async def copy_both(jax_side: Connection, network: Connection) -> None:
  """Copies both ways until JAX closes its side; a network that ends is kept from JAX."""
  inward = asyncio.get_running_loop().create_task(copy(network[0], jax_side[1]))
  await copy(jax_side[0], network[1])
  network[1].close()
  inward.cancel()
  jax_side[1].close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
  """Copies until the reader ends; what a writer that has failed does not take is dropped."""
  failed = False
  with contextlib.suppress(OSError):
    while data := await reader.read(2**16):
      if not failed:
        failed = not await written(writer, data)


async def written(writer: asyncio.StreamWriter, data: bytes) -> bool:
  """Whether the data could be written."""
  try:
    writer.write(data)
    await writer.drain()
  except OSError:
    return False
  return True


def free_port() -> int:
  """A port of 127.0.0.1 that nothing listens at."""
  with socket.socket() as bound:
    bound.bind(("127.0.0.1", 0))
    return bound.getsockname()[1]
