"""The report stands alone, says the numbers of the run, and cannot be broken by what it shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jepa_kernels import cli
from jepa_kernels.bench import report, summary
from jepa_kernels.bench.readme import BEGIN, END
from jepa_kernels.bench.store import REPORT, read_environment, read_results

from .conftest import Run
from .toys import toy_case

VOID = {"meta", "link", "br", "img", "input", "hr", "use", "path", "line", "rect"}


class Page(HTMLParser):
    """Open tags, text, attributes and the embedded data of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.data = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data += data
        else:
            self.text.append(data.strip())


@pytest.fixture
def made(toy_run: Run) -> tuple[Path, str]:
    code, folder = toy_run([toy_case(), toy_case(name="other"), toy_case(lambda x: x * 3, name="wrong")])
    assert code == 4
    return folder, (folder / REPORT).read_text()


def test_page_is_well_formed_and_stands_alone(made: tuple[Path, str]) -> None:
    _, html = made
    page = Page(html)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links), page.links
    assert all(link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import", html)
    assert [script["type"] for script in page.scripts] == ["application/json"]
    assert "default-src 'none'" in html and len(html.encode()) < report.MAX_BYTES


def test_numbers_on_the_page_are_those_of_the_run(made: tuple[Path, str]) -> None:
    folder, html = made
    page = Page(html)
    records = read_results(folder)
    assert json.loads(page.data) == {"environment": read_environment(folder), "records": records, "profiles": []}
    for record in records:
        if record["stats"] is not None:
            assert summary.seconds(record["stats"]["median"]) in page.text
        if ratio := record["ratios"].get(record["peer"]):
            assert summary.speed_up(ratio) in page.text


def test_plots_keep_their_text_and_follow_the_style(made: tuple[Path, str]) -> None:
    _, html = made
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) >= 2 + len({"toy/double-fp32", "toy/other-fp32", "toy/wrong-fp32"}) - 1
    assert all('role="img" aria-label="' in svg for svg in svgs)
    assert all("<text" in svg and "var(--ink)" in svg for svg in svgs)
    assert not any(re.search(r"#[0-9a-f]{6}\b", svg) for svg in svgs)  # nothing keeps a colour of its own
    texts = [style for svg in svgs for style in re.findall(r"<text style=\"([^\"]*)\"", svg)]
    assert texts and all("fill: var(--ink)" in style for style in texts)


def test_failed_provider_is_shown_with_its_error(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    assert any("wrong result" in text for text in page.text)


def test_data_cannot_end_its_element(made: tuple[Path, str]) -> None:
    folder, _ = made
    records, environment = read_results(folder), read_environment(folder)
    nasty = "</script><script>alert(1)</script><!--"
    records[0]["flags"] = [nasty]
    page = Page(report.render(records, environment, "run", complete=True))
    assert page.open == [] and len(page.scripts) == 1
    assert json.loads(page.data)["records"][0]["flags"] == [nasty]
    assert any(nasty in text for text in page.text)  # escaped in the table


def test_page_without_any_timing_still_renders(toy_run: Run) -> None:
    def broken(_x: object) -> object:
        raise RuntimeError("cannot")

    _, folder = toy_run([toy_case(broken)], "--provider", "jk-cpu")  # type: ignore[arg-type]
    html = (folder / REPORT).read_text()
    assert "<svg" not in html and "RuntimeError: cannot" in html


def test_samples_are_left_out_of_a_page_that_would_be_too_large(
    made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, html = made
    monkeypatch.setattr(report, "MAX_BYTES", len(html.encode()) // 2)
    page = Page(report.render(read_results(folder), read_environment(folder), "run", complete=True))
    assert {r["samples"] for r in json.loads(page.data)["records"]} == {None}


def test_report_command_renders_again(made: tuple[Path, str]) -> None:
    folder, html = made
    (folder / REPORT).unlink()
    assert cli.main(["bench", "report", str(folder)]) == 0
    assert (folder / REPORT).read_text() == html


def test_report_of_no_run_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "report", str(tmp_path)]) == 2
    assert "holds no benchmark run" in capsys.readouterr().err


def test_readme_block_is_replaced_and_the_rest_kept(made: tuple[Path, str], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # the second writing replaces the first
        assert cli.main(["bench", "readme-table", str(made[0]), str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| toy/double-fp32 | jk-cpu |") == 1 and "torch-add |" not in text.split("|---")[1].split("×")[0]
    assert "GFLOP/s" in text and "toy/wrong" not in text


@pytest.mark.parametrize("content", ["nothing", f"{END}\n{BEGIN}\n"])
def test_readme_without_markers_exits_2(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(content)
    assert cli.main(["bench", "readme-table", str(made[0]), str(readme)]) == 2
    assert BEGIN in capsys.readouterr().err and readme.read_text() == content


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (7.8e-8, "78.0 ns"), (123.4, "123 s")],
)
def test_durations_have_three_digits(value: float, text: str) -> None:
    assert summary.seconds(value) == text
