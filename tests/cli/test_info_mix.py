"""`wsol info mix`: every strategy with what it needs and costs, without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys

from wsol import mix
from wsol.cli.main import main


def test_every_strategy_is_listed_by_family(capsys):
    assert main(["info", "mix", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(mix.MIXES.names())
    families = list(dict.fromkeys(row["family"] for row in rows))
    assert families == [name for name in ("delete", "cut", "mixup", "attention", "other") if name in families]
    known = {row["name"]: row for row in rows}
    assert known["transmix"]["needs"] == ["attention"]
    assert known["cutmix"] == {
        "name": "cutmix",
        "summary": mix.MIXES.summary("cutmix"),
        "family": "cut",
        "paper": "Yun et al., ICCV 2019",
        "cost": "none",
        "needs": [],
        "keeps_label_mass": True,
    }
    assert not known["snapmix"]["keeps_label_mass"]


def test_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    assert main(["info", "mix"]) == 0
    shown = capsys.readouterr().out
    assert "Yun et al., ICCV 2019" in shown
    assert "attention" in shown


def test_it_imports_no_torch():
    code = "import sys; from wsol.cli.info import collect_mix; collect_mix(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
