"""TensorBoard in a real browser: every chart of the layout has a line for each run, or for each arm."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from neoteny.agents import ppo
from neoteny.optim import AdamConfig, AdamOConfig
from neoteny.runners.board import OPENING, charts, pooled_charts
from neoteny.scripts import compare
from tests.browser import CHROMIUM, Page
from tests.tiny_runs import BASE, small

# The charts of the page of custom scalars, below all shadow roots, with the number of their lines.
CARDS = """
(() => {
  const all = (node) => [node, ...[...(node.children || []), ...(node.shadowRoot ? [node.shadowRoot] : [])]
    .flatMap(all)];
  return JSON.stringify(all(document.body).filter(
    (node) => /^TF-CUSTOM-SCALAR-(MULTI-LINE|MARGIN)-CHART-CARD$/.test(node.tagName)
  ).map((card) => [card.title, new Set(all(card).filter(
    (node) => node.tagName == "path" && (node.getAttribute("class") || "").includes("line")
      && (node.getAttribute("d") || "").length > 5 && node.getAttribute("stroke")
  ).map((path) => path.getAttribute("stroke"))).size]));
})()"""
COLUMNS = """
(() => {
  const all = (node) => [node, ...[...(node.children || []), ...(node.shadowRoot ? [node.shadowRoot] : [])]
    .flatMap(all)];
  return JSON.stringify(all(document.body).filter((node) => node.tagName == "VAADIN-GRID-CELL-CONTENT")
    .map((node) => (node.innerText || "").trim()));
})()"""


@pytest.fixture(scope="module")
def board(request, tmp_path_factory):
    """The address of a TensorBoard over two arms of two seeds, and a page."""
    if not request.config.getoption("--board"):
        pytest.skip("only with --board")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    runs = tmp_path_factory.mktemp("runs")
    for optim in (AdamConfig(), AdamOConfig(iso=0.1, iso_scale=2.0)):
        for seed in (1, 2):
            ppo.main(small(runs, seed=seed, optim=optim))
    compare.main(compare.Compare((runs,)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", port]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(tmp_path_factory.mktemp("log") / "log", "wb"))
        server = stack.enter_context(subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=log))
        stack.callback(server.terminate)
        page = stack.enter_context(contextlib.closing(Page(tmp_path_factory.mktemp("browser"), 1500, 4000)))
        address = f"http://127.0.0.1:{port}/"
        wait_for_answer(address)
        yield address, page


def wait_for_answer(address):
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.2)


def lines(page, address, least):
    """The number of lines of each chart, by its title, once each has ``least`` or a minute is over."""
    page.open("about:blank")
    page.open(address)
    end = time.monotonic() + 60
    while True:
        found = json.loads(page.run(CARDS) or "[]")
        if time.monotonic() > end or (found and all(count >= least for _, count in found)):
            return found
        time.sleep(0.5)


@pytest.mark.slow
def test_each_chart_has_a_line_for_each_arm(board):
    address, page = board
    found = lines(page, f"{address}?pooled#custom_scalars&regexInput=pooled", 2)
    shown = charts(switches=True, probes=vars(BASE.probes))
    titles = [title for part in shown.values() for title in part]
    assert [title for title, _ in found][: len(titles)] == titles
    assert len(found) > len(titles)  # with those that show intervals
    assert [(title, count) for title, count in found if count != 2] == []


@pytest.mark.slow
def test_no_chart_is_empty_where_all_runs_are_shown(board):
    address, page = board
    found = lines(page, f"{address}?all#custom_scalars", 2)
    assert found
    assert [(title, count) for title, count in found if count < 2] == []


@pytest.mark.slow
def test_hyperparameters_open_on_what_is_compared(board):
    address, page = board
    page.open("about:blank")
    page.open(f"{address}?hparams#hparams")
    cells = json.loads(page.wait_for(f"({COLUMNS}).includes('optimizer') && {COLUMNS}") or "[]")
    names = [cell for cell in cells if re.fullmatch(r"[a-z_/]+", cell)]
    assert tuple(names[: len(OPENING)]) == OPENING
    assert any(name.startswith("score/") for name in names)


def test_charts_that_would_stay_empty_are_left_out():
    off = {"every": 0, "full_every": 5, "plasticity_every": 3}
    assert charts(switches=False, probes=off) == {
        "learning": {"return": ["Multiline", ["charts/episodic_return"]]}
    }
    on = {"every": 20, "full_every": 0, "plasticity_every": 0}
    titles = str(charts(switches=True, probes=on))
    assert "plasticity/lost" not in titles
    assert "ntk" not in titles
    assert "task/recovery_steps" in titles
    assert "plasticity/lost" in str(charts(switches=True, probes={**on, "plasticity_every": 1}))
    assert pooled_charts({"task/return_auc"}) == {
        "over seeds, with 95 % intervals": {
            "area under the return curve of each task": [
                "Margin",
                ["task/return_auc", "pooled/task/return_auc/low", "pooled/task/return_auc/high"],
            ]
        }
    }
