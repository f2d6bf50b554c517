"""Damage to a file, as disks and copies do it."""


def flip(path):
    """Changes one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    """Takes the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])
