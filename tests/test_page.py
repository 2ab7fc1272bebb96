"""The HTML page of a run: what it says, that it needs nothing else, that it sorts in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from small_network import DEAD, calibration, network

import hashsolve as hs
from hashsolve import cli

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
from hashsolve.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The tables of a page as text, and all addresses that it names."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.places, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.places += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs, by sign and by auto."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        hs.binarize(network(), calibration(), folder / f"by-{method}", method, effort="fast")
        for method in ("sign", "auto")
    ]


def test_it_says_what_the_run_did(runs, tmp_path):
    write_page(tmp_path / "page.html", runs[1].run_dir)
    text = (tmp_path / "page.html").read_text()
    head, *rows = Page(text).tables[0]
    assert head[:6] == ["layer", "shape", "rows", "sign", "dcc", "auto"]
    assert [row[0] for row in rows] == [layer.name for layer in runs[1].layers]
    for row, layer in zip(rows, runs[1].layers, strict=True):
        said = dict(zip(head, row, strict=True))
        assert said["auto"] == f"{layer.relative_error:.4f}"
        assert said["sign"] == f"{layer.row['relative_error_sign']:.4f}"
        assert said["bound"] == f"{layer.row['lower_bound']:.4f}"
        assert float(said["dcc"]) >= float(said["auto"])
        assert said["flips"] == f"{layer.row['flips']:,}"
    assert f"{runs[1].report.summary['mean_relative_error']:.4f}" in text
    assert runs[1].codes_sha256 in text  # provenance
    assert text.count("<svg") == 3 and "currentColor" in text


def test_the_other_methods_errors_are_those_of_its_own_run(runs, tmp_path):
    """sign against sign(W) as the run itself has it; the first layer sees the same inputs."""
    write_page(tmp_path / "page.html", runs[0].run_dir, against="auto")
    head, *rows = Page((tmp_path / "page.html").read_text()).tables[0]
    assert rows[0][head.index("auto")] == f"{hs_error(runs[1], 0):.4f}"


def hs_error(run, index):
    """Of a layer, solved anew with default effort from the run's own problem."""
    path = run.run_dir / "layers" / f"{run.layers[index].name}.problem.h5"
    return hs.solve(hs.Problem.load(path)).relative_error


def test_groups_without_data_count_with_their_loss(runs):
    """A depthwise channel is zero on all data: no problem of it is in the file."""
    run = runs[1]
    name = "block.depth"
    layer = next(layer for layer in run.layers if layer.name == name)
    path = run.run_dir / "layers" / f"{name}.problem.h5"
    with h5py.File(path) as file:
        assert f"group{DEAD}" not in file and len(file) == 7
    from hashsolve.page import _error

    assert _error(path, layer.solution, "auto") <= layer.relative_error + 1e-12
    lost = dataclasses.replace(layer.solution, loss=layer.solution.loss + np.eye(8)[DEAD])
    gained = _error(path, lost, "auto") - _error(path, layer.solution, "auto")
    np.testing.assert_allclose(gained, 1 / layer.solution.energy.sum())


def test_it_needs_nothing_else(runs, tmp_path):
    write_page(tmp_path / "page.html", *[run.run_dir for run in runs])
    text = (tmp_path / "page.html").read_text()
    assert all(place.startswith(("#", "data:")) for place in Page(text).places)
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.DOTALL)
    assert "http" not in bare.replace("<!DOCTYPE", "") and "@import" not in bare
    write_page(tmp_path / "again.html", *[run.run_dir for run in runs])
    assert (tmp_path / "again.html").read_text() == text


def test_two_runs_side_by_side(runs, tmp_path):
    write_page(tmp_path / "page.html", *[run.run_dir for run in runs], against=None)
    head, *rows = Page((tmp_path / "page.html").read_text()).tables[0]
    assert head == ["layer", "shape", "by-sign", "by-auto", "ratio"]
    for row, a, b in zip(rows, *(run.layers for run in runs), strict=True):
        assert row[2:4] == [f"{a.relative_error:.4f}", f"{b.relative_error:.4f}"]
        assert row[4] == f"{b.relative_error / a.relative_error:.3f}"
    pictures = (tmp_path / "page.html").read_text().split("<svg")[1:]
    first, second = (p for p in pictures if "proven lower bound" in p)
    ticks, others = (re.findall(r">(\d\.\d+)</text>", p) for p in (first, second))
    assert len(ticks) > 3 and ticks == others


def test_names_are_text_and_accuracy_is_shown(runs, tmp_path):
    folder = tmp_path / "<b>run"
    shutil.copytree(runs[0].run_dir, folder)
    saved = json.loads((folder / "report.json").read_text())
    saved["summary"]["accuracy"] = {"top-1 <i>": 86.25}
    (folder / "report.json").write_text(json.dumps(saved))
    write_page(tmp_path / "page.html", folder, against=None)
    text = (tmp_path / "page.html").read_text()
    assert "<b>run" not in text and "&lt;b&gt;run" in text
    assert "top-1 &lt;i&gt;</dt><dd>86.25" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "report.json").unlink(), "no finished run"),
        (lambda f: (f / "report.json").write_text("{}"), "no finished run"),
        (lambda f: next(f.glob("layers/*.solution.h5")).write_bytes(b"x"), "solution.h5"),
    ],
)
def test_damaged_folders_are_refused_and_nothing_is_written(damage, message, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0].run_dir, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path / "page.html", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_arguments_that_cannot_be_used(runs, tmp_path):
    with pytest.raises(ValueError, match="one run folder or two, got 0"):
        write_page(tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"against: 'dccc'.* did you mean 'dcc'"):
        write_page(tmp_path / "page.html", runs[0].run_dir, against="dccc")


def test_the_command(runs, tmp_path, capsys):
    one, two = (str(run.run_dir) for run in runs)
    assert cli.main(["report", one, two, "-o", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").exists()
    assert cli.main(["report", one, "--against", "none"]) == 0
    assert (runs[0].run_dir / "report.html").exists()
    capsys.readouterr()
    for arguments, message in [
        ([one, two], "--output: name the page of two runs"),
        ([one, "-o", "page.txt"], "name a file that ends in .html"),
        ([str(tmp_path / "nowhere")], "nowhere: no such folder"),
        ([str(tmp_path)], "no run folder"),
    ]:
        assert cli.main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(runs, tmp_path):
    """It runs without an error, and sorts by what is clicked, up and then down."""
    write_page(tmp_path / "page.html", runs[1].run_dir)
    text = (tmp_path / "page.html").read_text()
    column = 5
    probe = f"""<script>
      const button = () => document.querySelectorAll("table.sortable th button")[{column}].click();
      const read = () => [...document.querySelectorAll("table.sortable tbody tr")]
        .map(row => row.cells[{column}].textContent);
      const seen = [];
      button(); seen.push(read()); button(); seen.push(read());
      document.title = JSON.stringify([...seen, window.failed ?? ""]);
    </script></body>"""
    watch = "<head><script>window.onerror = m => window.failed = m;</script>"
    probed = text.replace("<head>", watch).replace("</body>", probe)
    (tmp_path / "probe.html").write_text(probed)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *options, profile, (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)
    up, down, failed = json.loads(title)
    errors = sorted(f"{layer.relative_error:.4f}" for layer in runs[1].layers)
    assert (up, down, failed) == (errors, errors[::-1], "")
