"""Nothing imports this module unless a file has it imported."""


class Bait:
    """What a file may ask for by name."""
