"""One run of the benchmark: every section in its order, its table, its numbers and its picture."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.end_to_end import alternatives, figures, link_tables, scale, soak, stages, trained_policy
from benchmarks.end_to_end.alternatives import Measured, measure, worth_choosing
from benchmarks.end_to_end.fleet import run_fleet
from benchmarks.end_to_end.fleet_site import fleet_site
from benchmarks.end_to_end.links import Driving, Link
from benchmarks.end_to_end.plan import Plan, Watch
from benchmarks.end_to_end.regions import Cost, WhatIf, measured_costs
from benchmarks.end_to_end.results import Section
from benchmarks.end_to_end.site import Site, open_ways
from benchmarks.end_to_end.verdict import verdict_section
from benchmarks.frames import INSTRUCTION, read_frames
from splitvla_edge.robots.replay import Source
from splitvla_shared.nouns import Scheme, StageTimes

ALL = ("stages", "alternatives", "policy", "links", "scale")
# Of a robot and its server: there is a real link between them, and an emulated one would come on top of it.
THERE = ("stages", "alternatives", "scale")
_OF_ALL_WAYS = {"stages", "alternatives", "links"}
_SOAK_ROBOTS = 4
_PREPARE_POLICY_S, _POLICY_ROUND_S = 25.0, 0.6
_RAW_BYTES = 3 * 224 * 224
_JPEG_BYTES = 24_000


@dataclass(frozen=True, slots=True)
class Request:
    """sections: of ALL. traces: links to drive over. model: for people, in titles. what_if: a second map of regions."""

    plan: Plan
    out: Path
    model: str
    sections: tuple[str, ...] = ALL
    instruction: str = INSTRUCTION
    traces: Sequence[Link] = ()
    what_if: WhatIf | None = None
    driving: Driving = field(default_factory=Driving)


class Run:
    """Measures one site. Mutable state: the sections so far, and what was measured of the ways."""

    def __init__(self, request: Request, source: Source, site: Site, watch: Watch) -> None:
        """source: of the camera's frames."""
        self.sections: list[Section] = []
        self._request, self._source, self._site, self._watch = request, source, site, watch
        self._images = [source.read(index) for index in range(source.count)]
        self._plan = request.plan
        self.measured: list[Measured] = []
        self.of_policy: list[Measured] = []

    @property
    def _there(self) -> bool:
        """Whether the server is another machine's, behind a link of its own."""
        return self._site.bundles is None

    def run(self) -> None:
        """All sections that were asked for."""
        wanted, plan = set(self._request.sections), self._request.plan
        self._request.out.mkdir(parents=True, exist_ok=True)
        round_s = self._measure_ways() if wanted & _OF_ALL_WAYS else self._expect(0.0)
        if "stages" in wanted:
            self._stages()
        if "alternatives" in wanted:
            self._alternatives()
        if "policy" in wanted:
            self._policy()
        if "links" in wanted:
            self._links(round_s)
        if "scale" in wanted:
            self._scale()
        if plan.soak_minutes:
            self._soak()
        if self.measured or self.of_policy:
            self._verdict()

    def _measure_ways(self) -> float:
        """Also the seconds that one round of all ways takes."""
        request, plan = self._request, self._request.plan
        with open_ways(self._site) as ways:
            started = time.monotonic()
            measure(ways, self._images, request.instruction, 1)  # also opens connections and warms caches
            round_s = (time.monotonic() - started) / (1 + alternatives.WARM_UP_ROUNDS)
            plan = self._plan = plan.fitted(round_s)
            self._expect(round_s)
            with self._watch.phase("every way, round by round", round_s * (plan.frames + 2)) as step:
                self.measured = measure(ways, self._images, request.instruction, plan.frames, step)
        return round_s

    def _expect(self, round_s: float) -> float:
        """Say how long all takes where a round of all ways takes so long, which it returns."""
        plan, wanted = self._plan, self._request.sections
        seconds = round_s * (plan.frames + alternatives.WARM_UP_ROUNDS) + plan.soak_minutes * 60
        if "policy" in wanted:
            seconds += _PREPARE_POLICY_S + _policy_s(plan)
        if "links" in wanted:
            seconds += self._sockets_s(round_s)
        if "scale" in wanted:
            seconds += self._scale_s()
        self._watch.expect(seconds)
        return round_s

    def _sockets_s(self, round_s: float) -> float:
        rounds = self._plan.socket_frames + alternatives.WARM_UP_ROUNDS
        return 5.0 + len(link_tables.SOCKET_LINKS) * rounds * round_s * 1.3

    def _scale_s(self) -> float:
        return 15.0 + sum(self._plan.scale_s + 3.0 + count for count in self._plan.scale_counts)

    def _stages(self) -> None:
        plan = self._plan
        read = stages.capture_ms(self._source.read, self._source.count, max(plan.frames, 20))
        ends = stages.Ends(read, stages.control_ms(plan.control_ticks, control_hz=self._request.driving.control_hz))
        self.sections.append(stages.section(ends, _stage_times(self.measured)))

    def _alternatives(self) -> None:
        over = "over the link to the server" if self._there else "over loopback"
        self.sections.append(
            alternatives.section(self.measured, title=alternatives.TITLE + over, promised=self._site.promises)
        )
        figures.draw_alternatives(self.measured, self._request.out / "alternatives.png", self._request.model)

    def _policy(self) -> None:
        """The ways of a policy that acts, with its codec: what embeddings of random weights can't show."""
        request, plan = self._request, self._request.plan
        images = read_frames(trained_policy.FRAMES)
        with contextlib.ExitStack() as stack:
            with self._watch.phase("calibrate a trained policy", _PREPARE_POLICY_S):
                site = stack.enter_context(trained_policy.trained_here(self._site.threads or 1, self._site.precision))
                ways = stack.enter_context(open_ways(site))
            with self._watch.phase("its ways, round by round", _policy_s(plan)) as step:
                self.of_policy = measure(ways, images, trained_policy.INSTRUCTION, plan.frames, step)
        title = "A trained policy with a calibrated codec, every way to an action, milliseconds over loopback"
        self.sections.append(alternatives.section(self.of_policy, "policy", title, promised=self._site.promises))
        self.sections.append(
            link_tables.choice_section(worth_choosing(self.of_policy), "policy-links", "A trained policy")
        )
        figures.draw_alternatives(self.of_policy, request.out / "policy.png", trained_policy.NAME)

    def _links(self, round_s: float) -> None:
        request, measured = self._request, self.measured
        self.sections.append(link_tables.grid_section(measured))
        self.sections.append(link_tables.control_section(measured, request.driving))
        self.sections.append(link_tables.traces_section(measured, request.traces, request.driving))
        with self._watch.phase("sockets through the emulator", self._sockets_s(round_s)) as step:
            self.sections.append(
                link_tables.sockets_section(
                    self._site, _sent(measured), self._images, request.instruction, self._plan.socket_frames, step
                )
            )
        figures.draw_regions(self._panels(), request.out / "regions.png")

    def _panels(self) -> Mapping[str, Sequence[Cost]]:
        measured = worth_choosing(self.measured)
        panels: dict[str, Sequence[Cost]] = {f"measured ({self._request.model})": measured_costs(measured)}
        if self.of_policy:
            panels[f"measured ({trained_policy.NAME})"] = measured_costs(worth_choosing(self.of_policy))
        if (what_if := self._request.what_if) is not None:
            rungs = {way.name: way.up_bytes for way in measured if way.name.startswith("split")}
            encode = f"encode {what_if.robot_encode:g} ms (robot), {what_if.server_encode:g} (server)"
            title = f"what if: {encode}; backbone {what_if.backbone:g}"
            panels[title] = what_if.costs(rungs, _JPEG_BYTES, _RAW_BYTES)
        return panels

    def _verdict(self) -> None:
        """Of the policy with a codec where it was measured: embeddings of random weights have no rung to recommend."""
        measured, model = (
            (self.of_policy, trained_policy.NAME) if self.of_policy else (self.measured, self._request.model)
        )
        self.sections.append(verdict_section(worth_choosing(measured), model, there=self._there))

    def _scale(self) -> None:
        plan, request = self._plan, self._request
        with fleet_site(self._site, self._images, request.instruction) as (job, pid, model, folder):
            job = dataclasses.replace(job, deadline_s=plan.deadline_s)
            fleets = []
            for count in plan.scale_counts:
                with self._watch.phase(f"{count} robots on one server", plan.scale_s + 3.0 + count) as step:
                    fleets.append(run_fleet(job, pid, count, plan.scale_s, folder, step))
        scheme = Scheme(job.scheme).name.lower()
        cores = None if self._there else os.cpu_count()
        self.sections.append(scale.scale_section(fleets, model, scheme, job.control_hz, job.deadline_s, cores))
        figures.draw_scale(fleets, job.control_hz, request.out / "scale.png", model)

    def _soak(self) -> None:
        minutes = self._plan.soak_minutes
        with (
            fleet_site(self._site, self._images, self._request.instruction) as (job, pid, model, folder),
            self._watch.phase(f"soak of {minutes:g} minutes", minutes * 60 + 5) as step,
        ):
            job = dataclasses.replace(job, deadline_s=self._plan.deadline_s)
            fleet = run_fleet(job, pid, _SOAK_ROBOTS, minutes * 60, folder, step)
        self.sections += soak.soak_sections(fleet, model)
        figures.draw_soak(fleet, self._request.out / "soak.png")


def _policy_s(plan: Plan) -> float:
    return (plan.frames + alternatives.WARM_UP_ROUNDS) * _POLICY_ROUND_S


def _stage_times(measured: Sequence[Measured]) -> dict[str, list[StageTimes]]:
    found = {way.name: [each.stages for each in way.answers if each.stages is not None] for way in measured}
    return {name: times for name, times in found.items() if times}


def _sent(measured: Sequence[Measured]) -> list[Measured]:
    return [way for way in measured if way.up_bytes]
