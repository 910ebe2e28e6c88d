"""Sentences about pictures of the world, each with what must be true of a picture for it to hold.

Facts are one value per factor; a factor that a picture says nothing about (the jacket's colour in infrared, the weather
indoors) is absent. A single frame does not show wind, so its weather counts as clear.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.demo.footage import Picture

Facts = dict[str, str]

_WHEN: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in daylight", "during the day", "at daytime"),
    "dusk": ("at dusk", "in the evening", "at sunset", "in evening light"),
    "night": ("at night", "in the dark", "after dark", "in a dark night"),
    "infrared": ("in infrared", "in infrared light", "in black and white infrared", "by an infrared camera at night"),
}
_SKY: dict[str, tuple[str, ...]] = {
    "clear": ("in clear weather", "in dry weather", "with clear air"),
    "rain": ("in the rain", "in rain", "in rainy weather", "while it rains"),
    "fog": ("in fog", "in thick fog", "in foggy weather", "in the mist"),
}
_WHERE: dict[str, tuple[str, ...]] = {
    "hall": ("in a room", "in a living room", "in a hall", "in a room with a door and a lamp"),
    "workshop": ("in a workshop", "in a storage room", "in a room with shelves", "in a workshop with a bench"),
    "yard": ("in a yard", "in a garden", "in a garden with trees and a fence", "behind a house"),
    "street": ("in a street", "on a road", "in a street with houses", "in the city"),
}
_INSIDE: dict[str, tuple[str, ...]] = {"indoor": ("indoors", "inside a building"), "outdoor": ("outdoors", "outside")}
_PERSON: dict[str, tuple[str, ...]] = {
    "yes": ("a person", "somebody", "someone", "a man or a woman"),
    "no": ("nobody", "an empty scene", "no person", "an empty place without people"),
}
_CAR: dict[str, tuple[str, ...]] = {"yes": ("a car", "a vehicle", "a car on the road"), "no": ("no car", "no vehicle")}
_ANIMAL: dict[str, tuple[str, ...]] = {"yes": ("an animal", "a dog or a fox"), "no": ("no animal",)}
_KIND: dict[str, tuple[str, ...]] = {"dog": ("a dog", "a brown dog"), "fox": ("a fox", "an orange fox")}
_JACKET = ("a person in a {} jacket", "someone in a {} coat", "a person wearing a {} jacket", "somebody dressed in {}")
_LEADS = ("a photo", "a picture", "a frame", "a camera picture", "footage")

JACKETS = ("red", "blue", "green", "yellow", "white", "black")
VALUES: Mapping[str, tuple[str, ...]] = {
    "lighting": tuple(_WHEN), "weather": tuple(_SKY), "place": tuple(_WHERE), "inside": tuple(_INSIDE), "person": ("yes", "no"),
    "car": ("yes", "no"), "animal": ("yes", "no"), "species": ("dog", "fox"), "jacket": JACKETS,
}  # fmt: skip
_AFTER: Mapping[str, Mapping[str, tuple[str, ...]]] = {"lighting": _WHEN, "weather": _SKY, "place": _WHERE, "inside": _INSIDE}
_THINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"person": _PERSON, "car": _CAR, "animal": _ANIMAL, "species": _KIND}


def facts(picture: Picture) -> Facts:
    """Return what a picture shows."""
    found: Facts = {
        "lighting": picture.lighting,
        "place": picture.place,
        "inside": "indoor" if picture.indoor else "outdoor",
        "person": "yes" if picture.count("person") else "no",
        "car": "yes" if picture.count("car") else "no",
        "animal": "yes" if picture.count("animal") else "no",
    }
    if picture.weather is not None:
        found["weather"] = "clear" if picture.weather == "wind" else picture.weather
    colours = {box.class_name: box.colour for box in picture.boxes}
    if "person" in colours and picture.lighting != "infrared":
        found["jacket"] = colours["person"]
    if "animal" in colours:
        found["species"] = colours["animal"]
    return found


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def one_fact(factor: str, value: str, rng: np.random.Generator) -> str:
    """Return a sentence that says just one thing."""
    if factor == "jacket":
        thing = _pick(rng, _JACKET).format(value)
        return thing if rng.random() < 0.5 else f"{_pick(rng, _LEADS)} of {thing}"
    if factor in _THINGS:
        thing = _pick(rng, _THINGS[factor][value])
        return thing if rng.random() < 0.5 else f"{_pick(rng, _LEADS)} of {thing}"
    words = _pick(rng, _AFTER[factor][value])
    return f"{_pick(rng, _LEADS)} {'taken ' if rng.random() < 0.4 else ''}{words}"


def several_facts(known: Facts, rng: np.random.Generator) -> tuple[str, Facts]:
    """Return a sentence that says some of what a picture shows, and which facts it needs."""
    said: Facts = {}
    shown = ("jacket", "person", "car", "species", "animal")
    things = [factor for factor in shown if known.get(factor, "no") != "no"]
    head = ""
    factor: str
    if things:
        factor = "jacket" if "jacket" in things and rng.random() < 0.7 else things[int(rng.integers(len(things)))]
        said[factor] = known[factor]
        head = _pick(rng, _JACKET).format(known[factor]) if factor == "jacket" else _pick(rng, _THINGS[factor][known[factor]])
    elif rng.random() < 0.6:
        said["person"] = "no"
        head = _pick(rng, _PERSON["no"])
    head = head or _pick(rng, _LEADS)
    tail = []
    for factor in ("place", "lighting", "weather"):
        if factor in known and rng.random() < 0.6:
            said[factor] = known[factor]
            tail.append(_pick(rng, _AFTER[factor][known[factor]]))
    return " ".join([head, *tail]), said


def holds(said: Facts, known: Facts) -> bool:
    """Say whether a sentence's facts are all shown."""
    return all(known.get(factor) == value for factor, value in said.items())
