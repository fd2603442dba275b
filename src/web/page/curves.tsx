import { useMemo, useState } from "preact/hooks";
import type { RunSummary } from "../api.ts";
import { Chart, type Line } from "./chart.tsx";
import { type Curves, type RunCurves, useFineCurves } from "./curves-data.ts";
import { count, duration, stepText } from "./format.ts";
import { type ChartOf, groupsOf, plainName } from "./groups.ts";
import { useKeys } from "./keys.tsx";
import { Empty, IconButton, MetricSearch, Pending, Segments, Smoothing } from "./parts.tsx";
import { setQuery, useRoute } from "./route.ts";
import { around, countsExamples, examplesOf, type Series } from "./series.ts";
import { ChartFrame } from "./step-chart.tsx";
import { keptStore, useStore } from "./store.ts";

type Axis = "step" | "time" | "examples";
const AXES: readonly { id: Axis; name: string }[] = [
  { id: "step", name: "Step" },
  { id: "time", name: "Time" },
  { id: "examples", name: "Examples" },
];

const favourites = keptStore<readonly string[]>(
  "rlv-favourites",
  [],
  (value): value is string[] => Array.isArray(value) && value.every((each) => typeof each === "string"),
);

/** A run as it is drawn: its name, and the colour it has wherever several are compared. */
export interface Shown {
  readonly run: RunSummary;
  readonly colour: number;
}

/** The steps between two places of an axis, as this run has them. */
function stepsOf(
  curves: RunCurves,
  axis: Axis,
  [from, to]: readonly [number, number],
): [number, number] | null {
  if (axis === "step") return [from, to];
  const longest = [...curves.series.values()].sort((a, b) => b.step.length - a.step.length)[0];
  const x = longest && xOf(longest, axis);
  if (x === undefined) return null;
  const begin = x.findIndex((value) => value >= from);
  const end = x.findLastIndex((value) => value <= to);
  return begin < 0 || end < begin ? null : [longest!.step[begin]!, longest!.step[end]!];
}

/** Undefined: the run does not count its examples. */
function xOf(series: Series, axis: Axis): readonly number[] | undefined {
  if (axis === "time") return series.time;
  if (axis === "step") return series.step;
  return countsExamples(series) ? examplesOf(series) : undefined;
}

/** One run: a colour for each metric. Several: a colour for each run, evaluations dashed. */
function linesOf(chart: ChartOf, shown: readonly Shown[], runs: ReadonlyMap<string, RunCurves>, axis: Axis) {
  const lines: Line[] = [];
  for (const { run, colour } of shown) {
    const curves = runs.get(run.id);
    if (curves === undefined) continue;
    chart.metrics.forEach((metric, index) => {
      const series = curves.series.get(metric);
      if (series === undefined) return;
      const x = xOf(series, axis);
      if (x === undefined) return;
      const spread = index === 0 && chart.spread !== undefined ? curves.series.get(chart.spread) : undefined;
      lines.push({
        label:
          shown.length === 1 ? metric : index === 0 ? run.name : metric.startsWith("eval/") ? "eval" : metric,
        colour: shown.length > 1 ? colour : index,
        x,
        y: series.value,
        style: metric.startsWith("eval/") ? "points" : "line",
        ...(spread !== undefined && spread.value.length === series.value.length && shown.length === 1
          ? { band: around(series.value, spread.value) }
          : {}),
      });
    });
  }
  return lines;
}

export function CurvesTab({ shown, curves: whole }: { shown: readonly Shown[]; curves: Curves }) {
  const { query } = useRoute();
  const [grown, setGrown] = useState<string | null>(null);
  const pinned = useStore(favourites);
  const axis = AXES.find(({ id }) => id === query.x)?.id ?? "step";
  const smooth = Math.min(0.99, Math.max(0, Number(query.smooth ?? 0) || 0));
  const log = query.log === "1";
  const search = query.metric ?? "";
  const zoom = zoomOf(query.zoom);
  const first = whole.runs.values().next().value;
  const curves = useFineCurves(whole, zoom && first ? stepsOf(first, axis, zoom) : null);
  const names = useMemo(() => {
    const all = new Set<string>();
    for (const run of curves.runs.values()) for (const name of run.series.keys()) all.add(name);
    return [...all];
  }, [curves]);
  const groups = useMemo(
    () => groupsOf(names, search, shown.length > 1),
    [names.join(), search, shown.length > 1],
  );
  const hasExamples = useMemo(
    () => [...whole.runs.values()].some((run) => [...run.series.values()].some(countsExamples)),
    [whole],
  );
  const setZoom = (range: readonly [number, number] | null) =>
    setQuery({ zoom: range === null ? null : range.map((x) => Number(x.toPrecision(6))).join("~") });
  const setSmooth = (value: number) =>
    setQuery({ smooth: value <= 0 ? null : Math.min(0.99, value).toFixed(2) });
  useKeys({
    l: () => setQuery({ log: log ? null : "1" }),
    z: () => setZoom(null),
    "[": () => setSmooth(smooth - 0.1),
    "]": () => setSmooth(smooth + 0.1),
  });

  if (curves.loading || curves.error !== null) return <Pending error={curves.error} />;
  if (names.length === 0)
    return (
      <Empty title="No figures yet">
        <p>The first ones come with the first step; this page shows them without being asked.</p>
      </Empty>
    );
  const all = groups.flatMap((group) => group.charts);
  const pins = pinned.flatMap((id) => all.filter((chart) => chart.id === id));
  const panel = (chart: ChartOf) => (
    <ChartPanel
      key={chart.id}
      chart={chart}
      shown={shown}
      curves={curves}
      axis={axis}
      log={log}
      smooth={smooth}
      zoom={zoom}
      setZoom={setZoom}
      grown={grown === chart.id}
      onGrow={() => setGrown(grown === chart.id ? null : chart.id)}
    />
  );
  return (
    <div class="stack">
      <div class="toolbar panel pad controls">
        <Segments
          label="Horizontal axis"
          choices={AXES.filter(({ id }) => id !== "examples" || hasExamples)}
          value={axis}
          onChange={(x) => setQuery({ x: x === "step" ? null : x, zoom: null })}
        />
        <Smoothing value={smooth} onChange={setSmooth} />
        <label class="field">
          <input
            type="checkbox"
            checked={log}
            onChange={(event) => setQuery({ log: event.currentTarget.checked ? "1" : null })}
          />
          Log scale
        </label>
        {zoom === null ? null : (
          <button type="button" onClick={() => setZoom(null)}>
            Whole range
          </button>
        )}
        <MetricSearch value={search} />
      </div>
      {pins.length === 0 ? null : (
        <section class="stack group" aria-label="Pinned">
          <h2>Pinned</h2>
          <div class="charts">{pins.map(panel)}</div>
        </section>
      )}
      {groups.length === 0 ? (
        <Empty title="No metric matches">
          <button type="button" onClick={() => setQuery({ metric: null })}>
            show all
          </button>
        </Empty>
      ) : null}
      {groups.map((group) => {
        const charts = group.charts.filter(({ id }) => !pins.some((pin) => pin.id === id));
        return charts.length === 0 ? null : (
          <section class="stack group" key={group.id} aria-label={group.title}>
            <h2>{group.title}</h2>
            <div class="charts">{charts.map(panel)}</div>
          </section>
        );
      })}
    </div>
  );
}

function zoomOf(text: string | undefined): readonly [number, number] | null {
  const [from, to] = (text ?? "").split("~").map(Number);
  return from !== undefined && to !== undefined && from < to ? [from, to] : null;
}

interface PanelProps {
  readonly chart: ChartOf;
  readonly shown: readonly Shown[];
  readonly curves: Curves;
  readonly axis: Axis;
  readonly log: boolean;
  readonly smooth: number;
  readonly zoom: readonly [number, number] | null;
  readonly setZoom: (range: readonly [number, number] | null) => void;
  readonly grown: boolean;
  readonly onGrow: () => void;
}

const TEXT: Readonly<Record<Axis, (x: number) => string>> = {
  step: stepText,
  time: (x) => (x < 0 ? "" : duration(x)),
  examples: (x) => count(x),
};

function ChartPanel({ chart, shown, curves, axis, log, smooth, zoom, setZoom, grown, onGrow }: PanelProps) {
  const pins = useStore(favourites);
  const pinned = pins.includes(chart.id);
  const lines = useMemo(
    () => linesOf(chart, shown, curves.runs, axis),
    [chart, shown.map(({ run, colour }) => `${run.id} ${run.name} ${colour}`).join(), curves, axis],
  );
  const stacked = chart.stacked === true && shown.length === 1;
  return (
    <ChartFrame
      kind={grown ? "grown" : ""}
      id={chart.id}
      title={chart.title}
      help={chart.metrics.join(", ")}
      caption={
        <>
          <IconButton
            name="star"
            label={pinned ? `Unpin ${chart.title}` : `Pin ${chart.title}`}
            on={pinned}
            pressed={pinned}
            onClick={() =>
              favourites.set(pinned ? pins.filter((id) => id !== chart.id) : [...pins, chart.id])
            }
          />
          <IconButton
            name={grown ? "shrink" : "grow"}
            label={grown ? `Shrink ${chart.title}` : `Enlarge ${chart.title}`}
            pressed={grown}
            onClick={onGrow}
          />
        </>
      }
    >
      <Chart
        lines={lines}
        xText={TEXT[axis]}
        xName={axis === "time" ? "at" : axis}
        height={grown ? 400 : 170}
        log={log && !stacked}
        smooth={stacked ? 0 : smooth}
        stacked={stacked}
        zoom={zoom}
        onZoom={setZoom}
        sync="curves"
        label={`${chart.title}: ${chart.metrics.map(plainName).join(", ")} by ${axis}`}
      />
    </ChartFrame>
  );
}
