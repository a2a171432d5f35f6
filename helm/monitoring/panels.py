"""How panels and dashboards look: what executive.py, on_call.py and debug.py are written with, over Grafana's own SDK.

Pure: no clock, no randomness, no files, so that what is generated is the same everywhere. Ids and refIds are given by
position.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import barchart, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from helm.monitoring.rules import RUNBOOKS

DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
Steps = Sequence[tuple[float | None, str]]
"""Thresholds: a colour from that value on; the first one's value is None."""

Panel = timeseries.Panel | stat.Panel | table.Panel | heatmap.Panel | barchart.Panel | statetimeline.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, table.Panel, heatmap.Panel, barchart.Panel, statetimeline.Panel)


@dataclass(frozen=True)
class Query:
    """PromQL and how its series are called. ``exemplars``: the traces of single requests are drawn too."""

    expression: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Column:
    """A column of numbers of a table. Without a name it is not shown: its labels are what matters."""

    name: str
    expression: str
    unit: str = "none"
    steps: Steps = ()


@dataclass(frozen=True)
class About:
    """What every panel has. ``description``: what it shows and, where it is bad, what to do. ``width``: of 24."""

    title: str
    description: str
    unit: str
    width: int = 12
    height: int = 8


def lines(
    about: About,
    *queries: Query,
    steps: Steps = (),
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
) -> timeseries.Panel:
    """Values over time. Series whose name holds "objective" are dashed; ``steps`` are drawn as lines."""
    panel = _dressed(timeseries.Panel(), about).fill_opacity(60 if stacked else 8).line_width(1)
    panel.show_points(common.VisibilityMode.NEVER)
    panel.legend(_legend(common.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
    panel.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    panel.override_by_regexp(
        "/objective/", [dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})]
    )
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if steps:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(steps)).thresholds_style(style)
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query).range().exemplar(query.exemplars))
    return panel


def numbers(about: About, *queries: Query, steps: Steps = ()) -> stat.Panel:
    """The values of now, large, coloured where there are ``steps``."""
    panel = _dressed(stat.Panel(), about)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.graph_mode(common.BigValueGraphMode.NONE).text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    panel.color_mode(common.BigValueColorMode.VALUE if steps else common.BigValueColorMode.NONE)
    if steps:
        panel.thresholds(_thresholds(steps))
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query).instant())
    return panel


def rows(about: About, *columns: Column, links: Sequence[tuple[str, str, str]] = ()) -> table.Panel:
    """One row for each set of labels, one column for each label and number. ``links``: (column, title, address)."""
    panel = _dressed(table.Panel(), about)
    hidden, names = {"Time": True}, {}
    for number, column in enumerate(columns):
        panel.with_target(_target(number, Query(column.expression)).instant().format(PromQueryFormat.TABLE))
        value = "Value" if len(columns) == 1 else f"Value #{_letter(number)}"
        if not column.name:
            hidden[value] = True
            continue
        names[value] = column.name
        properties = [dashboard.DynamicConfigValue("unit", column.unit)]
        if column.steps:
            steps = [{"value": value, "color": color} for value, color in column.steps]
            properties.append(dashboard.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}))
            properties.append(dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
        panel.override_by_name(column.name, properties)
    for name, title, url in links:
        link = {"title": title, "url": url, "targetBlank": True}
        panel.override_by_name(name, [dashboard.DynamicConfigValue("links", [link])])
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(_organized(hidden, names))


def spread(about: About, histogram: str, selector: str, exemplars: bool = False) -> heatmap.Panel:
    """How the observations of a Prometheus histogram are spread over its buckets, over time. ``about.unit``: theirs."""
    panel = _dressed(heatmap.Panel(), about).calculate(False)
    panel.y_axis(heatmap.YAxisConfig().unit(about.unit).axis_placement(common.AxisPlacement.LEFT))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5))
    expression = f"sum by (le) (increase({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    query = _target(0, Query(expression, "{{le}}")).range().format(PromQueryFormat.HEATMAP)
    return panel.with_target(query.exemplar(exemplars))


def bars(about: About, label: str, *columns: Column) -> barchart.Panel:
    """A group of bars for each value of ``label``, which every expression keeps as its only one."""
    panel = _dressed(barchart.Panel(), about).x_field(label).min(0)
    panel.legend(_legend(common.LegendDisplayMode.LIST))
    names = {}
    for number, column in enumerate(columns):
        panel.with_target(_target(number, Query(column.expression)).instant().format(PromQueryFormat.TABLE))
        names["Value" if len(columns) == 1 else f"Value #{_letter(number)}"] = column.name
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    # Prometheus gives them in no order.
    by_label = {"sort": [{"field": label, "desc": False}]}
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="sortBy", options=by_label))
    return panel.with_transformation(_organized({"Time": True}, names))


def states(about: About, query: Query, texts: Mapping[str, tuple[str, str]]) -> statetimeline.Panel:
    """How a value went that stands for a state. ``texts``: text and colour of each value."""
    panel = _dressed(statetimeline.Panel(), about).show_value(common.VisibilityMode.AUTO).merge_values(True)
    found = {value: dashboard.ValueMappingResult(text=text, color=color) for value, (text, color) in texts.items()}
    panel.mappings([dashboard.ValueMap(options=found)])
    return panel.with_target(_target(0, query).range())


def board(
    name: str,
    description: str,
    since: str,
    links: Sequence[builders.DashboardLink],
    parts: Sequence[tuple[str, Sequence[Panel]]],
    refresh: str = "30s",
    variables: Sequence[str] = ("namespace", "reranker", "revision"),
) -> dashboard.Dashboard:
    """A dashboard: ``parts`` are titled rows of panels. ``variables``: of _VARIABLES, besides the datasource."""
    made = builders.Dashboard(f"Rerank / {name}").uid(_uid(name)).description(description)
    made.tags(["rerank"]).readonly().timezone("browser").time(since, "now").refresh(refresh).links(list(links))
    made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for name in variables:
        made.with_variable(_variable(name))
    number = 0
    for heading, panels in parts:
        number += 1
        made.with_row(builders.Row(heading).id(number))
        for panel in panels:
            number += 1
            made.with_panel(panel.id(number))
    return made.build()


def to_board(name: str) -> builders.DashboardLink:
    """With the variables and the time of the dashboard that it leaves."""
    return _link(name, f"/d/{_uid(name)}").include_vars(True).keep_time(True).icon("dashboard")


def to_runbooks() -> builders.DashboardLink:
    tip = "docs/runbooks of this project; the chart's monitoring.rules.runbookUrl says where that is"
    return _link("Runbooks", RUNBOOKS).target_blank(True).icon("doc").tooltip(tip)


def drilled(panel: timeseries.Panel) -> timeseries.Panel:
    """A click on a series leads to the debug dashboard of its Reranker."""
    url = (
        "/d/rerank-debug?${datasource:queryparam}&var-namespace=${__field.labels.namespace}"
        "&var-reranker=${__field.labels.reranker}&${__url_time_range}"
    )
    return panel.data_links([_link("Debug this Reranker", url)])


_VARIABLES = {
    "namespace": ("Namespace", "rerank_gateway_endpoints"),
    "reranker": ("Reranker", 'rerank_gateway_endpoints{namespace=~"$namespace"}'),
    "revision": ("Revision", 'rerank_gateway_endpoints{namespace=~"$namespace", reranker=~"$reranker"}'),
}
"""Its label, and the series whose label of that name may be chosen."""


def _variable(name: str) -> builders.QueryVariable:
    label, series = _VARIABLES[name]
    made = builders.QueryVariable(name).label(label).datasource(DATASOURCE).query(f"label_values({series}, {name})")
    made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    made.current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    return made.multi(True).include_all(True).all_value(".*")


def _uid(board: str) -> str:
    return f"rerank-{board.lower()}"


def _link(title: str, url: str) -> builders.DashboardLink:
    return builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url)


def _letter(number: int) -> str:
    return string.ascii_uppercase[number]


def _target(number: int, query: Query) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(_letter(number)).datasource(DATASOURCE)
    return made.expr(query.expression).legend_format(query.legend)


def _dressed(panel: P, about: About) -> P:
    panel.title(about.title).description(about.description).unit(about.unit).datasource(DATASOURCE)
    panel.span(about.width).height(about.height)
    return panel


def _legend(mode: common.LegendDisplayMode) -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions().display_mode(mode).placement(common.LegendPlacement.BOTTOM).show_legend(True)
    )


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    made = [dashboard.Threshold(value=value, color=color) for value, color in steps]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


def _organized(hidden: Mapping[str, bool], names: Mapping[str, str]) -> dashboard.DataTransformerConfig:
    options = {"excludeByName": dict(hidden), "renameByName": dict(names)}
    return dashboard.DataTransformerConfig(id_val="organize", options=options)
