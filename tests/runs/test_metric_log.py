import json

from sft_jax.files import json_files
from sft_jax.runs.metric_log import MetricLog


def test_a_log_of_any_length_is_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "LARGEST_FILE", 100)
    lines = [json.dumps({"kind": "train", "step": i, "loss": 0.5}) + "\n" for i in range(9)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"kind": "tr')
    log = MetricLog(tmp_path, resume_step=6)
    log.write("train", 7, {"loss": 0.25})
    log.close()
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert kept[:7] == lines[:7]
    assert list(map(json.loads, kept[7:])) == [{"kind": "train", "step": 7, "loss": 0.25}]
