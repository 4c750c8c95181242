"""The parts in their order of value, each with the seconds after which it is ended."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .setting import Record, Setting

HERE = __package__
Stage = Literal["first", "together", "alone"]


@dataclass(frozen=True)
class Part:
    """One measurement, in a process of its own."""

    name: str
    call: str
    """module:function, called with Setting and Record."""
    seconds: float
    stage: Stage
    """first: what others need, all at once; together: some at a time, for what they find does not depend on the speed;
    alone: one after the other."""

    def measure(self, setting: Setting, record: Record) -> None:
        """Do it in this process."""
        module, _, function = self.call.partition(":")
        call: Callable[[Setting, Record], None] = getattr(importlib.import_module(module), function)
        call(setting, record)
        record.save()


PARTS = (
    Part("machine", f"{HERE}.machine:measure", 60, "first"),
    Part("data", f"{HERE}.prepare:make_data", 120, "first"),
    Part("package", f"{HERE}.prepare:make_five_systems", 200, "first"),
    Part("parity", f"{HERE}.parity:measure", 120, "together"),
    Part("submission", f"{HERE}.submissions:on_both_devices", 150, "together"),
    Part("lanes", f"{HERE}.submissions:in_lanes", 120, "together"),
    Part("memory_cap", f"{HERE}.memory_cap:measure", 120, "together"),
    Part("killed", f"{HERE}.killed:measure", 150, "together"),
    Part("train", f"{HERE}.training_run:measure", 200, "together"),
    Part("stages", f"{HERE}.stages:measure", 60, "alone"),
    Part("full_networks", f"{HERE}.full_networks:measure", 100, "alone"),
    Part("steps", f"{HERE}.steps:measure", 60, "alone"),
    Part("variants", f"{HERE}.variants:measure", 80, "alone"),
)
