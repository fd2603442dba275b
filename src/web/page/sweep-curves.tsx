import { useMemo } from "preact/hooks";
import { MODE_NAMES, type ModeName, modeOf } from "../../report/modes.ts";
import type { SpreadSeries, SweepCurves, SweepReport } from "../api.ts";
import type { Line } from "./chart.tsx";
import { type GroupsPath, useAnswer } from "./client.ts";
import { plainName } from "./groups.ts";
import { useKeys } from "./keys.tsx";
import { figuresByMode, isMain, modeText } from "./modes.ts";
import { Empty, MetricSearch, Pending, Segments, Smoothing, Swatch } from "./parts.tsx";
import { setQuery, useRoute } from "./route.ts";
import { around, smoothed } from "./series.ts";
import { StepChart } from "./step-chart.tsx";

/** What the band around a mean spans. */
type Band = "std" | "range";
const BANDS: readonly { id: Band; name: string; help: string }[] = [
  { id: "std", name: "± std", help: "one standard deviation over seeds to either side" },
  { id: "range", name: "Min – max", help: "from the least seed to the greatest" },
];
/** Of training, those that are shown without being searched. */
const SHOWN =
  /^train\/(reward_mean|rewards?\/.+|hack_rate|rh_rate|kl_div|entropy|loss|accuracy|completion_length_avg)$|^eval\/(reward|accuracy)$/;
const MOST_METRICS = 60;
const POINTS = 250;

interface Props {
  readonly report: SweepReport;
  readonly path: GroupsPath;
  /** Changes when the curves may have. */
  readonly fresh: string;
}

/** Curves of the settings: mean over seeds with a band. What modes were evaluated by has a row, a chart a mode. */
export function SweepCurvesView({ report, path, fresh }: Props) {
  const { query } = useRoute();
  const band: Band = query.band === "range" ? "range" : "std";
  const smooth = Math.min(0.99, Math.max(0, Number(query.smooth ?? 0) || 0));
  const search = query.metric ?? "";
  const all = report.metric_names;
  const names = useMemo(() => shownMetrics(all, search), [all.join(), search]);
  const { data, error, again } = useAnswer<SweepCurves>(
    names.length === 0 ? null : path("/curves", { names: names.join(","), points: POINTS }),
    fresh,
  );
  const setSmooth = (value: number) =>
    setQuery({ smooth: value <= 0 ? null : Math.min(0.99, value).toFixed(2) });
  const setBand = (next: Band) => setQuery({ band: next === "std" ? null : next });
  useKeys({
    b: () => setBand(band === "std" ? "range" : "std"),
    "[": () => setSmooth(smooth - 0.1),
    "]": () => setSmooth(smooth + 0.1),
  });
  const lines = useMemo(() => {
    const made = new Map<string, readonly Line[]>();
    for (const [name, groups] of Object.entries(data?.metrics ?? {}))
      made.set(name, linesOf(report, groups, band, name.startsWith("train/") ? smooth : 0));
    return made;
  }, [data, report, band, smooth]);
  if (all.length === 0)
    return (
      <Empty title="No figures yet">
        <p>The first ones come with the first step of a run.</p>
      </Empty>
    );
  const figures = figuresByMode(lines.keys(), "eval");
  const others = [...lines.keys()].filter((name) => modeOf(name, "eval") === null);
  return (
    <>
      <div class="toolbar panel pad controls">
        <Segments label="Band" choices={BANDS} value={band} onChange={setBand} />
        <Smoothing value={smooth} onChange={setSmooth} />
        <span class="legend">
          {report.groups.map(({ name }, index) => (
            <span class="key" key={name}>
              <Swatch colour={index} />
              <span class="name" title={name}>
                {name}
              </span>
            </span>
          ))}
        </span>
        <MetricSearch value={search} />
      </div>
      {data === null && names.length > 0 ? <Pending error={error} again={again} /> : null}
      {names.length === 0 ? (
        <Empty title="No metric matches">
          <button type="button" onClick={() => setQuery({ metric: null })}>
            show the main ones
          </button>
        </Empty>
      ) : null}
      {figures.length === 0 ? null : (
        <section class="stack group" aria-label="By mode">
          <h2>Evaluation by mode</h2>
          {figures.map((name) => (
            <ModeRow key={name} name={name} lines={lines} />
          ))}
        </section>
      )}
      {others.length === 0 ? null : (
        <section class="stack group" aria-label="Training">
          <h2>Training</h2>
          <div class="charts">
            {others.map((name) => (
              <StepChart
                key={name}
                id={name}
                title={plainName(name)}
                help={name}
                lines={lines.get(name)!}
                height={170}
                sync="sweep"
                label={`${name} by step, mean over seeds`}
              />
            ))}
          </div>
        </section>
      )}
    </>
  );
}

/** What is asked for: the main metrics, or all that match the words. */
function shownMetrics(all: readonly string[], search: string): string[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = all.filter((name) => {
    if (words.length > 0) return words.every((word) => name.toLowerCase().includes(word));
    const of = modeOf(name, "eval");
    return of === null ? SHOWN.test(name) : isMain(of.figure);
  });
  return wanted.slice(0, MOST_METRICS);
}

function linesOf(
  { groups }: SweepReport,
  series: readonly (SpreadSeries | null)[],
  band: Band,
  smooth: number,
): Line[] {
  const soft = (values: readonly number[]) => (smooth > 0 ? smoothed(values, smooth) : values);
  return series.flatMap((of, colour): Line[] => {
    // A plan that grows is known to the curves a moment before.
    const label = groups[colour]?.name;
    if (of === null || label === undefined) return [];
    const y = soft(of.mean);
    return [
      {
        label,
        colour,
        x: of.step,
        y,
        style: "line",
        band: band === "std" ? around(y, soft(of.std)) : { low: soft(of.min), high: soft(of.max) },
      },
    ];
  });
}

/** A figure in every mode, on one vertical scale. */
function ModeRow({ name, lines }: { name: string; lines: ReadonlyMap<string, readonly Line[]> }) {
  const modes = MODE_NAMES.flatMap((mode): { mode: ModeName; of: readonly Line[] }[] => {
    const of = lines.get(`eval/${mode}/${name}`);
    return of === undefined ? [] : [{ mode, of }];
  });
  const extent = extentOf(modes.flatMap(({ of }) => of));
  return (
    <div class="mode-row">
      {modes.map(({ mode, of }) => (
        <StepChart
          key={mode}
          id={`${mode}/${name}`}
          title={plainName(name)}
          caption={<span class="tag">{modeText(mode)}</span>}
          lines={of}
          height={170}
          extent={extent}
          sync="sweep"
          label={`${plainName(name)} of ${modeText(mode)} by step, mean over seeds`}
        />
      ))}
    </div>
  );
}

function extentOf(lines: readonly Line[]): readonly [number, number] | null {
  const values = lines
    .flatMap(({ y, band }) => [...y, ...(band?.low ?? []), ...(band?.high ?? [])])
    .filter((value) => value !== null);
  return values.length === 0 ? null : [Math.min(...values), Math.max(...values)];
}
