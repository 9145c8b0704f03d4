"""Small ICC profiles, made here so that their content is known (ICC.1:2001-04)."""

import struct

_D50 = (0.9642, 1.0, 0.8249)
_SRGB_IN_D50 = {
    b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}  # fmt: skip


def rgb_profile(gamma: float, description: str = "sRGB, they say") -> bytes:
    """sRGB's primaries with another curve."""
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    primaries = {name: _xyz(*value) for name, value in _SRGB_IN_D50.items()}
    return _profile(b"RGB ", b"XYZ ", {**primaries, **curves}, description)


def gray_profile(gamma: float) -> bytes:
    """One curve."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)}, "gray")


def cmyk_profile() -> bytes:
    """A press whose inks all print as nothing but light: any paint but black ink is white."""
    corners = b"".join(bytes((0 if n & 1 else 255, 128, 128)) for n in range(16))  # Lab of CMYK
    identity = bytes(range(256))
    unit = struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + identity * 4 + corners + identity * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table}, "a press")


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], description: str) -> bytes:
    text = description.encode() + b"\0"
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": desc, b"wtpt": _xyz(*_D50), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    device = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI", start + len(body), b"none", 0x02400000) + device + space
    head += connection + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(v * 65536) for v in _D50))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body
