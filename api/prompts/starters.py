"""Prompts for a system that has made nothing yet: they fit the world of the demo model."""

STARTERS: tuple[str, ...] = (
    "snowy mountains at sunset, a lake, pine trees",
    "green hills at noon, the sun, a river, yellow flowers",
    "desert mountains at night, the moon, stars",
    "purple mountains at dawn, a lake, a white house",
    "rocky mountains in a storm, a river, pine trees",
    "snowy hills at night, stars, a red house, pine trees",
    "green mountains at dawn, a river, the sun",
    "purple hills at sunset, the sun, a lake, red flowers",
    "desert hills at noon, the sun, a white house",
    "rocky hills at dawn, a lake, purple flowers",
    "snowy mountains in a storm, a red house",
    "green hills at night, the moon, a lake, a house",
    "purple mountains at night, stars, a river",
    "desert mountains at sunset, the sun, a river",
    "rocky mountains at noon, a lake, pine trees, a house",
    "green hills in a storm, a river, a red house, pine trees",
)
