"""The report: every number of the evaluation, nothing from outside, nothing that can run.

Above 300 lines: page, tables and slices are read from one report.
"""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import write_volume
from cddnet.volume import CTVolume
from cddnet.workflows._complexity import Complexity
from cddnet.workflows._evaluation import (
    Comparison,
    Curve,
    Evaluation,
    Finding,
    ImageScores,
    Interval,
    Metric,
    Physics,
    Protocol,
    Row,
)
from cddnet.workflows._panel import Region
from cddnet.workflows._report_content import Content, ShownSlice, chosen_slices
from cddnet.workflows._report_page import encode_slice
from cddnet.workflows.report import Record, ReportOptions, report_file, write_report
from peers import require

HOSTILE = '<script>alert("x")</script>|*a* [b](http://c)'
WINDOW = (-700.0, 300.0)
PATIENTS = ("patient 1 (3f2a)", "patient 2 (77c1)")


def scored(name, scores, flagged=()):
    """A row whose per-patient values are `scores`: patient -> {metric: value}."""
    images = tuple(
        ImageScores(
            patient=patient, series="series 1", slice_number=number, position_mm=1.5, values=values
        )
        for patient, values in scores.items()
        for number in (1, 2)
    )
    metrics = list(scores[PATIENTS[0]])
    columns = {metric: [values[metric] for values in scores.values()] for metric in metrics}
    return Row(
        name=name,
        is_low_dose=name == "low dose",
        images=images,
        per_patient=scores,
        mean={
            metric: Interval(value=float(np.mean(values)), low=min(values), high=max(values))
            for metric, values in columns.items()
        },
        flagged=flagged,
    )


@pytest.fixture(scope="module")
def evaluation():
    def scores(*values):
        keys = ("PSNR", "SSIM", "RMSE")
        return {
            patient: dict(zip(keys, row, strict=True))
            for patient, row in zip(PATIENTS, values, strict=True)
        }

    methods = (
        scored("method", scores((30.111, 0.85555, 11.5), (31.222, 0.86666, 12.25))),
        scored("low dose", scores((26.333, 0.72222, 18.75), (27.444, 0.73333, 19.125))),
        scored(HOSTILE, scores((20.5, 0.6, 35.0), (21.25, 0.61, 36.0)), ("PSNR", "SSIM", "RMSE")),
    )
    bias = tuple(
        Finding(
            row=row.name,
            family="bias",
            name=f"{tissue} bias",
            value=Interval(value=value, low=value - 1.5, high=value + 2.5),
            unit="HU",
            within=f"mask of {tissue}",
        )
        for row, value in zip(methods, (0.625, -0.25, 7.75), strict=True)
        for tissue in ("lung", "bone")
    )
    curve = Curve(
        name="method", x=(0.0, 0.35, 0.7), y=(1.0, 5.0, 0.5), x_label="1/mm", y_label="HU2 mm2"
    )
    return Evaluation(
        version="0.1.0",
        mode="paired",
        protocol=Protocol(name="published", window_hu=WINDOW, bits=8),
        mask="body",
        reference="reference",
        metrics=(
            Metric(name="PSNR", unit="dB", higher_is_better=True, definition="of the window"),
            Metric(name="SSIM", unit="", higher_is_better=True, definition="7 x 7"),
            Metric(name="RMSE", unit="HU", higher_is_better=False, definition=HOSTILE),
        ),
        unavailable={"LPIPS": "no weights; give a folder."},
        rows=methods,
        comparisons=(
            Comparison(
                metric="PSNR",
                first="method",
                second="low dose",
                difference=Interval(value=3.778, low=3.7, high=3.9),
                p_value=0.03125,
                test="sign-flip permutation",
                patients=2,
            ),
        ),
        physics=Physics(
            findings=bias,
            curves={"Noise power spectrum": (curve,)},
            statements=("PSNR up, detectability not.", HOSTILE),
        ),
        notes=(HOSTILE,),
    )


@pytest.fixture(scope="module")
def content(evaluation):
    """Two slices, odd sizes, a body in air that fills a part of them."""
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:75, :97]
    body = np.hypot((row - 34) / 22, (column - 44) / 31) < 1
    truth = np.where(body, 40.0, -1000.0) + 300 * (np.hypot(row - 30, column - 50) < 5)
    names = ("reference", "low dose", "method", HOSTILE)

    def shown(number):
        images = {
            name: (truth + level * rng.normal(size=truth.shape)).astype(np.float32)
            for name, level in zip(names, (3.0, 20.0, 6.0, 1.0), strict=True)
        }
        return ShownSlice(PATIENTS[0], "series 1", number, 1.5, (0.8, 0.7), images)

    cost = Complexity(
        name="tiny@1",
        network="cddnet",
        parameters=12345,
        unused_parameters=67,
        flops=2_500_000_000,
        macs=1_250_000_000,
        weights_bytes=49_380,
        height=512,
        width=512,
        dtype="float32",
        seconds_per_slice=0.125,
        runs=5,
        threads=1,
        machine="a machine",
    )
    return Content(evaluation=evaluation, shown=(shown(1), shown(2)), complexity=(cost,))


class Page(HTMLParser):
    """Elements, texts, scripts and tables (rows of cell texts, by caption)."""

    VOID = frozenset({"meta", "input", "img", "br"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.scripts, self.tables = [], [], [], {}
        self.text = self.caption = ""
        self.rows = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.caption, self.rows = "", []
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if "script" in self.stack:
            self.scripts[-1] += data
        elif "style" not in self.stack:
            self.text += data
        if "caption" in self.stack:
            self.caption += data
        elif "td" in self.stack or "th" in self.stack:
            self.rows[-1][-1] += f" {data}"

    def table(self, start):
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return found


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, content)
    return folder


@pytest.fixture(scope="module")
def page(written):
    return Page((written / "report.html").read_text(encoding="utf-8"))


def numbers(text):
    return re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)


def assert_shown(token, value):
    """A printed number is the value to its last digit."""
    digits = len(token.partition(".")[2])
    assert abs(float(token) - value) <= 0.5 * 10**-digits * (1 + 1e-9), (token, value)


def test_the_table_holds_the_numbers_of_the_json_low_dose_first(written, page):
    record = json.loads((written / "report.json").read_text(encoding="utf-8"))["evaluation"]
    head, *rows = page.table("Mean over patients")
    assert "PSNR (dB)" in head[1]
    assert rows[0][0].strip().startswith("low dose")
    by_name = {row["name"]: row for row in record["rows"]}
    assert len(rows) == len(by_name) == 3
    for row in rows:
        (name,) = [name for name in by_name if row[0].strip().startswith(name)]
        for metric, cell in zip(("PSNR", "SSIM", "RMSE"), row[1:], strict=True):
            mean = by_name[name]["mean"][metric]
            shown = numbers(cell)
            assert len(shown) == 3
            for token, key in zip(shown, ("value", "low", "high"), strict=True):
                assert_shown(token, mean[key])


def test_best_and_worse_are_said_in_words(page):
    _, low, method, blur = page.table("Mean over patients")
    assert "worse" not in " ".join(low + method)
    assert all("worse than low dose" in cell for cell in blur)
    assert all("best" in cell for cell in method[1:])
    assert not any("best" in cell for cell in low + blur)
    assert "worse than the low dose in PSNR, SSIM, RMSE" in page.text


def test_every_other_number_is_there_too(evaluation, page):
    _, *rows = page.table("Mean over each patient")
    assert len(rows) == 6
    by_name = {row.name: row for row in evaluation.rows}
    for patient, name, *cells in rows:
        values = by_name[name.strip()].per_patient[patient.strip()]
        for cell, value in zip(cells, values.values(), strict=True):
            assert_shown(cell.strip(), value)
    _, *rows = page.table("Every slice")
    assert len(rows) == 12
    for patient, _, _, place, name, *cells in rows:
        assert_shown(place.strip(), 1.5)
        values = by_name[name.strip()].per_patient[patient.strip()]
        for cell, value in zip(cells, values.values(), strict=True):
            assert_shown(cell.strip(), value)
    _, pair = page.table("First minus second")
    shown = numbers(pair[1])
    for token, value in zip(shown, (3.778, 3.7, 3.9, 0.03125), strict=True):
        assert_shown(token, value)
    assert "for method" in pair[1]
    _, *rows = page.table("HU bias")
    assert len(rows) == 2
    for name, *cells in rows:
        assert "mask of" in name
        for cell, value in zip(cells, (0.625, -0.25, 7.75), strict=True):
            for token, bound in zip(numbers(cell), (0, -1.5, 2.5), strict=True):
                assert_shown(token, value + bound)
    cost = " ".join(map(" ".join, page.table("tiny@1")))
    for text in ("12,345", "67 more", "1.250 G", "2.500 G", "0.049 MB", "0.125 s", "a machine"):
        assert text in cost
    for text in ("PSNR up, detectability not.", "LPIPS unavailable: no weights; give a folder."):
        assert text in " ".join(page.text.split())


def test_no_figure_of_fidelity_without_window_range_mask_and_n(page):
    said = (
        "published: window [-700, 300] HU, range 1000 HU, 256 grey levels; mask: body; "
        "n = 2 patients, 4 slices."
    )
    captions = [caption for caption, rows in page.tables.items() if "PSNR" in str(rows[0])]
    assert len(captions) == 4
    assert all(said in caption for caption in captions)


def test_nothing_is_asked_of_the_network_and_nothing_foreign_runs(written, page):
    text = (written / "report.html").read_text(encoding="utf-8")
    outside = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            value = attributes.get(name) or ""
            assert not outside.match(value), (tag, value)
            assert value == "" or value.startswith(("data:image/png;base64,", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "link" not in {tag for tag, _ in page.elements}
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect" not in policy
    data, own = page.scripts
    json.loads(data)
    assert "fetch(" not in own
    assert "XMLHttpRequest" not in own


def test_hostile_names_stay_text(written, page):
    assert len(page.scripts) == 2
    assert HOSTILE in page.text
    assert "<script>alert" not in (written / "report.html").read_text(encoding="utf-8")
    names = [path.name for path in (written / "figures").iterdir()]
    assert all(re.fullmatch(r"[a-z0-9_]+\.(svg|png)", name) for name in names)
    for path in (written / "figures").glob("*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8")


def test_pictures_have_alternative_texts(page):
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert images
    assert all("reference" in attributes["alt"] for attributes in images)
    assert "<html" not in page.text
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 3 + 1 + 1
    assert all(attributes["role"] == "img" for attributes in charts)


def unpacked(item, image):
    """HU of an embedded slice, by sums over whole rows."""
    height, width = item["height"], item["width"]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(image["data"])), np.uint8)
    low, high = planes.reshape(2, height, width).astype(np.int64)
    folded = low + 256 * high
    steps = np.where(folded % 2, -(folded + 1) // 2, folded // 2)
    steps[:, 0] = np.cumsum(steps[:, 0])
    return ((np.cumsum(steps, axis=1) + 32768) % 65536 - 32768).astype(float)


def test_embedded_slices_are_the_hu_within_rounding(content, page):
    embedded = json.loads(page.scripts[0])
    assert len(embedded["slices"]) == 2
    for item, shown in zip(embedded["slices"], content.shown, strict=True):
        top, left = item["row"], item["column"]
        assert top > 0
        assert left > 0
        inside = np.s_[top : top + item["height"], left : left + item["width"]]
        for image in item["images"]:
            hu = shown.images[image["name"]]
            assert np.abs(unpacked(item, image) - hu[inside]).max() <= 0.5
            # The whole body is shown.
            outside = np.delete(hu, np.r_[top : top + item["height"]], axis=0)
            assert outside.max() < -500
        row, column, side = item["region"]
        assert 0 <= row <= item["height"] - side
        assert 0 <= column <= item["width"] - side
        # The structure of the slice is at its insert.
        assert row + top <= 30 < row + top + side
        assert column + left <= 50 < column + left + side


@pytest.mark.parametrize("hu", [[[-32768, 32767], [32767, -32768]], [[0, -1], [-2000, 3071]]])
def test_any_16_bit_value_survives(hu):
    item = {"height": 2, "width": 2}
    packed = {"data": encode_slice(np.array(hu, np.float32))}
    assert unpacked(item, packed).tolist() == hu


def test_the_same_content_gives_the_same_bytes(content, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, content)
    one, two = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) > 10


def test_markdown_holds_the_same_table(written, evaluation):
    text = (written / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index("## Scores")
    assert "window [-700, 300] HU, range 1000 HU" in lines[start + 2]
    rows = lines[start + 6 : start + 9]
    assert rows[0].startswith("| low dose |")
    assert "\\<script\\>" in rows[2]
    assert "<script>" not in text
    assert "](http" not in text
    ordered = sorted(evaluation.rows, key=lambda row: not row.is_low_dose)
    for line, row in zip(rows, ordered, strict=True):
        cells = re.split(r"(?<!\\)\|", line)[2:-1]
        for cell, mean in zip(cells, row.mean.values(), strict=True):
            for token, value in zip(numbers(cell), (mean.value, mean.low, mean.high), strict=True):
                assert_shown(token, value)
    assert rows[2].count("worse than low dose") == 3


def test_infinite_scores_are_said_and_kept(evaluation, content, tmp_path):
    row = evaluation.rows[0]
    perfect = row.model_copy(update={"mean": row.mean | {"PSNR": Interval(value=float("inf"))}})
    changed = evaluation.model_copy(update={"rows": (perfect, *evaluation.rows[1:])})
    write_report(tmp_path, content._replace(evaluation=changed))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.table("Mean over patients")[2][1].split() == ["inf", "best"]
    record = Record.model_validate_json((tmp_path / "report.json").read_bytes())
    assert record.evaluation == changed


def test_without_slices_physics_or_references_it_still_stands(evaluation, tmp_path):
    bare = evaluation.model_copy(
        update={
            "mode": "unpaired",
            "metrics": (),
            "rows": (),
            "comparisons": (),
            "physics": Physics(),
            "unavailable": {},
            "notes": (),
        }
    )
    write_report(tmp_path, Content(evaluation=bare))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "without a reference" in page.text
    assert page.tables == {}


def test_slices_are_of_the_first_patients_middle_first(evaluation):
    chosen = chosen_slices(evaluation)
    assert [(image.patient, image.slice_number) for image in chosen] == [
        (PATIENTS[0], 2),
        (PATIENTS[1], 2),
        (PATIENTS[0], 1),
        (PATIENTS[1], 1),
    ]


def test_an_asked_region_is_kept_inside(content, tmp_path):
    write_report(tmp_path, content._replace(region=Region(row=20, column=30, side=11)))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    item = json.loads(page.scripts[0])["slices"][0]
    row, column, side = item["region"]
    assert (row + item["row"], column + item["column"], side) == (20, 30, 11)


@pytest.fixture
def files(tmp_path, content):
    """Reference and rows of one series on disk, as .nii.gz."""
    paths = {}
    for name, stem in (("reference", "full"), ("low dose", "low"), ("method", "method")):
        hu = np.stack([shown.images[name] for shown in content.shown])
        paths[stem] = tmp_path / f"{stem}.nii.gz"
        write_volume(CTVolume.from_hu(hu, (3.0, 0.7, 0.7)), paths[stem])
    return paths


def report_of(files, out, **options):
    return report_file(
        out,
        files["full"],
        {"method": files["method"]},
        ReportOptions(protocol="redcnn", low_dose=files["low"], **options),
        lambda what, done, total: None,
    )


def test_a_report_from_files(files, tmp_path, tiny_weights):
    explained = tmp_path / "explained"
    explained.mkdir()
    Image.new("RGB", (40, 30), "red").save(explained / "explanation.png")
    record = {"model": "net@1", "strength": 0.75, "slice": 4, "compared_with": "full dose"}
    record["region"] = {"row": 5, "column": 6, "height": 7, "width": 8}
    (explained / "explanation.json").write_text(json.dumps(record), encoding="utf-8")
    out = tmp_path / "out"
    result = report_of(files, out, mask="body", models=(str(tiny_weights),), explained=explained)
    assert result.slices_shown == 2
    assert result.page_bytes == (out / "report.html").stat().st_size
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    _, low, method = page.table("Mean over patients")
    assert low[0].strip().startswith("low dose")
    assert float(numbers(method[1])[0]) > float(numbers(low[1])[0]) + 3
    assert "tiny@1" in page.text
    assert "net@1 at strength 0.75, slice 4, region of 7 x 8 pixels" in page.text
    for name in ("comparison_1.png", "comparison_1.svg", "difference_1.png", "patients_psnr.svg"):
        assert (out / "figures" / name).is_file()
    embedded = json.loads(page.scripts[0])
    assert [image["name"] for image in embedded["slices"][0]["images"]] == [
        "reference",
        "low dose",
        "method",
    ]
    assert "PSNR" in embedded["slices"][0]["images"][1]["scores"]


def test_what_cannot_be_reported_leaves_nothing(files, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "foreign" / "a.png")
    (tmp_path / "foreign" / "explanation.json").write_text("[1]", encoding="utf-8")
    for options, error, reason in (
        ({"explained": tmp_path / "foreign"}, FormatError, "no record of"),
        ({"explained": tmp_path / "empty"}, FormatError, "holds no .png"),
        ({"region": (3, -1, 5)}, GeometryError, "side above 0"),
    ):
        with pytest.raises(error, match=reason):
            report_of(files, out, **options)
        assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FormatError, match="nothing is overwritten"):
        report_of(files, out)
    assert list(out.iterdir()) == [out / "mine"]


@pytest.mark.net
def test_chromium_shows_it_without_error_or_request(written, content, tmp_path):
    require("chromium")
    command = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (written / "report.html").as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    # Errors, refused requests and breaches of the policy all come as console messages.
    assert "CONSOLE" not in run.stderr
    assert 'class="live"' in run.stdout
    assert f'data-painted="{len(content.shown[0].images)}"' in run.stdout
    regions = re.findall(r'<p class="region">region: mean (\S+), SD (\S+) HU', run.stdout)
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    item = json.loads(page.scripts[0])["slices"][0]
    row, column, side = item["region"]
    assert len(regions) == len(item["images"])
    for (mean, spread), image in zip(regions, item["images"], strict=True):
        values = unpacked(item, image)[row : row + side, column : column + side]
        assert_shown(mean, values.mean())
        assert_shown(spread, values.std())
