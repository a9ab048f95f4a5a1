"""Where parameters and batches live on a mesh of devices: rules as data.

The mesh has two axes. Over `data` go queries, finetuning runs and sequences, which never meet; over
`model` go heads (and with them the demonstrations' state), MLP and vocabulary.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from icljax.errors import UserError

# The first pattern found in a leaf's path says how its axes are split; the rest are replicated.
# Leaves of layers lead with the layer axis; the optimizer's copies have the same paths.
# A vocabulary that does not divide is replicated (50,257 is odd); heads and MLP must divide.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(query|key|value)'\]\['kernel", PartitionSpec(None, None, "model", None)),
    (r"(query|key|value)'\]\['bias", PartitionSpec(None, "model", None)),
    (r"output'\]\['kernel", PartitionSpec(None, "model", None, None)),
    (r"(up|gate)'\]\['kernel", PartitionSpec(None, None, "model")),
    (r"(up|gate)'\]\['bias", PartitionSpec(None, "model")),
    (r"down'\]\['kernel", PartitionSpec(None, "model", None)),
    (r"'embed'\]\['embedding", PartitionSpec("model", None)),
    (r"unembed'\]\['kernel", PartitionSpec(None, "model")),
    (r"unembed'\]\['bias", PartitionSpec("model")),
)
_MAY_BE_REPLICATED = r"embed'\]"
REPLICATED = PartitionSpec()

T = TypeVar("T")  # a tree of arrays
Specs = PartitionSpec | tuple["Specs", ...] | dict[str, PartitionSpec]


def make_mesh(data: int, model: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data and model; -1 takes all devices that are left.

    Raises:
        UserError: when the axes do not use the devices up.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = {"data": data, "model": model}
    for axis, other in (("data", "model"), ("model", "data")):
        if sizes[axis] == -1:
            sizes[axis] = count // max(1, abs(sizes[other]))
    if min(sizes.values()) < 1 or sizes["data"] * sizes["model"] > count:
        raise UserError(
            f"mesh of data={data} by model={model} does not fit {count} devices; expected sizes "
            "whose product is at most that, or -1: --config.mesh.data=... --config.mesh.model=..."
        )
    used = np.asarray(devices[: sizes["data"] * sizes["model"]])
    shape = (sizes["data"], sizes["model"])
    return Mesh(used.reshape(shape), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def shardings(tree: object, mesh: Mesh) -> Any:
    """The sharding of each leaf (arrays or shapes) by `RULES`.

    Raises:
        UserError: where an axis does not divide evenly.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        found = (spec for pattern, spec in RULES if re.search(pattern, name))
        spec = next(found, PartitionSpec()) if leaf.ndim else PartitionSpec()
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                if re.search(_MAY_BE_REPLICATED, name):
                    return NamedSharding(mesh, PartitionSpec())
                raise UserError(
                    f"{name} of shape {leaf.shape} cannot be split over mesh.{axis}="
                    f"{mesh.shape[axis]}: {size} does not divide evenly; give a divisor of {size}: "
                    f"--config.mesh.{axis}=..."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, tree)


def put(tree: T, mesh: Mesh, spec: PartitionSpec = REPLICATED) -> T:
    """NumPy arrays as arrays on the mesh, all by one spec; a process makes only its own shards."""
    where = NamedSharding(mesh, spec)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(one, tree)


def over_data(mesh: Mesh, function: Callable[..., Any], in_specs: Specs, out_specs: Specs) -> Any:
    """`function` on each part of the data axis by itself; the model axis stays the compiler's."""
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={"data"},
        check_vma=False,
    )


def batch_sharding(mesh: Mesh, rank: int, axis: int) -> NamedSharding:
    """Axis `axis` of a batch over the data axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*("data" if i == axis else None for i in range(rank))))
