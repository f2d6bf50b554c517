"""How much memory there is, so that what would not fit is refused before it is asked for."""

import os
from pathlib import Path

# What the machine is divided into says how much of it a container has.
_GROUP_FILES = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_STATUS = Path("/proc/self/status")


def memory_limit() -> int:
    """Bytes this process can have at most: of the machine, its container and its own limits."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _GROUP_FILES:
        file = Path(name)
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits + _left_of_own_limits())


def _left_of_own_limits() -> list[int]:
    """What `ulimit` leaves, where it limits anything and the system says what is used."""
    if not _STATUS.is_file():
        return []
    import resource  # where there is such a file, there is this module

    left = []
    for kind, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            lines = _STATUS.read_text().splitlines()
            used = next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
            left.append(max(0, limit - used))
    return left
