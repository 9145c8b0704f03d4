"""What a contact sheet is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet."""

    title: str
    subtitle: str
    s3_key: str
