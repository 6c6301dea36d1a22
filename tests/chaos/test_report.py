"""The report says what the history says, of whatever the processes have said."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from election.drill.checker import Verdict, check
from election.drill.history import History
from election.drill.report import Figures, print_report, write_page
from election.drill.report.lives import lives
from election.drill.report.picture import picture
from election.drill.report.spread import Spread
from election.drill.report.vacancies import NO_FAULT, unfinished, vacancies
from election.drill.vocabulary import Done, Told
from tests.chaos.saga import TERM_S, Saga
from tests.chaos.verdicts import of_guests, overlap, whole


def judged(story: Saga) -> tuple[History, list[Verdict]]:
    history = story.history()
    return history, check(history)


def rendered(story: Saga, folder: Path) -> str:
    write_page(*judged(story), folder / "page.html")
    return (folder / "page.html").read_text()


def printed(story: Saga) -> str:
    out = io.StringIO()
    print_report(Figures.of(*judged(story)), Console(file=out, width=80))
    return out.getvalue()


# --- figures --------------------------------------------------------------------------------------------------------


def test_a_vacancy_lasts_from_the_end_of_one_term_to_the_next_and_has_its_fault() -> None:
    """Of a killed leader from its death; of one that is cut off from its deadline, also when it is healed by then."""
    story = Saga().leads("o1", 1).fault("kill", "o1").kills("o1")
    story.wait(3).goes("o1").leads("o2", 1).heals()
    story.fault("cut off", "o2").wait(0.5).heals().wait(TERM_S + 1).goes("o2").leads("o3", 1)
    story.wait(5).loses("o3").goes("o3").wait(1).leads("o1")
    killed, cut, none = vacancies(story.history())
    assert (killed.fault, killed.number, killed.before.process) == ("kill", 1, "o1")
    assert killed.lasted_s == pytest.approx(3.3, abs=0.05)
    assert (cut.fault, cut.before.process) == ("cut off", "o2")
    assert 1 < cut.lasted_s < 2.5
    assert (none.fault, none.number) == (NO_FAULT, 0)


def test_a_vacancy_is_put_down_to_what_was_done_to_the_leader_first() -> None:
    """Then to what was done to etcd, and never to what was done to others only."""

    def of(*faults: str) -> str:
        story = Saga().leads("o1", 1)
        for on in faults:
            story.fault(f"cut {on}", on)
        [vacancy] = vacancies(story.wait(TERM_S + 1).goes("o1").leads("o2", 1).history())
        return vacancy.fault

    assert of("o1 from m2", "m1, m3", "o3") == "cut o1 from m2"
    assert of("m1, m3", "o3", "s1") == "cut m1, m3"
    assert of("all members") == "cut all members"
    assert of("o3", "s1") == NO_FAULT


def test_of_candidates_that_tell_nothing_etcd_tells_the_vacancies() -> None:
    """From the end of the one key until the next proof is seen."""
    history = of_guests().wins("o2").heals().wait(1).history()
    [vacancy] = vacancies(history)
    assert (vacancy.fault, vacancy.before.candidate) == ("cut off", "o1")
    assert vacancy.lasted_s == pytest.approx(2.2, abs=0.02)
    [leader] = [lane for lane in picture(history, [])["lanes"] if lane["name"] == "leader"]
    assert [bar[3] for bar in leader["bars"]] == ["o1 0-4", "o2 0-7"]


def test_a_vacancy_at_the_end_is_unfinished_unless_all_were_told_to_leave() -> None:
    """Then somebody should have led."""
    story = Saga().leads("o1", 1).fault("kill", "o1").kills("o1").heals().wait(9)
    left = unfinished(story.history())
    assert left is not None
    assert left.fault == "kill"
    assert left.lasted_s > 9
    story = Saga().leads("o1", 1).fault("kill").heals().healed()
    for process in ("o1", "o2", "o3"):
        story.fact(Done.LEAVES, process)
    assert unfinished(story.loses("o1").goes("o1").wait(9).history()) is None


def test_all_is_counted() -> None:
    """Faults by kind and those that were skipped, terms, writes, reads, and what became of agents."""
    story = whole()
    story.fact(Done.SKIPPED, fault="kill", why="nobody leads")
    story.tell(Told.UNTOLD, "r1", server="s1", via="get", why="too old", ended_at_s=story.now_s)
    figures = Figures.of(*judged(story))
    assert figures.passed
    assert [(kind.fault, kind.injected, kind.skipped, len(kind.takeovers)) for kind in figures.kinds] == [
        ("hand over", 1, 0, 1),
        ("kill", 1, 1, 1),
    ]
    assert (figures.terms, figures.leaders, figures.faults) == (3, 3, 2)
    assert {each.register: (each.acknowledged, each.refused, each.held) for each in figures.writes} == {
        "etcd": (3, 0, 3),
        "sqlite": (2, 1, 2),
    }
    assert dict(figures.reads) == {"leaders told": 3, "vacancies told": 1, "answers refused": 1}
    assert figures.collecting.reaped == 1
    assert figures.unfinished is None


def test_the_document_is_json_and_says_what_failed() -> None:
    """Everything in it can be written and read again."""
    document = Figures.of(*judged(overlap())).document()
    assert json.loads(json.dumps(document)) == document
    [one] = [each for each in document["verdicts"] if each["invariant"] == "one leader"]
    assert (one["state"], len(one["violations"])) == ("violated", 1)
    assert not document["passed"]
    assert Figures.of(*judged(whole())).document()["passed"]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """The smallest that so many do not exceed."""
    spread = Spread.of(float(number) for number in range(100, 0, -1))
    assert [spread.percentile_s(percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]


# --- the terminal ---------------------------------------------------------------------------------------------------


def test_the_terminal_shows_it_in_eighty_columns() -> None:
    """What has held, and what has not, with where."""
    good, bad = printed(whole()), printed(overlap())
    assert all(len(line) <= 80 for line in (good + bad).splitlines())
    assert "All 13 invariants have held." in good
    assert re.search(r"hand over +1 +1 ", good)
    assert re.search(r"VIOLATION one leader, 0:0\d\.\d{3}: o1 led with", bad)
    assert re.search(r"one leader +2 +violated 1 x", bad)
    assert "FAILED: one leader, " in bad
    assert re.search(r"fence +0 +unknown: there was nothing to examine", bad)


# --- the page -------------------------------------------------------------------------------------------------------


def drawn(page: str) -> dict[str, object]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data: dict[str, object] = json.loads(match[1])
    return data


def test_the_page_shows_who_led_what_was_hurt_and_what_was_broken(tmp_path: Path) -> None:
    """Every verdict, a lane for each process, every fault, and a way from a violation to its moment."""
    page = rendered(whole(), tmp_path)
    assert page.count('class="verdict held"') == 13
    data = drawn(page)
    lanes = data["lanes"]
    assert isinstance(lanes, list)
    assert [lane["name"] for lane in lanes] == [
        *("leader", "etcd", "o1", "o2", "o3", "s1", "r1 get s1", "r1 watch s1", "c1", "w1", "beat")
    ]
    assert [bar[3] for bar in lanes[0]["bars"]] == ["o1 0-11", "o2 0-15", "o3 0-19"]
    faults = data["faults"]
    assert isinstance(faults, list)
    assert [(fault[3], fault[4], fault[6]) for fault in faults] == [("hand over", "o1", [2]), ("kill", "o2", [3])]
    bad = rendered(overlap(), tmp_path)
    violations = drawn(bad)["violations"]
    assert isinstance(violations, list)
    [[at_s, invariant, _]] = violations
    assert invariant == "one leader"
    assert f'href="#t={at_s:.3f}"' in bad
    assert "Drill failed" in bad


def test_the_picture_shows_when_etcd_did_not_answer() -> None:
    """From the first read that failed until one has succeeded; and what was done to its members."""
    story = Saga().fault("kill", "m1, m2")
    began_s = story.now_s
    story.probe(ok=False)
    story.now_s += 2
    story.probe(ok=False)
    story.now_s += 1
    story.probe()
    data = picture(story.heals().history(), [])
    [(number, lane)] = [(number, lane) for number, lane in enumerate(data["lanes"]) if lane["name"] == "etcd"]
    [bar] = [bar for bar in lane["bars"] if bar[2] == "down"]
    assert bar[1] - bar[0] == pytest.approx(story.now_s - began_s, abs=0.02)
    assert data["faults"][0][6] == [number]


def test_the_picture_goes_on_after_etcd_was_set_back() -> None:
    """Agents and collectors are drawn from both histories, and nothing between them; robberies are in their lanes."""
    story = whole().leads("o1").robs("o1")
    story.set_back(story.revision - 1)
    story.lives("w9").wait(1)
    data = picture(story.history(), [])
    lanes = {lane["name"]: lane for lane in data["lanes"]}
    assert len(lanes["c1"]["bars"]) == 3  # its process, and twice that it collects
    assert [bar[2] for bar in lanes["w9"]["bars"]] == ["alive"]
    before, after = (bar for bar in lanes["c1"]["bars"] if bar[2] == "collects")
    [mark] = data["marks"]
    assert before[1] <= mark[0] < after[0]
    assert [tick[1] for tick in lanes["o1"]["ticks"]].count("robbed") == 1


def test_an_agent_has_its_own_lane_whatever_its_name(tmp_path: Path) -> None:
    """A stranger may call an agent like a server; and agents are killed and stand still as others do."""
    story = whole()
    story.fact(Done.STARTED, "w1-1", role="agent", slot="w1").lives("s1").wait(1)
    story.fact(Done.STARTED, "w1-2", role="second agent", slot="w1")  # has no lane
    story.fact(Done.PAUSED, "w1-1").wait(1).fact(Done.KILLED, "w1-1")
    lanes = [lane for lane in picture(story.history(), [])["lanes"] if lane["name"] in ("s1", "w1")]
    assert [(lane["name"], lane["kind"]) for lane in lanes] == [("s1", "server"), ("s1", "agent"), ("w1", "agent")]
    assert "alive" not in [bar[2] for bar in lanes[0]["bars"]]
    assert "paused" in [bar[2] for bar in lanes[2]["bars"]]
    assert "killed" in [tick[1] for tick in lanes[2]["ticks"]]


def test_a_drill_that_has_proved_too_little_says_so(tmp_path: Path) -> None:
    """It has not failed as one with a violation has, and has not passed."""
    page = rendered(Saga().leads("o1"), tmp_path)
    assert "Drill has proved too little" in page
    assert "Drill passed" in rendered(whole(), tmp_path)


def test_the_page_needs_nothing_but_itself_and_runs_nothing_that_it_is_told(tmp_path: Path) -> None:
    """No other address is in it, and what processes say stays text."""
    story = overlap()
    evil = "</script><script>alert(1)</script>"
    story.fault(evil, evil).heals()
    story.tell(Told.UNTOLD, "r1", server=evil, via="get", why=evil, ended_at_s=story.now_s)
    page = rendered(story, tmp_path)
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import|https?://""", page)


def test_an_empty_history_has_a_page(tmp_path: Path) -> None:
    """A drill that failed at its start is looked at as well."""
    history = replace(Saga().history(), revisions=(), facts=(), said=(), told=())
    write_page(history, check(history), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('class="verdict unknown"') == 13
    out = io.StringIO()
    print_report(Figures.of(history, check(history)), Console(file=out, width=80))
    assert "FAILED" in out.getvalue()


def test_processes_that_follow_each_other_share_a_lane() -> None:
    """`x-1` and `x-2` have had the same place, one after the other; each has its life."""
    story = Saga()
    for process in ("x-1", "x-2"):
        story.fact(Done.STARTED, process, role="orchestrator", slot="x").wait(1).fact(Done.KILLED, process).wait(1)
    story.fact(Done.STARTED, "x-3", role="orchestrator", slot="x")
    history = story.history()
    found = [life for life in lives(history, story.now_s) if life.slot == "x"]
    assert [(life.process, life.end) for life in found] == [("x-1", "killed"), ("x-2", "killed"), ("x-3", "")]
    assert found[0].ended_at_s < found[1].began_at_s < found[2].ended_at_s == story.now_s
    [lane] = [each for each in picture(history, [])["lanes"] if each["name"] == "x"]
    assert [bar[2] for bar in lane["bars"]] == ["life", "life", "life"]
    assert len(lane["ticks"]) == 2
