"""Prepares a source and says what it holds: `python -m sft_jax.prepare --config=configs/x.py`."""

from sft_jax import cli
from sft_jax.config_io import from_dict
from sft_jax.data.records import SPLITS, DataInfo
from sft_jax.data.sources import prepare

_CONFIG = cli.define_config()


def describe(info: DataInfo) -> str:
    """What was found, split by split, in a few lines."""
    lines = [f"source       {info.source}"]
    for m in info.modalities:
        unit = "features" if m.kind == "feature" else "ids"
        lines.append(f"modality     {m.name}: {m.length} steps, {m.feature_dim} {unit}")
    for split in SPLITS:
        counts = zip(info.class_names, info.class_counts[split], strict=True)
        balance = ", ".join(f"{name} {count}" for name, count in counts)
        lines.append(f"{split:<12} {info.num_records[split]} records: {balance}")
        groups = f"             {len(info.groups[split])} groups"
        units = info.split_units.get(split, ())
        if units:
            shown = ", ".join(units[:10]) + (", ..." if len(units) > 10 else "")
            groups += f"; split over {len(units)}: {shown}"
        lines.append(groups)
    for what, count in info.repairs.items():
        lines.append(f"repaired     {what}: {count}")
    if not info.repairs:
        lines.append("repaired     nothing")
    lines.append(f"sha256       {info.source_sha256 or 'no source file'}")
    lines.append(f"fingerprint  {info.fingerprint}")
    lines.append(f"directory    {info.directory}")
    return "\n".join(lines)


def main():
    """Prepares the source of `--config` and prints what it holds."""
    print(describe(prepare(from_dict(_CONFIG.value).data)))


if __name__ == "__main__":
    cli.run(main)
