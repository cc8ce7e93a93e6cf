"""The report of a tokenizer's run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import efficient_mae as emae
from efficient_mae.cli import main


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "section":
            self.ids.append(held["id"] or "")
        if tag == "img":
            self.pictures.append(held["src"] or "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "<b>words</b>"
    emae.tokenizer(
        data="fashion-mnist-sample", out=out, in_chans=1, img_size=8, stride=4, vocab_size=8, width=8, num_blocks=0,
        epochs=1, batch_size=2500, device="cpu", precision="fp32", num_workers=0,
    )  # fmt: skip
    return out


def test_the_page(run: Path):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.ids == ["loss", "reconstructions", "vocabulary", "load", "configuration", "machine"]
    assert len(page.pictures) == 3 and all(one.startswith("data:image/") for one in page.pictures)
    use = json.loads((run / "codebook.json").read_text())
    assert f"Perplexity {use['perplexity']:.1f}" in text and f"{len(use['counts'])} of 8 words occur" in text
    assert "<b>words</b>" not in text and not re.search(r"(src|href)=\"https?:", text)


def test_it_is_written_again(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", "--run", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run / "report.html")}
    changing = re.compile(r"Written [\d: -]+|data:image/svg[^\"]+")
    assert changing.sub("", (run / "report.html").read_text()) == changing.sub("", before)


@pytest.mark.parametrize("content", ["[]", "{", '{"images": 1}', '{"images":1,"words":1,"used":1,"perplexity":1,'
                                     '"mean_squared_error":"<b>","counts":[1]}'])  # fmt: skip
def test_figures_that_are_none(content: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "codebook.json").write_text(content)
    assert main(["report", "--run", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "codebook.json" in err and len(err.splitlines()) == 1


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path):
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert main(["report", "--run", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "The run is not finished" in text and "No picture was drawn" in text
