"""Where the models of a run work, and how many workers its stages may have: arguments, never branches in a stage.

    --device cuda:0          models of torch: .pt, .pth, open_clip
    --providers A B          models of onnxruntime (.onnx), the first that can run an operator does
    --workers decode=2..8    least and most workers of a stage of a Ray job

What is not there is refused where the models will work, before anything is decoded (`check`), and once more by the model that
is opened. Nothing of this is in a fingerprint: between devices what a model finds differs by rounding, and a row would be made
again for no other reason than where; the row of the run says what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from infra.errors import UsageError

AUTO: Final = "auto"  # CUDA where there is one, else the CPU
_ON_GPUS: Final = ("CUDA", "Tensorrt", "NvTensorRT", "ROCM", "MIGraphX")  # providers that Ray must lend a GPU to


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a run was told to work on.

    Attributes:
        device: of torch; `AUTO` or as torch names it.
        providers: of onnxruntime, in order of preference; empty is the CPU's. It falls back to the CPU by itself.
        workers: stage -> least and most workers of a Ray job; others have as many as the cores allow.
    """

    device: str = AUTO
    providers: tuple[str, ...] = ()
    workers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def needs_gpu(self) -> bool:
        """Whether Ray must lend a GPU to whoever opens a model. With `AUTO` it lends none, and hides none (2.60): every worker
        that sees a GPU uses it, so on a cluster with GPUs say which device.
        """
        return self.device.startswith("cuda") or any(name.startswith(_ON_GPUS) for name in self.providers)

    @property
    def are_apart(self) -> bool:
        """Whether decoders and models are pools of their own on Ray: where somebody sized them, or models have a GPU."""
        return bool(self.workers) or self.needs_gpu

    def told(self) -> dict[str, Any]:
        """Return what was asked for, ready for JSON; nothing where nothing was."""
        workers = {stage: list(pool) for stage, pool in self.workers.items()}
        asked = {"device": self.device, "providers": list(self.providers), "workers": workers}
        return {name: value for name, value in asked.items() if value not in (AUTO, [], {})}

    def check(self, found: Available) -> None:
        """Refuse what is not there.

        Raises:
            UsageError: a device or a provider that is not among those found.
        """
        if self.device != AUTO and self.device not in {*found.devices, *(name.split(":")[0] for name in found.devices)}:
            raise UsageError(f"--device {self.device} is not on {found.where}; available: {', '.join((AUTO, *found.devices))}")
        for name in self.providers:
            if name not in found.providers:
                raise UsageError(f"--providers {name} is not on {found.where}; available: {', '.join(found.providers)}")

    def check_stages(self, stages: Iterable[str]) -> None:
        """Refuse workers for a stage that the run has not.

        Raises:
            UsageError: it names the stages.
        """
        legal = list(stages)
        if unknown := [name for name in self.workers if name not in legal]:
            raise UsageError(f"--workers {unknown[0]}: no such stage in this run; legal: {', '.join(legal)}")


@dataclass(frozen=True, slots=True)
class Available:
    """Devices of torch and providers of onnxruntime, and in words whose."""

    where: str
    devices: tuple[str, ...]
    providers: tuple[str, ...]


def available(where: str = "this machine") -> Available:
    """Return what this process can use."""
    import onnxruntime
    import torch

    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    n = torch.accelerator.device_count() if current is not None else 0
    devices = ("cpu", *(f"{current.type}:{number}" for number in range(n) if current is not None))
    return Available(where, devices, tuple(onnxruntime.get_available_providers()))


def torch_device(name: str) -> Any:
    """Return torch's device of that name.

    Raises:
        UsageError: it is not there.
    """
    import torch

    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Resources(device=name).check(available())
    return torch.device(name)


def use_providers(session: Any, providers: Sequence[str]) -> None:
    """Open an onnxruntime session again with these providers; with none, leave it as it is.

    Raises:
        UsageError: onnxruntime has them, but could not start them (a library or the device is missing), and would go on
            without a word on the CPU.
    """
    if not providers:
        return
    session.set_providers(list(providers))
    if absent := [name for name in providers if name not in session.get_providers()]:
        raise UsageError(f"--providers {absent[0]} could not be started here; working: {', '.join(session.get_providers())}")


def parse_workers(words: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Read `STAGE=N` or `STAGE=LEAST..MOST`.

    Raises:
        UsageError: something else, twice the same stage, none, or fewer at most than at least.
    """
    made: dict[str, tuple[int, int]] = {}
    for word in words:
        found = re.fullmatch(r"([a-z][a-z0-9_]*)=(\d{1,4})(?:\.\.(\d{1,4}))?", word)
        least, most = (int(found[2]), int(found[3] or found[2])) if found else (0, 0)
        if found is None or not 1 <= least <= most or found[1] in made:
            raise UsageError(f"--workers {word!r}; legal: STAGE=N or STAGE=LEAST..MOST, from 1 on, each stage once")
        made[found[1]] = (least, most)
    return made
