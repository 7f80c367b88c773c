"""The page of a run: whole, self-contained, and with the numbers of its results."""

import ast
import base64
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hetpure.__main__ import main
from hetpure.attacks import PGD
from hetpure.defense import Defense
from hetpure.denoiser import to_pixels
from hetpure.evaluation import audit
from hetpure.evaluation.description import Run
from hetpure.evaluation.protocol import Protocol, Record
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.run_results import Contents, write_results
from hetpure.evaluation.statistics import wilson
from hetpure.evaluation.store import Store
from hetpure.evaluation.worker import evaluate
from hetpure.noise import Noise, Stream
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.purifiers.purifier import diffuse
from hetpure.report.advice import ADVICE, UNDECIDED, advice
from hetpure.report.charts import curves
from hetpure.report.finding import by_defense, doubts, finding
from hetpure.report.gallery import MOST, choose, exhibits, without_images
from hetpure.report.html import LONGEST, picture
from hetpure.report.measured import measure
from hetpure.report.run_page import audited, classes_sheet, run_page
from hetpure.report.table import interval
from tests.hetpure.evaluation.runs import CONFIG, begin, small
from tests.hetpure.report.pages import cells, check_page
from tests.hetpure.run_records import DRAWS, RIGHT_A, RIGHT_B, Line, defended, lines, stored

ROOT = Path(__file__).parent.parent.parent.parent
AUDIT = {"images": 16, "queries": 9, "tolerance": 0.05, "reference": False}
CHECKED = [
    {"name": "null attack", "verdict": "PASS", "said": "clean accuracy +0.0"},
    {"name": "more steps", "verdict": "WARN", "said": "accuracy -9.0: not converged"},
    {"name": "black box", "verdict": "FAIL", "said": "under it accuracy is -40.0"},
]


def run_of(folder: Path, records: list[Line], images: int, **more: Any) -> tuple[Store, Any]:
    store = stored(folder, records, images, **more)
    return store, write_results(store)


def with_null(name: str, robust: list[int]) -> list[Line]:
    return [*defended(name, robust), *lines(name, "null", [DRAWS] * len(robust))]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Any]:
    """Two defences on 40 images, with what a run of its own would say beside the counts."""
    records = [*with_null("good", RIGHT_A), *with_null("bad", RIGHT_B)]
    store, results = run_of(tmp_path / "pair", records, images=40)
    results["weaker_than_full"] = ["4 report draws (full: 20)"]
    for defense in results["defenses"].values():
        defense["audit"] = CHECKED
        defense["attacks"]["pgd"]["iterations"] = {
            "loss": [1.0, 3.0, 2.0],
            "right": [0.9, 0.5, 0.4],
        }
    results["run"]["audit"] = AUDIT
    return store, results


def test_the_page_is_whole_and_its_numbers_are_those_of_the_results(
    pair: tuple[Store, Any],
) -> None:
    store, results = pair
    page = run_page(store, results)
    root = check_page(page)
    assert "NOT FINISHED" not in page
    rows = {row[0]: row for row in cells(root, "toy: PGD; n = 40")}
    dots = root.all("circle")
    for number, (name, defense) in enumerate(results["defenses"].items()):
        for kind, place in (("clean", 0), ("robust", 1)):
            estimate = defense[kind]["single"]
            assert interval(estimate) in rows[name]
            assert dots[2 * number + place].attributes["cx"] == f"{100 * estimate['accuracy']:.2f}%"
        cost = next(row for row in cells(root, "Cost") if row[0] == name)
        assert cost[2] == f"{defense['cost']['network_calls']:,}"
    assert "4 report draws (full: 20)" in root.all("main")[0].text
    (remark, *_) = [e.text for e in root.all("li") if e.text.startswith("FAIL")]
    assert CHECKED[2]["said"] in remark and ADVICE["black box"] in remark
    assert cells(root, "good: checks that passed") == [["null attack", CHECKED[0]["said"]]]
    for source in ("results.json", "records.jsonl", "blocks", "gallery"):
        assert any(source in code.text for code in root.all("code")), source
    # A number that is changed in the results is changed on the page.
    results["defenses"]["bad"]["robust"]["single"]["accuracy"] = 0.123
    assert "12.3 [" in run_page(store, results)


def test_the_command_writes_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = stored(tmp_path / "run", with_null("a", [4, 2]), images=2)
    main(["report", str(store.path)])
    assert "report.html" in capsys.readouterr().out
    check_page((store.path / "report.html").read_text("utf-8"))


def test_a_page_that_cannot_be_written_costs_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = stored(tmp_path / "run", with_null("a", [4, 2]), images=2)
    (store.path / "report.html").mkdir()
    main(["report", str(store.path)])
    assert "warning: report.html could not be drawn" in capsys.readouterr().err
    assert (store.path / "results.json").is_file() and (store.path / "report.md").is_file()


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</style>"],
)
def test_a_hostile_name_is_shown_as_it_is(name: str, tmp_path: Path) -> None:
    """As a row, as a class, in the audit, in the config, and as the folder's name."""
    store, results = run_of(tmp_path / "run", with_null(name, [4, 2]), images=2)
    results["run"]["class_names"] = [name, name]
    results["config"] = name
    results["defenses"][name]["audit"] = [{"name": name, "verdict": "WARN", "said": name}]
    results["defenses"][name]["attacks"]["pgd"]["iterations"] = {"loss": [1.0, 2.0]}
    results["struck"] = {name: name}
    results["run"]["audit"] = AUDIT
    root = check_page(run_page(store, results))
    assert root.all("h3")[0].text.startswith(name)
    assert root.all("pre")[0].text == name
    assert not [image for image in root.all("img") if "onerror" in image.attributes]


def test_an_unfinished_run_says_so_at_the_top(tmp_path: Path) -> None:
    records = [*with_null("a", [4, 2]), *lines("b", "clean", [DRAWS])]
    store, results = run_of(tmp_path / "run", records, images=2)
    root = check_page(run_page(store, results))
    (header,) = root.all("header")
    assert "NOT FINISHED: 1 part missing" in header.text
    assert "Under attack a is right on" in header.text


@pytest.mark.parametrize("struck", [None, {"a": "its gradient is zero"}])
def test_a_run_without_images_is_a_whole_page(struck: Any, tmp_path: Path) -> None:
    records = with_null("a", [4, 2])[:3]  # of two images: no block is there
    store, results = run_of(tmp_path / "run", records, images=4, struck=struck)
    root = check_page(run_page(store, results))
    assert "No defence has a result yet." in root.text
    assert "The run holds no images yet." in root.text
    assert ("a was struck out and has no numbers: its gradient is zero." in root.text) == bool(
        struck
    )


def test_one_image_is_called_no_finding(tmp_path: Path) -> None:
    store, results = run_of(tmp_path / "run", with_null("a", [2]), images=1)
    root = check_page(run_page(store, results))
    assert "of 1 image," in root.all("header")[0].text
    assert "1 image is no finding." in root.all("header")[0].text


def test_the_finding_names_the_best_and_whether_the_next_can_be_told_from_it(
    pair: tuple[Store, Any], tmp_path: Path
) -> None:
    store, results = pair
    robust = by_defense(Contents.read(store).records())
    said = finding(results, robust)
    numbers = interval(results["defenses"]["good"]["robust"]["single"]).replace(" ", "% ", 1)
    assert said.startswith("Of 2 defences good is right most often under attack: on " + numbers)
    # 15 of 40 images have 1 to 3 more of 4 draws right, and none has fewer.
    gain = 100 * (sum(RIGHT_A) - sum(RIGHT_B)) / (4 * 40)
    assert f"that is +{gain:.1f} [" in said
    assert said.endswith("points under attack above bad, the next one.")
    swapped = [*with_null("first", RIGHT_A), *with_null("second", RIGHT_A[1:] + RIGHT_A[:1])]
    store, results = run_of(tmp_path / "swapped", swapped, images=40)
    said = finding(results, by_defense(Contents.read(store).records()))
    assert "second, the next one, cannot be told from it (+0.0 [-" in said


def test_doubts_are_those_that_there_are(pair: tuple[Store, Any]) -> None:
    _, results = pair
    said = doubts(results)
    assert said[0].startswith("The audit of good has 1 FAIL:")
    assert said[1].startswith("The audit of good has 1 WARN:")
    assert any("weaker than the full protocol in 1 point:" in line for line in said)
    for defense in results["defenses"].values():
        defense["audit"] = CHECKED[:1]
    results["weaker_than_full"] = []
    assert doubts(results) == [
        "The highest of several numbers flatters: confirm it on other images."
    ]
    for defense in results["defenses"].values():
        defense["audit"] = None
    assert doubts(results)[0].startswith("good was not audited")


def checks_of_the_source() -> set[str]:
    """Every name of a check: of comparisons, of sameness, and those written where one is made."""
    written = {
        call.args[0].value if isinstance(call.args[0], ast.Constant) else None
        for path in (ROOT / "hetpure/evaluation").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Check" and call.args
    } - {None}
    sameness = {"who asks", "repeated calls", "companions", "gradient mode"}
    return {*audit.COMPARISONS, audit.WHOLE, audit.CONVERGENCE, *sameness, *map(str, written)}


def test_every_check_has_its_advice() -> None:
    assert set(ADVICE) == checks_of_the_source()
    assert advice("black box", "PASS") == ""
    assert advice("black box", "undecided") == UNDECIDED != advice("black box", "WARN")
    assert advice("budget", "undecided") == ADVICE["budget"]


def test_an_audit_in_words_puts_the_worst_first(pair: tuple[Store, Any]) -> None:
    good, _ = audited(pair[1])
    assert good.tally == "1 FAIL, 1 WARN, 1 PASS"
    assert [remark.verdict for remark in good.remarks] == ["FAIL", "WARN"]


def test_accuracy_by_class_is_counted_by_hand() -> None:
    predictions = {0: (0, [0, 0, 1]), 1: (0, [1, 1, 0]), 2: (1, [1, 1, 1])}
    records = [
        replace(record(sample, answers), attack=attack, label=label)
        for attack in ("clean", "pgd")
        for sample, (label, answers) in predictions.items()
    ]
    zero, one = interval(wilson(1, 2, 3).as_dict()), interval(wilson(1, 1, 3).as_dict())
    sheet = classes_sheet(records, ["cat"])  # the second class has no name
    assert sheet.rows == [("d", "cat", "2", zero, zero), ("d", "1", "1", one, one)]


def test_curves_are_drawn_to_scale(pair: tuple[Store, Any]) -> None:
    loss, right = curves(pair[1])[:2]
    assert loss.points == "0.00,100.00 50.00,0.00 100.00,50.00"
    assert (loss.bottom, loss.top, loss.iterations) == ("1", "3", 3)
    assert right.points == "0.00,10.00 50.00,50.00 100.00,60.00"
    assert "2.00 at the last" in loss.title


def record(sample: int, predictions: list[int]) -> Record:
    return Record("d", "pgd", sample, 0, predictions, [0, 1], 0, 0.1, 1.0, None, 1, None, [])


def test_the_chosen_images_are_few_the_first_the_least_and_the_most_sure() -> None:
    sure, torn = [3, 3, 3, 3], [0, 1, 2, 3]
    records = [record(sample, [0, 0, 0, 1]) for sample in range(60)]
    records[40], records[50], records[59] = record(40, torn), record(50, sure), record(59, torn)
    chosen = choose({"noisy": records, "plain": [record(k, [1]) for k in range(60)]})
    noisy = {
        reason: [] for reason in ("one of the first", "among the least sure", "among the surest")
    }
    for one in chosen["noisy"]:
        noisy[one.reason].append(one.record.sample)
    first, least, most = noisy.values()
    assert first == [0, 1, 2, 3, 4, 5]
    assert least == [40, 59, 6] and most[0] == 50 and len(most) == 3
    assert [one.record.sample for one in chosen["plain"]] == list(range(12))  # it is always sure
    for count in (1, 2, 5, 24, 30):
        many = choose({str(k): records for k in range(count)})
        shown = [one.record.sample for of_row in many.values() for one in of_row]
        assert 0 < len(shown) <= MOST
    for of_row in choose({str(k): records[:2] for k in range(2)}).values():
        assert len({one.record.sample for one in of_row}) == len(of_row) == 2


def test_a_picture_holds_the_image_and_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.rand(channels, 28, 28, generator=generator)
        drawn = decoded(picture(image))
        assert np.array_equal(drawn, (255 * image).round().byte().movedim(0, -1).numpy().squeeze())
    large = torch.rand(3, 224, 160, generator=generator)
    assert decoded(picture(large)).shape == (LONGEST, round(LONGEST * 160 / 224), 3)
    # Noise is what a PNG cannot make smaller: six pictures of each of 24 images.
    assert 24 * 6 * len(picture(torch.rand(3, 224, 224, generator=generator))) < 4.5e6


def decoded(address: str) -> np.ndarray[Any, Any]:
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Store]:
    """A run of small networks: with a mask, without one, without a purifier."""
    rows = {
        "plain": DefenseConfig(gradient="tape"),
        "uniform": DefenseConfig(UniformPurifier(strength=0.1, steps=20), "tiny", gradient="tape"),
        "masked": DefenseConfig(
            HeterogeneousPurifier(t_large=0.2, t_small=0.1, steps=20), "tiny", gradient="tape"
        ),
    }
    config = replace(
        CONFIG,
        defenses=rows,
        attack=PGD(steps=2, eot_samples=1),
        attacks={},
        protocol=Protocol(2, 1),
        audit=None,
    )
    run, store = begin(tmp_path_factory.mktemp("real"), *small(config), **vars(config))
    evaluate(run, store)
    return run, store


def test_the_gallery_shows_what_the_networks_make_of_an_image(real: tuple[Run, Store]) -> None:
    """Against each image purified alone; and without the gallery's files what blocks hold."""
    run, store = real
    contents = Contents.read(store)
    chosen = choose(by_defense(contents.records()))
    before = exhibits(store, contents, chosen, run.images.class_names)
    assert {len(e.panels) for shown in before.values() for e in shown} == {3}
    measure(run, store, chosen)
    shown = exhibits(store, contents, chosen, run.images.class_names)
    names = {name: [panel.name for panel in of_row[0].panels] for name, of_row in shown.items()}
    assert [len(of_row) for of_row in names.values()] == [3, 5, 6]
    assert names["uniform"][3:] == ["start", "purified, first draw"]
    assert names["masked"][3:] == ["mask", "x(t_l, t_s)", "purified, first draw"]
    for name in ("uniform", "masked"):
        defense: Defense = run.rows[name].defense
        for exhibit in shown[name]:
            panels = {panel.name: panel for panel in exhibit.panels}
            image = panels["adversarial"].image[None]
            noise = Noise.of(run.config.seed, Stream.REPORT).on(torch.tensor([exhibit.sample]))
            with torch.no_grad():
                purified = defense.purify(image, noise)[0]
                answer = int(defense.classifier(purified[None]).argmax())
            denoiser = defense.denoiser
            assert denoiser is not None
            strong, weak = (
                to_pixels(diffuse(denoiser, image, noise, denoiser.schedule.index(level)))[0]
                for level in (0.2, 0.1)
            )
            first = weak
            if name == "masked":  # a mask of 8 bits is exact: it is 0 or 1
                mask = panels["mask"].image
                first = mask * strong + (1 - mask) * weak
            shown_first = panels["x(t_l, t_s)" if name == "masked" else "start"].image
            assert (shown_first - first.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-5
            drawn = panels["purified, first draw"]
            assert (drawn.image - purified).abs().max() <= 0.5 / 255 + 1e-5
            assert drawn.below == f"answer: {run.images.class_names[answer]}"
            tenfold = 0.5 + 10 * (image[0] - panels["clean"].image)
            assert torch.equal(panels["perturbation, tenfold"].image, tenfold)
    page = run_page(store, write_results(store))
    assert "start: image" in page and "x(t_l, t_s): image" in page
    assert "zero" in page  # a class's name
    check_page(page)


def test_a_page_of_many_defences_says_whose_images_it_does_not_show(tmp_path: Path) -> None:
    names = [f"d{number:02}" for number in range(30)]
    records = [line for name in names for line in with_null(name, [4, 2])]
    store, results = run_of(tmp_path / "run", records, images=2)
    root = check_page(run_page(store, results))
    assert [row[0] for row in cells(root, "toy: PGD; n = 2")] == names
    assert len(root.all("img")) == 3 * MOST, "one image each of the first"
    (said,) = [paragraph.text for paragraph in root.all("p") if "Not shown" in paragraph.text]
    assert said == (
        "A page shows at most 24 images, so the first 24 of 30 defences have one each. Not shown:"
        " d24, d25, d26, d27, d28, d29. The images of all are in the folder blocks."
    )
    assert without_images(names[:MOST]) == ""


def test_a_page_of_256_images_is_quick_and_small(tmp_path: Path) -> None:
    """Five defences; what 24 images of pictures take at most is above. In seconds
    of the processor, which other programs do not lengthen."""
    right = (RIGHT_A * 7)[:256]
    records = [line for name in ("a", "b", "c", "d", "e") for line in with_null(name, right)]
    store, results = run_of(tmp_path / "run", records, images=256)
    start = time.process_time()
    page = run_page(store, results)
    assert time.process_time() - start < 3
    assert len(page.encode()) < 0.5e6
    assert len(check_page(page).all("img")) == 3 * 20  # four images of five defences


def test_a_damaged_gallery_is_one_line(
    real: tuple[Run, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    run, store = real
    measure(run, store, choose(by_defense(Contents.read(store).records())))
    path = next((store.path / "gallery").iterdir())
    path.write_bytes(b"torn")
    main(["report", str(store.path)])
    assert "cannot be read" in capsys.readouterr().err
    path.unlink()
    assert json.loads((store.path / "results.json").read_text())["missing"] == 0
